#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: run_lock
short_description: Allow one run at a time to change a host
version_added: 0.1.0
description:
  - Acquires a host's lock for the run, or waits for the run that holds it. The lock is a file in the state directory.
  - A run that was killed does not block others for long. Another run on the same controller detects immediately that
    its process is gone, a reboot of the host ends the lock, and otherwise it expires O(lease) seconds after it was last
    renewed.
  - Modules of this collection that change a host renew their run's lock, and fail while another run holds it.
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
    description:
      - Acquire or release the lock. Acquiring it again in the same run is not an error.
      - >-
        V(renewed) renews the lock that the run has acquired before, to expire in O(lease) seconds also where it was to
        last longer, and fails if the run has lost it since.
    type: str
    choices: [held, renewed, released]
    default: held
  create:
    description: Create a missing state directory. Otherwise no lock is acquired if it is missing.
    type: bool
    default: true
  lease:
    description: Seconds until the lock expires unless it is renewed.
    type: float
    default: 300
attributes:
  check_mode:
    support: full
    details:
      - Does not acquire a lock or wait for one.
  diff_mode:
    support: none
  idempotent:
    support: full
  action:
    support: full
    description: Runs partly on the controller, which identifies the run and waits.
"""

EXAMPLES = r"""
- name: Change a host under its lock
  block:
    - name: Acquire the lock
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
  description: The other run that holds the lock, V(null) if there is none.
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
    renew,
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
    elif given["state"] == "renewed":
        renew(state_dir, this.id, given["lease"], is_exact=True)
    elif given["create"] or os.path.isdir(state_dir):
        found = acquire(state_dir, this, lease=given["lease"], dead=given["dead"])
    return {"changed": False, "holder": describe_holder(found, this.id)}


if __name__ == "__main__":
    main()
