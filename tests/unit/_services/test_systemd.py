# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.commands import CommandTimeoutError
from ansible_collections.magi.llama.plugins.module_utils._services import systemd, systemd_driver, table
from ansible_collections.magi.llama.plugins.module_utils._services.base import ServiceError, ServiceStatus, Stopped

SHOWN = """\
MainPID=4242
NRestarts=0
Result=success
ExecMainPID=4242
ExecMainCode=0
ExecMainStatus=0
Id=magi-llama-a.service
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
NeedDaemonReload=no
InactiveEnterTimestampMonotonic=0
ActiveExitTimestampMonotonic=0

MainPID=0
NRestarts=3
Result=exit-code
ExecMainPID=77
ExecMainCode=1
ExecMainStatus=1
Id=magi-llama-b.service
LoadState=loaded
ActiveState=failed
SubState=failed
UnitFileState=enabled
NeedDaemonReload=no
InactiveEnterTimestampMonotonic=7500000
ActiveExitTimestampMonotonic=7000000
"""


def test_show_output_is_parsed_per_unit():
    shown = systemd_driver.parse_show(SHOWN)
    assert sorted(shown) == ["magi-llama-a.service", "magi-llama-b.service"]
    assert shown["magi-llama-a.service"]["MainPID"] == "4242"
    assert systemd_driver.parse_show("") == {}


def unit(**changes):
    return {"LoadState": "loaded", "ActiveState": "inactive", "SubState": "dead", "MainPID": "0", **changes}


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({}, ServiceStatus("a", "absent")),
        (unit(LoadState="not-found"), ServiceStatus("a", "absent")),
        (unit(), ServiceStatus("a", "stopped")),
        (
            unit(ActiveState="active", SubState="running", MainPID="5", NRestarts="2"),
            ServiceStatus("a", "running", 5, restarts=2),
        ),
        (unit(ActiveState="activating", SubState="start", MainPID="5"), ServiceStatus("a", "starting", 5)),
        (unit(ActiveState="deactivating", SubState="stop-sigterm", MainPID="5"), ServiceStatus("a", "stopping", 5)),
        (
            unit(
                ActiveState="activating", SubState="auto-restart", ExecMainCode="3", ExecMainStatus="6", NRestarts="1"
            ),
            ServiceStatus("a", "restarting", None, 134, "killed by SIGABRT", 1),
        ),
        (
            unit(ActiveState="activating", SubState="auto-restart-queued", ExecMainCode="2", ExecMainStatus="11"),
            ServiceStatus("a", "restarting", None, 139, "killed by SIGSEGV"),
        ),
        (
            unit(ActiveState="failed", ExecMainCode="1", ExecMainStatus="1", Result="exit-code"),
            ServiceStatus("a", "failed", None, 1, "exit code 1"),
        ),
        (
            unit(ActiveState="failed", ExecMainCode="1", ExecMainStatus="203", Result="exit-code"),
            ServiceStatus("a", "failed", None, 203, "exit code 203: its program could not be run"),
        ),
        (
            unit(ActiveState="failed", ExecMainCode="2", ExecMainStatus="9", Result="oom-kill"),
            ServiceStatus("a", "failed", None, 137, "killed by SIGKILL, ran out of memory"),
        ),
        (
            unit(ActiveState="failed", ExecMainCode="2", ExecMainStatus="11", Result="start-limit-hit", NRestarts="9"),
            ServiceStatus("a", "failed", None, 139, "killed by SIGSEGV, crashed too often", 9),
        ),
        (
            unit(ActiveState="failed", Result="start-limit-hit"),
            ServiceStatus("a", "failed", exit_text="crashed too often"),
        ),
    ],
)
def test_unit_properties_become_status(shown, expected):
    assert systemd_driver.status_of("a", shown) == expected


EXEC_STOP = (
    "{{ path=/bin/sh ; argv[]=/bin/sh -c [ -n $MAINPID ] ; ignore_errors=yes ; start_time=[Fri 2026-11-27 08:00:00 UTC] ; "
    "stop_time=[Fri 2026-11-27 08:00:10 UTC] ; pid=77 ; code=exited ; status={code} }}"
)
TIMES = {"ActiveExitTimestampMonotonic": "7000000", "InactiveEnterTimestampMonotonic": "7250000"}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (unit(), unit(), Stopped("a", None, None, 0.0)),
        (unit(MainPID="5"), unit(ExecMainCode="1", ExecMainStatus="0", **TIMES), Stopped("a", 5, "SIGTERM", 0.25)),
        (unit(MainPID="5"), unit(ExecMainCode="2", ExecMainStatus="15", **TIMES), Stopped("a", 5, "SIGTERM", 0.25)),
        (
            unit(MainPID="5"),
            unit(ExecMainCode="2", ExecMainStatus="9", Result="timeout"),
            Stopped("a", 5, "SIGKILL", 0.0),
        ),
        (
            # systemd 262, of a server that ended at once by the second SIGTERM.
            unit(MainPID="5"),
            unit(ExecMainCode="1", ExecMainStatus="1", ExecStop=EXEC_STOP.format(code=75), Result="exit-code", **TIMES),
            Stopped("a", 5, "second SIGTERM", 0.25),
        ),
        (
            unit(MainPID="5"),
            unit(ExecMainCode="1", ExecMainStatus="0", ExecStop=EXEC_STOP.format(code=0), **TIMES),
            Stopped("a", 5, "SIGTERM", 0.25),
        ),
        (
            unit(MainPID="5"),
            unit(ExecMainCode="2", ExecMainStatus="9", ExecStop=EXEC_STOP.format(code=75), Result="timeout", **TIMES),
            Stopped("a", 5, "SIGKILL", 0.25),
        ),
    ],
)
def test_unit_stop_result(before, after, expected):
    assert systemd_driver.stopped_of("a", before, after) == expected


