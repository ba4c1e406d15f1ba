#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: verify
short_description: Probe every server with one token
version_added: 0.1.0
description:
  - A server's C(/health) says that its model is loaded, not that it works. This asks each for one token, an embedding
    server for an embedding and a reranker for a ranking.
  - The controller asks with httpx, as a client would. Servers that listen on the loopback address of a remote host are
    asked by that host, and so are those whose API key is not known on the controller.
  - A deployment of which a server fails here is not one that M(magi.llama.rollback) returns to. Where the failure is
    the server's own, it stays so until that server answers here.
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
    description:
      - An API key for servers that want one.
      - Without it the host asks them, with a key from the servers' own key file.
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
    own_fault:
      description: >-
        Whether the failure is the server's own, which runs and took the question, and not that it was stopped, could
        not be reached, or got a key that it does not take.
      type: bool
"""

from ansible_collections.magi.llama.plugins.module_utils._arguments.verify import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import read_record
from ansible_collections.magi.llama.plugins.module_utils._deployment.rollback import note_answered, note_bad, revisions
from ansible_collections.magi.llama.plugins.module_utils._health.observations import refused_revisions


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    """The node's half: return what is deployed, and record which servers failed."""
    given, state_dir = module.params, module.params["state_dir"]
    if given["failed"] and not module.check_mode:
        note_bad(state_dir, given["failed"], given["refused"])
    if given["answered"] and not module.check_mode:
        note_answered(state_dir, given["answered"])
    record = read_record(state_dir)
    now, refused = revisions(record), refused_revisions(state_dir)
    return {
        "changed": False,
        "deployed": record["servers"],
        "refused": sorted(name for name, revision in refused.items() if now.get(name) == revision),
    }


if __name__ == "__main__":
    main()
