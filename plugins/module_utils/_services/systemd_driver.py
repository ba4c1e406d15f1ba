# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The driver for systemd: each server is a unit magi-llama-<name>.service; systemctl handles them in bulk."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from .._core.commands import SECONDS, CommandTimeoutError, Completed, run_command
from .._core.processes import STRAY_VARIABLE
from .._launch.on_demand import socket_unit, wake_names
from .._launch.units import (
    STILL_RUNS,
    TARGET,
    UNIT_FOLDER,
    UNIT_PREFIX,
    WATCHDOG_SERVICE,
    WATCHDOG_TIMER,
    unit_name,
)
from .base import (
    SECOND_SIGTERM,
    STOP_MARGIN,
    LogLine,
    ServiceError,
    ServiceStatus,
    Stopped,
    at_once,
    exit_text,
    log_lines,
    signal_name,
)
from .journal import journal_lines, parse_journal, since_start
from .systemd_sockets import all_units, boot_unit, is_on_demand, stale_links, with_socket

PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "NeedDaemonReload",
    "MainPID",
    "NRestarts",
    "InvocationID",
    "Result",
    "ExecMainPID",
    "ExecMainCode",
    "ExecMainStatus",
    "ExecStop",
    "ActiveExitTimestampMonotonic",
    "InactiveEnterTimestampMonotonic",
)
# waitid(2)'s codes, as systemd prints them.
CLD_EXITED, CLD_KILLED, CLD_DUMPED = "1", "2", "3"
# What a process ends with that waited for another one, which SIGKILL has ended.
KILLED = 128 + 9
# systemd's own exit codes for a process that it could not set up.
SETUP_FAILURES = {
    200: "its working directory could not be entered",
    203: "its program could not be run",
    205: "its limits could not be set",
    206: "its OOM score could not be set",
    208: "its standard input could not be set up",
    216: "its group is unknown",
    217: "its user is unknown",
    218: "its capabilities could not be set",
    226: "its sandbox's folders could not be set up",
    228: "its system call filter could not be set",
    242: "its NUMA policy could not be set",
}
RESULTS = {"start-limit-hit": "crashed too often", "oom-kill": "ran out of memory", "watchdog": "hung"}

# A start ends when the process is created; before that it may wait for mounts and devices, systemd's own limit is 90 s.
START_SECONDS = 180.0
# Longer than systemd's own time-out for a stop: a unit may still have that of an earlier deployment.
LONGEST_STOP_SECONDS = 120.0
LOG_SECONDS = 20.0
# So many lines of a server's start are read; llama-server logs about 20 until it is ready.
START_LINES = 200


class Run(Protocol):
    """Runs a command line. Raises ServiceError, and CommandTimeoutError after these seconds."""

    def __call__(self, command: Sequence[str], seconds: float = SECONDS) -> Completed: ...


def run_in_english(command: Sequence[str], seconds: float = SECONDS) -> Completed:
    """Run a systemd program without a pager and with English output. Raises ServiceError, CommandTimeoutError."""
    environment = {**os.environ, "LC_ALL": "C", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}
    try:
        return run_command(command, environment, seconds)
    except FileNotFoundError as error:
        raise ServiceError(
            f"{command[0]} is missing on this host: set servers_service_manager to supervisor."
        ) from error


