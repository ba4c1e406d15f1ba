# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings the hosts of a run together, and shows how far each is; documented in the module of the same name."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from ansible import context
from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._arguments.model_fetch import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._core.text import format_bytes, visible_line, visible_text
from ansible_collections.magi.llama.plugins.module_utils._distribution.pieces import parse_pieces
from ansible_collections.magi.llama.plugins.module_utils._distribution.run_plan import (
    CONTROLLER,
    HOST,
    Transfer,
    check_listed,
    job_files,
    job_peers,
)
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import parse_size
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.distribution import (
    STARTED,
    Silence,
    has_answered,
    is_mirror,
    listed_of,
    rate_of,
    run_of,
    to_list,
    wanted_files,
)
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.push import Pusher
from ansible_collections.magi.llama.plugins.plugin_utils.show import WARNING, show
from ansible_collections.magi.llama.plugins.plugin_utils.this_run import this_run

MODULE = "model_fetch"
SLICE_SECONDS = 4.0
# While pieces are sent through the connection, a look at the host is short.
PUSH_SLICE_SECONDS = 0.3
SHOWN_SECONDS = 10.0
# By then every other host has been tried; JOIN_SECONDS of the board, and a bit.
ALONE_SECONDS = 45.0


class ActionModule(HostAction):
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        given = check_arguments(self, ARGUMENTS)
        steps = {
            "inspected": self._inspect,
            "listed": self._list,
            "started": self._start,
            "fetched": self._fetch,
            "stopped": self._stop,
        }
        try:
            answer = steps[given["state"]](given, task_vars)
        except MagiError as error:
            raise AnsibleActionFail(str(error)) from None
        return {**result, "changed": False, **answer}

    def _called(self, given: dict[str, Any], task_vars: dict[str, Any], **filled_in: Any) -> dict[str, Any]:
        options = {name: given[name] for name in ("state", "dest", "address") if given[name] is not None}
        run = this_run(task_vars["inventory_hostname"])["id"]
        return self.ask(MODULE, fill_in(options, run_id=run, **filled_in), task_vars)

    def _inspect(self, given: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        files, without = wanted_files(given, task_vars.get("inventory_dir") or "")
        for name in ("rate_up", "rate_down"):
            rate_of(f"models_{name}", given[name])
        answer = self._called(given, task_vars, files=files)
        if not has_answered(answer) or "files" not in answer:
            # What it has said of files is its own word.
            return {key: value for key, value in answer.items() if key != "files"}
        # A host says what it has of the files, and nothing else about them.
        states = {file["name"]: file["state"] for file in answer["files"]}
        found = [{**file, "state": states.get(file["name"], "missing")} for file in files]
        lacking = [file for file in found if file["wanted"] and file["state"] != "present"]
        size = sum(file["size"] or 0 for file in lacking)
        wanted = sum(file["wanted"] for file in found)
        lines = [f"      models   {wanted - len(lacking)} of {wanted} files are there"]
        if lacking:
            lines[0] += f"; to copy: {len(lacking)}, {format_bytes(size)}"
        lines += [f"{WARNING}the manifest has no file for {entry}" for entry in without]
        show(task_vars, lines)
        return {**answer, "files": found, "address": given["address"], "changed": bool(lacking and self._is_check)}

    @property
    def _is_check(self) -> bool:
        return bool(self._task.check_mode)

    def _list(self, given: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        wanted, _addresses = run_of(task_vars)
        me = task_vars["inventory_hostname"]
        is_first = me == task_vars["ansible_play_hosts"][0]
        if self._is_check or not wanted:
            return {"listed": {}}
        own, listed = to_list(wanted, given["source"], me, is_first)
        # The run's token is that of the first host whose list succeeds.
        result: dict[str, Any] = {"listed": listed, "token": secrets.token_hex(32), "_ansible_no_log": True}
        if own:
            for transfer in own:
                show(task_vars, [f"      reading  {transfer.name} for the checksums of its pieces"])
            answer = self._called(given, task_vars, files=[{"name": transfer.name} for transfer in own])
            if not has_answered(answer):
                # What it has listed was not compared with the manifest.
                return {key: value for key, value in answer.items() if key != "listed"}
            for transfer in own:
                entry = answer.get("listed", {}).get(transfer.name, {})
                pieces = parse_pieces(entry.get("pieces"), f"{me}: {transfer.name}")
                check_listed(transfer, pieces.sha256, pieces.size, me)
                listed[transfer.name] = {"pieces": pieces.as_dict(), "from": HOST, "mirror": ""}
        return result

    def _job(self, given: dict[str, Any], task_vars: dict[str, Any]) -> tuple[list[Transfer], dict[str, Any] | None]:
        """The transfers of the run, and this host's job; None where it has no part in them."""
        wanted, addresses = run_of(task_vars)
        listed, token = listed_of(task_vars)
        me = task_vars["inventory_hostname"]
        lost = [transfer.name for transfer in wanted if transfer.name not in listed and me in transfer.gets]
        if lost:
            raise AnsibleActionFail(
                f"The pieces of {', '.join(lost[:10])} were not listed, as the host that has them has failed. "
                "Nothing was copied."
            )
        wanted = [transfer for transfer in wanted if transfer.name in listed]
        if not any(me in (*transfer.gets, *transfer.has) for transfer in wanted):
            return wanted, None
        if not token:
            raise AnsibleActionFail("No host of the run has made its token, as each failed to list pieces. Run again.")
        return wanted, {
            "run": this_run(me)["id"],
            "token": token,
            "me": me,
            "folder": given["dest"],
            "files": job_files(wanted, listed, me),
            "peers": job_peers(wanted, addresses, me),
            "ports": [given["port_range_start"], given["port_range_end"]],
            "reserve_bytes": parse_size(given["reserve"]),
            "rate_up": rate_of("models_rate_up", given["rate_up"]),
            "rate_down": rate_of("models_rate_down", given["rate_down"]),
        }

    def _start(self, given: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        _wanted, job = (None, None) if self._is_check else self._job(given, task_vars)
        return {"started": False} if job is None else self._called(given, task_vars, job=json.dumps(job))

    def _fetch(self, given: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        if not _has_started(task_vars):
            return {}
        wanted, job = self._job(given, task_vars)
        if job is None or not any(file["role"] == "get" for file in job["files"]):
            return {}
        pusher = self._pusher(given, task_vars, wanted, job)
        began = shown = time.monotonic()
        silence = Silence(given["stall_seconds"])
        arrived: list[dict[str, Any]] = []
        while True:
            seconds = PUSH_SLICE_SECONDS if pusher is not None and pusher.is_busy else SLICE_SECONDS
            answer = self._called(given, task_vars, slice=seconds, arrived=arrived)
            if "status" not in answer:
                return answer
            status = answer["status"]
            if status["complete"]:
                return self._ended(status, time.monotonic() - began, task_vars)
            error = (
                status["error"]
                or _hopeless(status, time.monotonic() - began, given, pusher is not None)
                or silence.error(status)
            )
            if error:
                # Ansible prints it as it is, and the host can write anything there.
                raise AnsibleActionFail(
                    f"{visible_text(error)}{_named(status)} What has been copied is kept in .part files: run again."
                )
            if time.monotonic() - shown >= SHOWN_SECONDS and "have" in status:
                shown = time.monotonic()
                show(task_vars, [_progress(status)])
            arrived = pusher.push(status) if pusher is not None else []

    def _pusher(
        self, given: dict[str, Any], task_vars: dict[str, Any], wanted: list[Transfer], job: dict[str, Any]
    ) -> Pusher | None:
        """What sends pieces through the connection; None where the controller has none of the files."""
        if not given["source"] or is_mirror(given["source"]):
            return None
        listed, _token = listed_of(task_vars)
        forks = int(context.CLIARGS.get("forks") or 5)
        files = {
            number: transfer
            for number, transfer in enumerate(wanted)
            if listed[transfer.name]["from"] == CONTROLLER and job["me"] in transfer.gets
        }
        pieces = {number: parse_pieces(job["files"][number]["pieces"], files[number].name) for number in files}
        if not files:
            return None
        rate = rate_of("models_rate_up", given["rate_up"])
        return Pusher(self, given["source"], files, pieces, job["me"], forks, rate)

    def _ended(self, status: dict[str, Any], seconds: float, task_vars: dict[str, Any]) -> dict[str, Any]:
        fetched = status["source"] + status["hosts"] + status["controller"]
        parts = [
            f"{format_bytes(status[key])} {text}"
            for key, text in (
                ("source", "from the source"),
                ("hosts", "from other hosts"),
                ("controller", "through the controller"),
                ("resumed", "from an earlier run"),
            )
            if status[key]
        ]
        text = f"fetched {format_bytes(fetched)} in {seconds:.1f} s" + (f": {', '.join(parts)}" if parts else "")
        lines = [f"      models   {text}"]
        lines += [f"{WARNING}{host} was dropped: {why}" for host, why in status["dropped"].items()]
        if status["unreached"]:
            lines.append(f"{WARNING}not reached: {_listed(status['unreached'])}. {OPEN}")
        show(task_vars, lines)
        return {"changed": fetched > 0, "msg": text, "status": status}

    def _stop(self, given: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        return self._called(given, task_vars) if _has_started(task_vars) else {"stopped": False}


OPEN = "Open models_port_range_start to models_port_range_end between the hosts for the time of the run."


def _has_started(task_vars: dict[str, Any]) -> bool:
    return bool((task_vars.get(STARTED) or {}).get("started"))


def _listed(errors: dict[str, str]) -> str:
    shown = [f"{visible_line(host)} ({visible_line(error)})" for host, error in list(errors.items())[:5]]
    return ", ".join(shown) + (f" and {len(errors) - 5} more" if len(errors) > 5 else "")


def _named(status: dict[str, Any]) -> str:
    """The hosts that were of no use, as the end of an error."""
    dropped = "".join(
        f" {visible_line(host)} was dropped: {visible_line(why)}."
        for host, why in (status.get("dropped") or {}).items()
    )
    unreached = status.get("unreached")
    return dropped + (f" Not reached: {_listed(unreached)}. {OPEN}" if unreached else "")


def _hopeless(status: dict[str, Any], seconds: float, given: dict[str, Any], is_source: bool) -> str:
    """Why there is nothing to wait for; empty while there is."""
    if "quiet_seconds" not in status:
        return ""
    # While a complete file is read for its sha256 no piece comes.
    if status["quiet_seconds"] > given["stall_seconds"]:
        return f"No piece has come for {given['stall_seconds']} s (models_stall_seconds)."
    has_other = is_source or is_mirror(given["source"]) or status["hosts_reached"]
    if not has_other and min(seconds, status["quiet_seconds"]) > ALONE_SECONDS:
        return (
            "This host reaches no other host of the run, and the files are on hosts only: with models_source set to a "
            "folder on the controller they come through Ansible's connection."
        )
    return ""


def _progress(status: dict[str, Any]) -> str:
    return (
        f"      models   {format_bytes(status['have'])} of {format_bytes(status['wanted'])}, "
        f"{status['hosts_reached']} hosts reached"
    )
