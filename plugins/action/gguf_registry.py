# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show the progress of a long scan: calls the module for a few seconds at a time; a quick scan needs one call."""

from __future__ import annotations

import os
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.utils.display import Display
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.module_utils._output.event import registry_data
from ansible_collections.magi.llama.plugins.plugin_utils.events import event
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.show import prints_document
from ansible_collections.magi.llama.plugins.plugin_utils.this_run import this_run
from ansible_collections.magi.llama.plugins.plugin_utils.yaml_files import load_manifest

display = Display()

MODULE = "magi.llama.gguf_registry"
# A quick scan ends in the first call. Later calls are longer, so that reconnecting takes little of the time.
FIRST_SECONDS = 4.0
NEXT_SECONDS = 10.0
# Slices in a row without a file more: one file is always read to its end.
STALLED_SLICES = 6


class ActionModule(HostAction):
    """Runs magi.llama.gguf_registry until the scan is complete."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        public_key = str(arguments.pop("manifest_public_key", None) or "")
        if arguments.get("manifest_file") and not arguments.get("manifest"):
            arguments["manifest"] = self._manifest(arguments.pop("manifest_file"), public_key, task_vars or {})
        if arguments.get("state_dir"):
            arguments = fill_in(arguments, run_id=this_run((task_vars or {}).get("inventory_hostname", ""))["id"])
        # In check mode nothing may be saved between calls, and an async task is a single call.
        if self._task.check_mode or self._task.async_val or arguments.get("time_limit") is not None:
            return self._call(arguments, task_vars)
        seconds = FIRST_SECONDS
        advance = Advance()
        while True:
            result = self._call({**arguments, "time_limit": seconds}, task_vars)
            if result.get("failed") or result.get("complete", True):
                return result
            advance.check(result["progress"])
            event(task_vars or {}, "line", {"text": progress_line(result["progress"])})
            if not prints_document(task_vars or {}):
                host = (task_vars or {}).get("inventory_hostname", "")
                display.display(f"{host}: {progress_line(result['progress'])}")
            arguments["resume"] = result["resume"]
            seconds = NEXT_SECONDS

    def _call(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        result = self.ask(MODULE, arguments, task_vars, wrap_async=self._task.async_val)
        registry = (result.get("ansible_facts") or {}).get("llama_registry")
        if registry and not result.get("failed"):
            event(task_vars or {}, "registry", registry_data(registry))
        # As for setup: show a registry only with -vvv.
        result["_ansible_verbose_override"] = True
        return result

    def _manifest(self, name: str, public_key: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        sibling = os.path.join(task_vars.get("inventory_dir") or "", name)
        # One that has to be signed is only where it is named, and its absence is an error of its own.
        is_plain = os.path.isfile(sibling) or bool(public_key)
        path = os.path.abspath(sibling) if is_plain else self._find_needle("files", name)
        return load_manifest(path, self._loader, public_key)


class Advance:
    """Whether a scan in slices gets further: a host that never ends one must not hold the run for ever."""

    def __init__(self) -> None:
        self._best = -1
        self._limit: int | None = None
        self._stalled = 0

    def check(self, progress: dict[str, int]) -> None:
        """Raise AnsibleActionFail where several slices have got no further, or there is ever more to do."""
        missing = {"done", "total"} - progress.keys()
        if missing:
            raise AnsibleActionFail(f"The host's answer is not used: its progress lacks {', '.join(sorted(missing))}.")
        done = progress["done"] + progress.get("checksums_done", 0)
        total = progress["total"] + progress.get("checksums_total", 0)
        self._stalled = 0 if done > self._best else self._stalled + 1
        self._best = max(done, self._best)
        # Files may be added during a scan.
        self._limit = self._limit or 2 * total + 1000
        if self._stalled >= STALLED_SLICES or max(done, total) > self._limit:
            raise AnsibleActionFail(
                f"The scan gets no further: {progress_line(progress)}, the same after {self._stalled} more calls of up "
                f"to {NEXT_SECONDS:g} s. Look whether the disk of the model folders answers, and run again: what has "
                "been read is kept."
            )


def progress_line(progress: dict[str, int]) -> str:
    """Return a scan's progress as a short text."""
    if progress.get("checksums_total"):
        sizes = f"{_gigabytes(progress, 'checksums_bytes')} of {_gigabytes(progress, 'checksums_total_bytes')} GB"
        return f"checksums of {progress.get('checksums_done', 0)} of {progress['checksums_total']} files ({sizes})"
    return f"{progress['done']} of {progress['total']} files read"


def _gigabytes(progress: dict[str, int], key: str) -> str:
    return f"{progress.get(key, 0) / 1e9:.1f}"