class SystemdDriver:
    """Drives units with systemctl; only units with our prefix are ever passed to it."""

    # Above all units of servers; started at boot.
    target = TARGET

    def __init__(self, run: Run = run_in_english) -> None:
        self._run = run
        self._target_active = False

    def version(self) -> int | None:
        """The version of systemd; None if systemctl does not print it."""
        found = re.match(r"systemd (\d+)", self._run(["systemctl", "--version"])[1])
        return int(found.group(1)) if found else None

    def status(self, names: Sequence[str]) -> dict[str, ServiceStatus]:
        shown = self._show(all_units(names))
        return {
            name: with_socket(status_of(name, shown.get(unit_name(name), {})), shown.get(socket_unit(name), {}))
            for name in names
        }

    def reload(self, names: Sequence[str]) -> None:
        for link in stale_links(names):
            os.unlink(link)
        shown = self._show([*all_units(names), self.target])
        self._target_active = shown.get(self.target, {}).get("ActiveState") == "active"
        loaded = {unit: properties for unit, properties in shown.items() if properties.get("LoadState") == "loaded"}
        if not loaded:
            return
        at_boot = [unit for unit in (*self._enabled_units(names), self.target) if unit in loaded]
        if any(loaded[unit].get("UnitFileState") != "enabled" for unit in at_boot):
            # Reads the changed units too.
            self._checked(["systemctl", "enable", "--quiet", *at_boot])
        elif any(properties.get("NeedDaemonReload") == "yes" for properties in loaded.values()):
            self._checked(["systemctl", "daemon-reload"])

    def _enabled_units(self, names: Sequence[str]) -> list[str]:
        """The units of servers that systemctl enables for the boot."""
        return [boot_unit(name) for name in names]

    def start(self, names: Sequence[str], on_started: Callable[[str], None] = at_once) -> dict[str, str]:
        if not names:
            return {}
        units = [boot_unit(name) for name in names]
        # Deliberate starts count towards the start limit too: reset it.
        self._run(["systemctl", "reset-failed", *all_units(names)])
        complaints, hanging = {}, {}
        for name, unit in zip(names, units):
            try:
                code, _output, complaint = self._run(["systemctl", "start", unit], START_SECONDS)
            except CommandTimeoutError as error:
                hanging[name] = str(error)
                continue
            if code != 0:
                complaints[name] = complaint.strip()
            on_started(name)
        if not self._target_active:
            # The target alone: it would start every other server too.
            self._run(["systemctl", "start", "--job-mode=ignore-dependencies", self.target])
        if not complaints:
            return hanging
        shown = self._show(units)
        return hanging | {
            name: f"{boot_unit(name)} cannot be {'loaded' if is_unloaded else 'started'}: {complaint}"
            for name, complaint in complaints.items()
            if (is_unloaded := shown.get(boot_unit(name), {}).get("LoadState") != "loaded") or is_on_demand(name)
        }

    def stop(self, names: Sequence[str], timeout: float) -> dict[str, Stopped]:
        if not names:
            return {}
        units = all_units(names)
        before = self._show(units)
        # systemd does not know units without a file and a process; there is nothing to stop.
        known = [unit for unit in units if before.get(unit, {}).get("ActiveState", "inactive") != "inactive"]
        if known:
            # systemd waits for the time-out after SIGKILL as well.
            seconds = 2 * max(timeout, LONGEST_STOP_SECONDS) + STOP_MARGIN
            self._checked(["systemctl", "stop", *known], seconds)
        after = self._show(units)
        failed = [unit for unit in known if after.get(unit, {}).get("ActiveState") == "failed"]
        if failed:
            # Stopped on purpose: the result reports that SIGKILL was needed; the unit need not stay failed.
            self._run(["systemctl", "reset-failed", *failed])
        return {
            name: stopped_of(name, before.get(unit_name(name), {}), after.get(unit_name(name), {})) for name in names
        }

    def forget(self, names: Sequence[str]) -> None:
        if not names:
            return
        for name in names:
            # Servers are wanted by our target, the gateway by the system's.
            for unit in (unit_name(name), socket_unit(name)):
                for wanted in glob.glob(os.path.join(UNIT_FOLDER, "*.wants", unit)):
                    if os.path.islink(wanted):
                        os.unlink(wanted)
        self._checked(["systemctl", "daemon-reload"])
        self._run(["systemctl", "reset-failed", *(unit_name(name) for name in names)])

    def retire(self, timeout: float) -> None:
        """Stop and forget units of our target whose files are missing, and the target with the last of them."""
        folder = os.path.join(UNIT_FOLDER, f"{TARGET}.wants")
        wanted = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        gone = [unit for unit in wanted if not os.path.exists(os.path.join(folder, unit))]
        names = [unit[len(UNIT_PREFIX) : -len(".service")] for unit in gone if unit.startswith(UNIT_PREFIX)]
        names += wake_names(gone)
        if not names:
            return
        self.stop(names, timeout)
        if len(gone) == len(wanted):
            self._run(["systemctl", "disable", "--now", "--quiet", TARGET])
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(UNIT_FOLDER, TARGET))
        self.forget(names)
        with contextlib.suppress(OSError):
            os.rmdir(folder)

    def end_watchdog(self) -> None:
        """Stop what looks at the servers, before they and its units are removed."""
        self._checked(["systemctl", "disable", "--now", "--quiet", WATCHDOG_TIMER])
        self._checked(["systemctl", "stop", WATCHDOG_SERVICE])

    def stop_target(self) -> None:
        self._checked(["systemctl", "stop", self.target])

    def shutdown_if_idle(self) -> bool:
        return False

    def stray_variables(self) -> list[str]:
        """Return names of variables that systemd would pass to every server and that llama-server obeys."""
        shown = self._run(["systemctl", "show-environment"])[1]
        return sorted(set(STRAY_VARIABLE.findall(shown)))

    def log_tail(self, name: str, lines: int) -> list[str]:
        unit = unit_name(name)
        command = ["journalctl", "--quiet", "--no-pager", "--all", "-o", "json"]
        command += ["--output-fields=MESSAGE,_SYSTEMD_INVOCATION_ID", "-u", unit, "-t", name, "-n", str(lines)]
        try:
            shown = self._show([unit]).get(unit, {})
            # The last output of a process may not have reached the journal yet.
            with contextlib.suppress(CommandTimeoutError):
                self._run(["journalctl", "--sync"], LOG_SECONDS)
            messages = since_start(self._run(command, LOG_SECONDS)[1], shown)
        except CommandTimeoutError as error:
            # The log explains a result; it is not worth losing the result for it.
            return [str(error)]
        return log_lines("\n".join(messages), lines)

    def start_logs(self, pids: Mapping[str, int]) -> dict[str, list[str]]:
        if not pids:
            return {}
        # One call for all. Matches of one field are alternatives.
        command = ["journalctl", "--quiet", "--no-pager", "--all", "-b", "-o", "json", "--output-fields=MESSAGE"]
        command[-1] += ",_PID,SYSLOG_IDENTIFIER"
        command += ["-n", str(START_LINES * len(pids)), *(f"_PID={pid}" for pid in pids.values())]
        try:
            self._run(["journalctl", "--sync"], LOG_SECONDS)
            output = self._run(command, LOG_SECONDS)[1]
        except CommandTimeoutError:
            return {}
        return parse_journal(output, pids)

    def logs(self, names: Sequence[str], lines: int, since: float | None = None) -> dict[str, list[LogLine]]:
        command = ["journalctl", "--quiet", "--no-pager", "--all", "-o", "json"]
        command += ["--output-fields=MESSAGE,SYSLOG_IDENTIFIER", "-n", str(lines)]
        command += [] if since is None else [f"--since=@{since:.0f}"]
        found = {}
        with contextlib.suppress(CommandTimeoutError):
            self._run(["journalctl", "--sync"], LOG_SECONDS)
        for name in names:
            code, output, complaint = self._run([*command, "-u", unit_name(name)], LOG_SECONDS)
            if code != 0:
                raise ServiceError(f"The log of {name} cannot be read: {complaint.strip()}. Run with --become.")
            found[name] = journal_lines(output, name, lines)
        return found

    def _show(self, units: Sequence[str]) -> dict[str, dict[str, str]]:
        code, output, complaint = self._run(["systemctl", "show", "-p", ",".join(PROPERTIES), "--", *units])
        if code != 0 and not output:
            raise ServiceError(f"systemctl show failed: {complaint.strip()}")
        return parse_show(output)

    def _checked(self, command: Sequence[str], seconds: float = SECONDS) -> None:
        code, _output, complaint = self._run(command, seconds)
        if code != 0:
            raise ServiceError(f"{' '.join(command)} failed: {complaint.strip()}")


