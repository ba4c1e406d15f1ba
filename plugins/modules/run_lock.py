#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: run_lock
short_description: Let one run at a time change a host
version_added: 0.1.0
description:
  - Takes a host's lock for the run, or waits for the run that has it. The lock is a file in the state directory.
  - A run that has ended, however it ended, does not hold others up. A second run on the same controller sees at once
    that its process is gone, a restart of the host ends a lock, and otherwise it expires after O(lease) seconds without
    a sign of the run.
  - The modules of this collection that change a host renew the lock of their run, and refuse to work while another
    run has it.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
  - magi.llama.lock
options:
  state_dir:
    description: The servers' state directory.
    type: path
    required: true
  state:
    description: Take or release the lock. Taking it again in the same run is not an error.
    type: str
    choices: [held, released]
    default: held
  create:
    description: Make the state directory where it is missing. Otherwise there is nothing to lock then.
    type: bool
    default: true
  lease:
    description: Seconds that the lock counts without being renewed.
    type: float
    default: 900
attributes:
  check_mode:
    support: full
    details:
      - Takes no lock and waits for none.
  diff_mode:
    support: none
  idempotent:
    support: full
  action:
    support: full
    description: Runs partly on the controller, which knows what the run is and waits.
"""

EXAMPLES = r"""
- name: Change a host while no other run does
  block:
    - name: Take the lock
      magi.llama.run_lock:
        state_dir: /var/lib/magi-llama
    - name: Restart the servers
      magi.llama.server_state:
        state_dir: /var/lib/magi-llama
        state: restarted
  always:
    - name: Release the lock
      magi.llama.run_lock:
        state_dir: /var/lib/magi-llama
        state: released
"""

RETURN = r"""
holder:
  description: The run that has the lock, V(null) where it is this one or none.
  returned: always
  type: dict
  sample:
    id: "4f1c/4711/98124"
    controller: deploy.example.org
    user: anna
    pid: 4711
    playbook: site.yml
    since: "2026-11-22 02:00:00 UTC"
    text: "site.yml by anna on deploy.example.org (pid 4711, since 2026-11-22 02:00:00 UTC)"
    seconds_left: 3893.0
"""

import os

from ansible_collections.magi.llama.plugins.module_utils._arguments.run_lock import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import (
    Run,
    acquire,
    describe_holder,
    holder,
    release,
)


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = module.params
    state_dir, this = plain_path(given["state_dir"]), Run(**given["run"])
    found = None
    if module.check_mode:
        found = holder(state_dir)
    elif given["state"] == "released":
        release(state_dir, this.id)
    elif given["create"] or os.path.isdir(state_dir):
        found = acquire(state_dir, this, lease=given["lease"], dead=given["dead"])
    return {"changed": False, "holder": describe_holder(found, this.id)}


if __name__ == "__main__":
    main()
