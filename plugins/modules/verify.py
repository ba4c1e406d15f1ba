#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: verify
short_description: Ask every server for a token
version_added: 0.1.0
description:
  - A server's C(/health) says that its model is loaded, not that it works. This asks each for one token, an embedding
    server for an embedding and a reranker for a ranking.
  - The controller asks with httpx, as a client would. Servers that listen on the loopback address of a remote host are
    asked by that host.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  state_dir:
    description: The servers' state directory on the host.
    type: path
    required: true
  timeout:
    description: Seconds that a server has for its answer.
    type: float
    default: 60.0
  api_key:
    description: An API key for servers that want one. On a local connection it is read from the servers' own key file.
    type: str
requirements:
  - httpx (on the controller)
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  action:
    support: full
    description: Runs mainly on the controller.
"""

EXAMPLES = r"""
- name: Verify the servers
  magi.llama.verify:
    state_dir: /var/lib/magi-llama
"""

RETURN = r"""
servers:
  description: An answer for each server, in order of their ports. The task fails when one of them is not ok.
  returned: success or failure after the servers were asked
  type: list
  elements: dict
  contains:
    name:
      description: The server's name.
      type: str
      sample: qwen3-8b-q4_k_m
    port:
      description: Its port.
      type: int
      sample: 8080
    ok:
      description: Whether it gave what was asked for.
      type: bool
    via:
      description: Who asked, C(controller) or C(host).
      type: str
      sample: controller
    seconds:
      description: Time to the answer in seconds.
      type: float
      sample: 0.12
    error:
      description: What went wrong, V(null) if nothing did.
      type: str
"""
