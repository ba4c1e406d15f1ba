# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Take the run lock of a host, waiting for the run that holds it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.show import show
from ansible_collections.magi.llama.plugins.plugin_utils.this_run import has_ended, this_run

POLL_SECONDS = 2.0


def acquire_with_wait(
    action: HostAction,
    module: str,
    arguments: Mapping[str, Any],
    task_vars: dict[str, Any],
    wait: float,
    take_over: bool,
) -> dict[str, Any]:
    """Call a module that takes the host's lock until it succeeds; returns its last answer, failed if it never did.

    wait is the number of seconds to wait for another run; with take_over there is no waiting.
    """
    filled_in: dict[str, Any] = {"run": this_run()}
    began = time.monotonic()
    shown = False
    while True:
        answer: dict[str, Any] = action.ask(module, fill_in(arguments, **filled_in), task_vars)
        holder = answer.get("holder")
        if not holder or action._task.check_mode:
            return answer
        if filled_in.get("dead") != holder["id"] and (take_over or has_ended(holder)):
            filled_in["dead"] = holder["id"]
            continue
        waited = time.monotonic() - began
        if waited >= wait:
            return {**answer, "failed": True, "msg": _refusal(holder, wait)}
        if not shown:
            show(task_vars, [f"      waiting for another run on this host: {holder['text']}"])
            shown = True
        time.sleep(min(POLL_SECONDS, wait - waited))


def _refusal(holder: dict[str, Any], waited: float) -> str:
    after = f" after {waited:g} s" if waited else ""
    return (
        f"Another run is still changing this host{after}: {holder['text']}. Nothing was changed; run again when it is "
        f"over. If it is not running any more, its lock expires in {holder['seconds_left']:.0f} s; "
        "-e servers_lock_take_over=true takes it at once."
    )
