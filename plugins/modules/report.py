#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: report
short_description: Show the progress of a run
version_added: 0.1.0
description:
  - Prints the five steps of a start-up as they happen, the final summary, and tables of the registry and status.
  - Reads the facts set by earlier steps; changes nothing on the host.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  step:
    description: What to show, in the given order.
    type: list
    elements: str
    choices: [runtime, discovery, registry, profile, enabled, launch, health, summary, status, text]
    required: true
  tried:
    description: C(tried) of M(magi.llama.runtime), for V(runtime).
    type: list
    elements: dict
    default: []
  health:
    description: The result of M(magi.llama.wait_for_health), for V(health) and V(summary).
    type: dict
  status:
    description: C(status) of M(magi.llama.server_info), for V(status).
    type: dict
  changes:
    description: C(changes) of M(magi.llama.gguf_registry), for V(discovery).
    type: dict
    default: {}
  warnings:
    description:
      - C(warned) of M(magi.llama.gguf_registry), for V(discovery). Warnings of the runtime and the plan are shown as
        well, since Ansible may hide warnings of a task that changed nothing.
    type: list
    elements: str
    default: []
  text:
    description: Text to show, for V(text).
    type: str
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  action:
    support: full
    description: Runs on the controller alone, no connection to the host is made.
"""

EXAMPLES = r"""
- name: Show what was found
  magi.llama.report:
    step: discovery
"""

RETURN = r"""#"""