class FakeSystemctl:
    """Answers systemctl show from properties by unit, and records its calls."""

    def __init__(self, units, failing=(), hanging=()):
        self.units, self.failing, self.hanging, self.calls = units, failing, hanging, []

    def __call__(self, command, seconds=60.0):
        if set(command) & set(self.hanging):
            raise CommandTimeoutError(f"{command[1]} did not end within {seconds:g} s.")
        self.calls.append(list(command))
        if command[1] == "show":
            names = command[command.index("--") + 1 :]
            blocks = [{"Id": name, **self.units.get(name, {"LoadState": "not-found"})} for name in names]
            return 0, "\n\n".join("\n".join(f"{k}={v}" for k, v in block.items()) for block in blocks), ""
        return (1, "", "Failed.") if command[1] in self.failing else (0, "", "")

    def acts(self):
        return [call[1:] for call in self.calls if call[1] != "show"]


A, B, TARGET = "magi-llama-a.service", "magi-llama-b.service", "magi-llama.target"
TARGET_ONLY = ["start", "--job-mode=ignore-dependencies", TARGET]
ENABLED = {"LoadState": "loaded", "UnitFileState": "enabled", "NeedDaemonReload": "no"}


def test_start_enables_new_units_and_calls_on_started():
    systemctl = FakeSystemctl({A: ENABLED, B: {**ENABLED, "UnitFileState": "disabled"}, TARGET: ENABLED})
    manager = systemd_driver.SystemdDriver(systemctl)
    manager.reload(["a", "b", "gone"])
    assert manager.start(["a", "b"], lambda name: systemctl.calls.append(["pace", name])) == {}
    assert systemctl.acts() == [
        ["enable", "--quiet", A, B, TARGET],
        ["reset-failed", A, B],
        ["start", A],
        ["a"],
        ["start", B],
        ["b"],
        TARGET_ONLY,
    ]


@pytest.mark.parametrize(("needed", "reloads"), [("yes", [["daemon-reload"]]), ("no", [])])
def test_reload_only_if_units_changed(needed, reloads):
    target = {**ENABLED, "ActiveState": "active"}
    systemctl = FakeSystemctl({A: {**ENABLED, "NeedDaemonReload": needed}, TARGET: target})
    manager = systemd_driver.SystemdDriver(systemctl)
    manager.reload(["a"])
    manager.start(["a"])
    assert systemctl.acts() == [*reloads, ["reset-failed", A], ["start", A]]


def test_unit_not_loadable_is_an_error():
    systemctl = FakeSystemctl({A: {**ENABLED, "LoadState": "bad-setting"}, TARGET: ENABLED}, failing=("start",))
    assert systemd_driver.SystemdDriver(systemctl).start(["a"]) == {"a": f"{A} cannot be loaded: Failed."}


def test_server_dying_at_once_is_not_a_start_error():
    systemctl = FakeSystemctl({A: ENABLED, TARGET: ENABLED}, failing=("start",))
    assert systemd_driver.SystemdDriver(systemctl).start(["a"]) == {}


def test_stop_is_one_call_for_running_servers():
    running = {**ENABLED, "ActiveState": "active", "MainPID": "5"}
    systemctl = FakeSystemctl({A: running, B: {**ENABLED, "ActiveState": "inactive"}})
    stopped = systemd_driver.SystemdDriver(systemctl).stop(["a", "b", "gone"], 30)
    assert systemctl.acts() == [["stop", A]]
    assert [(name, entry.pid) for name, entry in stopped.items()] == [("a", 5), ("b", None), ("gone", None)]


def test_systemctl_failing_is_reported():
    systemctl = FakeSystemctl({A: {"LoadState": "loaded"}}, failing=("enable",))
    with pytest.raises(ServiceError, match=r"systemctl enable .* failed: Failed\."):
        systemd_driver.SystemdDriver(systemctl).reload(["a"])


def test_hanging_start_is_that_servers_error():
    systemctl = FakeSystemctl({A: ENABLED, B: ENABLED, TARGET: ENABLED}, hanging=(A,))
    systemctl_start = systemd_driver.SystemdDriver(
        lambda command, seconds=60.0: (0, "", "") if command[1] == "reset-failed" else systemctl(command, seconds)
    )
    assert systemctl_start.start(["a", "b"]) == {"a": "start did not end within 180 s."}
    assert ["start", B] in systemctl.acts()


