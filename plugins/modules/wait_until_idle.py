#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: wait_until_idle
short_description: Wait until servers have answered their requests
version_added: 0.2.0
description:
  - Looks at servers that get no new requests, before they are stopped. While it waits, it shows a line for each server
    that is idle or whose time is over.
  - A server is idle when C(/slots) shows no request twice in a row. Where C(/slots) is off, C(/metrics) is read; where
    neither can be read, the connections to its port are counted. A server that does not run is idle.
  - The task does not fail when a request is not over at the time-out. It is cut when the server is stopped.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  state_dir:
    description: The servers' state directory.
    type: path
    required: true
  servers:
    description: Names of the servers to wait for. With an empty list there is nothing to do.
    type: list
    elements: str
    required: true
  timeout:
    description: Time-out in seconds for all servers together.
    type: float
    default: 60.0
  preload:
    description:
      - Names of servers that are started after this. Their model files are read into the page cache meanwhile, as far
        as the available memory allows.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  action:
    support: full
    description: Runs partly on the controller, which shows the progress.
seealso:
  - module: magi.llama.gateway_members
  - module: magi.llama.server_state
"""

EXAMPLES = r"""
- name: Wait until the servers have answered their requests
  magi.llama.wait_until_idle:
    state_dir: /var/lib/magi-llama
    servers: [qwen3-8b-q4_k_m]
    timeout: 120
"""

RETURN = r"""
msg:
  description: The number of idle servers, and for every other server its number of requests.
  returned: always
  type: str
  sample: 2 of 2 servers are idle
complete:
  description: Whether every server is idle or timed out.
  returned: success
  type: bool
servers:
  description: Each server.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The server's name.
      type: str
      sample: qwen3-8b-q4_k_m
    idle:
      description: Whether it has no requests.
      type: bool
    is_settled:
      description: Whether there is nothing more to wait for.
      type: bool
    seconds:
      description: Seconds until it was idle, or until now.
      type: float
      sample: 1.5
    requests:
      description: Number of its requests that were not over.
      type: int
      sample: 0
    detail:
      description: Where the number is not of the server itself, what it is; V(null) otherwise.
      type: str
"""

import contextlib
import time

from ansible_collections.magi.llama.plugins.module_utils._arguments.wait_until_idle import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.processes import memory
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import LockError, renew
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import read_record
from ansible_collections.magi.llama.plugins.module_utils._health.idle import look_at, summary, wait_until_idle
from ansible_collections.magi.llama.plugins.module_utils._health.preload import files_of, preload


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = module.params
    state_dir = plain_path(given["state_dir"])
    if given["run_id"] is not None and not module.check_mode:
        # Waiting does not need the lock; stopping the servers does.
        with contextlib.suppress(LockError):
            renew(state_dir, given["run_id"])
    record = read_record(state_dir)["servers"]
    if not module.check_mode and given["elapsed"] == 0:
        preload(files_of(server for server in record if server["name"] in given["preload"]), memory().available_bytes)
    found = wait_until_idle(
        given["servers"],
        lambda names: look_at(state_dir, record, names),
        clock=time.monotonic,
        sleep=time.sleep,
        # Check mode has drained nothing.
        timeout=0.0 if module.check_mode else given["timeout"],
        slice_seconds=given["slice"],
        elapsed=given["elapsed"],
    )
    servers = [server.as_dict() for server in found]
    return {"changed": False, "servers": servers, **summary(servers)}


if __name__ == "__main__":
    main()
