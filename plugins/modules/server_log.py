#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: server_log
short_description: Show the last lines of servers' logs
version_added: 0.2.0
description:
  - Reads the logs of deployed servers, from the journal or from the files of supervisor, and shows them.
  - A log has the lines of all processes of a server. From the journal it also has what systemd reports of the unit,
    such as the signal that ended a process.
  - Lines are cut at 500 characters, and characters that a terminal would obey are replaced by escapes.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  state_dir:
    description: The servers' state directory.
    type: path
    required: true
  servers:
    description: Names of deployed servers, by default all.
    type: list
    elements: str
    default: []
  lines:
    description: How many lines of each server, at most 5000.
    type: int
    default: 100
  since:
    description:
      - Leaves out what was logged before this moment, V(90s), V(10m), V(2h) or V(3d) before now, or a date with a time,
        in UTC or with a zone.
      - Files of supervisor have no dates. There the moment is computed from the clock of each process, and lines of
        processes before the last one can be older than this.
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
    description: Shows the lines on the controller.
seealso:
  - module: magi.llama.server_info
"""

EXAMPLES = r"""
- name: Show what the servers have logged in the last ten minutes
  magi.llama.server_log:
    state_dir: /var/lib/magi-llama
    since: 10m
"""

RETURN = r"""
logs:
  description: The log of each server.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The server's name.
      type: str
      sample: qwen3-8b-q4_k_m
    lines:
      description: Its lines, oldest first.
      type: list
      elements: dict
      contains:
        text:
          description: The line.
          type: str
          sample: "srv  llama_server: listening on http://127.0.0.1:8080"
        at:
          description: When it was logged, in UTC; V(null) in files of supervisor.
          type: str
          sample: "2026-11-28T10:00:00Z"
"""

import time
from dataclasses import asdict

from ansible_collections.magi.llama.plugins.module_utils._arguments.server_log import ARGUMENTS, MAX_LINES
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.moments import parse_moment
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import chosen, read_record
from ansible_collections.magi.llama.plugins.module_utils._services.table import driver_for


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = module.params
    if not 1 <= given["lines"] <= MAX_LINES:
        module.fail_json(msg=f"lines is {given['lines']}: it is a number from 1 to {MAX_LINES}.")
    since = parse_moment(given["since"], time.time()) if given["since"] else None
    state_dir = plain_path(given["state_dir"])
    record = read_record(state_dir)
    names = [server["name"] for server in chosen(record, given["servers"])]
    found = driver_for(record, state_dir).logs(names, given["lines"], since) if names else {}
    return {
        "changed": False,
        "logs": [{"name": name, "lines": [asdict(line) for line in found[name]]} for name in names],
    }


if __name__ == "__main__":
    main()