def test_hanging_journal_does_not_lose_the_result():
    driver = systemd_driver.SystemdDriver(FakeSystemctl({}, hanging=("journalctl",)))
    assert driver.log_tail("a", 5) == ["--quiet did not end within 20 s."]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        # Invocation f logged nothing: what is in the journal is of earlier starts.
        ({"InvocationID": "f", "NRestarts": "0"}, []),
        ({"InvocationID": "c", "NRestarts": "0"}, ["of c"]),
        # Processes that crashed, and were restarted by systemd, are of the same deliberate start.
        ({"InvocationID": "c", "NRestarts": "1"}, ["of b", "more of b", "of c"]),
        ({"InvocationID": "d", "NRestarts": "1"}, ["of c"]),
        ({}, ["of a", "of b", "more of b", "of c"]),
    ],
)
def test_log_of_a_failed_start_leaves_out_earlier_starts(shown, expected):
    journal = [("a", "of a"), ("b", "of b"), ("b", "more of b"), ("c", "of c")]
    lines = [json.dumps({"_SYSTEMD_INVOCATION_ID": invocation, "MESSAGE": text}) for invocation, text in journal]
    systemctl = FakeSystemctl({A: {**ENABLED, **shown}})

    def run(command, seconds=60.0):
        is_read = command[0] == "journalctl" and "--sync" not in command
        return (0, "\n".join(lines), "") if is_read else systemctl(command, seconds)

    assert systemd_driver.SystemdDriver(run).log_tail("a", 20) == expected


@pytest.mark.parametrize("folder", [True, False])
def test_hidden_processes_leave_the_folder_of_systemd(tmp_path, monkeypatch, folder):
    def hidden(path, *_arguments, **_options):
        raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr("builtins.open", hidden)
    monkeypatch.setattr(systemd, "BOOTED", str(tmp_path if folder else tmp_path / "none"))
    assert systemd.Systemd().runs_here() is folder


@pytest.mark.parametrize(
    ("output", "version"),
    [("systemd 252 (252.39-1~deb12u1)\n+PAM", 252), ("systemd 262 (262-1)\n", 262), ("", None)],
)
def test_version_is_the_first_number(output, version):
    assert systemd_driver.SystemdDriver(lambda command: (0, output, "")).version() == version


@pytest.mark.parametrize("call", ["start", "forget"])
def test_empty_calls_run_nothing(call):
    systemctl = FakeSystemctl({})
    getattr(systemd_driver.SystemdDriver(systemctl), call)([])
    assert systemctl.calls == []


def test_manually_disabled_unit_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(systemd, "UNIT_FOLDER", str(tmp_path))
    record = {"service_manager": "systemd", "servers": [{"name": "a"}, {"name": "b"}]}
    assert table.disabled(record, "systemd") == ["a", "b"]
    for link in (f"multi-user.target.wants/{TARGET}", f"{TARGET}.wants/{A}", f"{TARGET}.wants/{B}"):
        (tmp_path / link).parent.mkdir(exist_ok=True)
        (tmp_path / link).symlink_to("/nonexistent")
    assert table.disabled(record, "systemd") == []
    (tmp_path / f"{TARGET}.wants/{B}").unlink()
    assert table.disabled(record, "systemd") == ["b"]
    # Without its target no server is started at boot.
    (tmp_path / f"multi-user.target.wants/{TARGET}").unlink()
    assert table.disabled(record, "systemd") == ["a", "b"]
    # Servers that change to another manager are restarted anyway.
    assert table.disabled(record, "supervisor") == []
    assert table.disabled({**record, "service_manager": None}, "systemd") == []


def test_unit_of_another_origin_that_runs_llama_server_is_found(tmp_path):
    etc, usr, groups = tmp_path / "etc", tmp_path / "usr", tmp_path / "groups"
    for folder in (etc / "multi-user.target.wants", usr, groups / "active.service"):
        folder.mkdir(parents=True)
    router = "[Service]\nExecStart=/usr/bin/llama-server --models-dir /models --port 9931\n"
    ours = f"{router}Environment=MAGI_LLAMA_STATE=/s\n"
    for path, text in {
        usr / "llama-server.service": router,
        usr / "off.service": router,
        usr / "active.service": router,
        usr / "llama@.service": router,
        usr / "replaced.service": router,
        etc / "replaced.service": "[Service]\nExecStart=/bin/true\n",
        etc / "magi-llama-m.service": ours,
        etc / "other.service": "[Service]\nExecStart=/usr/bin/not-llama-servers\n",
    }.items():
        path.write_text(text)
    wanted = ("llama-server.service", "llama@a.service", "replaced.service", "magi-llama-m.service", "other.service")
    for name in wanted:
        (etc / "multi-user.target.wants" / name).symlink_to("/nowhere")
    assert systemd.foreign_units([str(etc), str(usr)], str(groups)) == [
        f"active.service ({usr}/active.service)",
        f"llama-server.service ({usr}/llama-server.service)",
        f"llama@.service ({usr}/llama@.service)",
    ]
