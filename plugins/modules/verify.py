#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: verify
short_description: Probe every server with a few tokens
version_added: 0.1.0
description:
  - C(/health) only shows that a server's model is loaded. This module requests a few tokens from each server, an
    embedding from an embedding server and a ranking from a reranker.
  - The controller sends the requests with httpx, as a client would. The host sends them for servers that listen on a
    remote host's loopback address, that the controller cannot reach, or whose API key it does not know.
  - M(magi.llama.rollback) does not return to a deployment with a server that failed here. If the failure is the
    server's own fault, this holds until that server answers here.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  state_dir:
    description: The servers' state directory on the host.
    type: path
    required: true
  timeout:
    description: Seconds to wait for a server's answer.
    type: float
    default: 60.0
  api_key:
    description:
      - API key for servers that require one.
      - Without it, the host sends the requests, with a key from the servers' key file.
    type: str
  request_from:
    description:
      - V(controller) sends the requests as a client would, and fails for a server that only the host can ask.
      - V(host) sends all requests from the host.
      - V(auto) sends them from the controller where it can reach the server, otherwise from the host.
    type: str
    choices: [auto, controller, host]
    default: auto
  host:
    description:
      - Address that the servers listen on, C(servers_host). The controller sends requests only to it and to the host's
        own address in the inventory, never to one that the host reports.
    type: str
    default: 127.0.0.1
  port_range_start:
    description: First port of the range that the controller sends requests to.
    type: int
    default: 8080
  port_range_end:
    description: Last port of that range.
    type: int
    default: 8099
requirements:
  - httpx (on the controller, where it sends requests)
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
  description: The result for each server, in order of port. The task fails if any of them is not ok.
  returned: success or failure after the servers were probed
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
      description: Whether it answered with the requested content.
      type: bool
    via:
      description: The machine that sent the request, C(controller) or C(host).
      type: str
      sample: controller
    seconds:
      description: Time to the answer in seconds.
      type: float
      sample: 0.12
    tokens_per_second:
      description: >-
        Speed of generation while all servers were probed at once, V(null) where the server did not report it, such as
        one for embeddings.
      type: float
      sample: 216.4
    error:
      description: The error, V(null) if there was none.
      type: str
    own_fault:
      description: >-
        Whether the server itself is at fault, that is, it runs and accepted the request. False if it was stopped, could
        not be reached, or rejected the API key.
      type: bool
"""

from ansible_collections.magi.llama.plugins.module_utils._arguments.verify import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import read_record
from ansible_collections.magi.llama.plugins.module_utils._deployment.rollback import note_answered, note_bad, revisions
from ansible_collections.magi.llama.plugins.module_utils._health.observations import note_speeds, refused_revisions


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    """The node's half: return what is deployed, and record which servers failed."""
    given, state_dir = module.params, module.params["state_dir"]
    if given["failed"] and not module.check_mode:
        note_bad(state_dir, given["failed"], given["refused"])
    if given["answered"] and not module.check_mode:
        note_answered(state_dir, given["answered"])
    if given["speeds"] and not module.check_mode:
        note_speeds(state_dir, given["speeds"])
    record = read_record(state_dir)
    now, refused = revisions(record), refused_revisions(state_dir)
    return {
        "changed": False,
        "deployed": record["servers"],
        "refused": sorted(name for name, revision in refused.items() if now.get(name) == revision),
    }


if __name__ == "__main__":
    main()
