#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: watchdog
short_description: Have a host look at its own servers, and restart those that hang
version_added: 0.2.0
description:
  - Sets up a timer of systemd whose program probes every idle server of a state directory with a few tokens, or
    removes it. A timer that was stopped or disabled is switched on again. The program, C(watchdog.py) in the state
    directory, is what the filter C(watchdog_program) returns.
  - A server that gives no answer twice in a row hangs. It is reported in the journal and in the status, or restarted.
  - The program does nothing while a run has the host, and leaves servers alone that load, have requests, are stopped,
    start on demand or sleep when they are idle.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  state_dir:
    description: The servers' state directory, which has the program.
    type: path
    required: true
  mode:
    description: What is done about a server that hangs; V(off) removes the watchdog.
    type: str
    choices: ["off", report, restart]
    required: true
  interval:
    description: Seconds from the end of a look to the next one.
    type: int
    default: 60
  timeout:
    description: Seconds within which a server must answer each request of the watchdog.
    type: float
    default: 60
  restarts_per_hour:
    description: How often a server is restarted within an hour, at most.
    type: int
    default: 3
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  action:
    support: full
    description: Identifies the run on the controller.
seealso:
  - module: magi.llama.server_info
  - module: magi.llama.verify
"""

EXAMPLES = r"""
- name: Restart servers that hang
  magi.llama.watchdog:
    state_dir: /var/lib/magi-llama
    mode: restart
"""

RETURN = r"""
written:
  description: Paths of the files that were written, or would be written in check mode.
  returned: success
  type: list
  elements: str
  sample: [/etc/systemd/system/magi-llama.watchdog.timer]
removed:
  description: Paths of the files that were removed, or would be removed in check mode.
  returned: success
  type: list
  elements: str
  sample: []
"""

from ansible_collections.magi.llama.plugins.module_utils._arguments.watchdog import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import renew
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import current_text
from ansible_collections.magi.llama.plugins.module_utils._launch.units import WATCHDOG_TIMER
from ansible_collections.magi.llama.plugins.module_utils._services.systemd_driver import run_in_english
from ansible_collections.magi.llama.plugins.module_utils._watchdog.install import (
    OFF,
    Settings,
    apply,
    changes,
    find_python,
    require_ours,
    timer_runs,
    units,
)


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = module.params
    state_dir = plain_path(given["state_dir"])
    require_ours(state_dir)
    wanted = []
    if given["mode"] != OFF:
        settings = Settings(given["mode"], given["interval"], given["timeout"], given["restarts_per_hour"])
        wanted = units(state_dir, settings, find_python())
    write, remove = changes(state_dir, wanted)
    shown = {file.path: file.content.decode() for file in write}
    shown.update({path: "" for path in remove if path.endswith((".timer", ".service"))})
    before = {path: current_text(path) for path in shown}
    is_off = bool(wanted) and not write and not timer_runs(run_in_english)
    if (write or remove or is_off) and not module.check_mode:
        renew(state_dir, given["run_id"])
        apply(write, remove, run_in_english)
    timer = {"before": "off\n", "after": "on\n", "before_header": WATCHDOG_TIMER, "after_header": WATCHDOG_TIMER}
    return {
        "changed": bool(write or remove or is_off),
        "written": [file.path for file in write],
        "removed": remove,
        "diff": [timer] * is_off
        + [
            {"before": before[path], "after": text, "before_header": path, "after_header": path}
            for path, text in shown.items()
        ],
    }


if __name__ == "__main__":
    main()