def parse_show(output: str) -> dict[str, dict[str, str]]:
    """Parse the output of `systemctl show`: each unit's properties, by its Id."""
    blocks = [_parse_block(text) for text in output.strip().split("\n\n")]
    return {block["Id"]: block for block in blocks if "Id" in block}


def _parse_block(text: str) -> dict[str, str]:
    """One unit's properties; a command that a unit has several of has a line for each."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            found[key] = f"{found[key]} {value}" if key in found else value
    return found


def status_of(name: str, shown: Mapping[str, str]) -> ServiceStatus:
    """Return the status for a unit's properties."""
    state = _state(shown)
    code = _exit_code(shown) if state not in ("running", "starting") else None
    pid = int(shown.get("MainPID") or 0)
    return ServiceStatus(name, state, pid or None, code, _exit_text(code, shown), int(shown.get("NRestarts") or 0))


def _state(shown: Mapping[str, str]) -> str:
    active, sub = shown.get("ActiveState", "inactive"), shown.get("SubState", "dead")
    if active == "activating":
        return "restarting" if sub.startswith("auto-restart") else "starting"
    if active in ("active", "reloading", "refreshing"):
        return "running"
    if active == "deactivating":
        return "stopping"
    if active == "failed":
        return "failed"
    return "stopped" if shown.get("LoadState") == "loaded" else "absent"


def _exit_code(shown: Mapping[str, str]) -> int | None:
    how, status = shown.get("ExecMainCode", "0"), int(shown.get("ExecMainStatus") or 0)
    if how == CLD_EXITED:
        return status
    return 128 + status if how in (CLD_KILLED, CLD_DUMPED) else None


def _exit_text(code: int | None, shown: Mapping[str, str]) -> str | None:
    text = exit_text(code)
    if text is None:
        return RESULTS.get(shown.get("Result", ""))
    if code in SETUP_FAILURES:
        return f"{text}: {SETUP_FAILURES[code]}"
    more = RESULTS.get(shown.get("Result", ""))
    return f"{text}, {more}" if more else text


def stopped_of(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> Stopped:
    """Return how a unit ended, from its properties before and after the stop."""
    pid = int(before.get("MainPID") or 0)
    if not pid:
        return Stopped(name, None, None, 0.0)
    began, ended = (
        int(after.get(key) or 0) for key in ("ActiveExitTimestampMonotonic", "InactiveEnterTimestampMonotonic")
    )
    used = "SIGTERM"
    if after.get("ExecMainCode") in (CLD_KILLED, CLD_DUMPED):
        used = signal_name(int(after.get("ExecMainStatus") or 0))
    elif after.get("Result") == "timeout" or _exit_code(after) == KILLED:
        used = "SIGKILL"
    if used == "SIGTERM" and re.search(rf"\bstatus={STILL_RUNS}\b", after.get("ExecStop", "")):
        used = SECOND_SIGTERM
    return Stopped(name, pid, used, round(max(0, ended - began) / 1e6, 3))
