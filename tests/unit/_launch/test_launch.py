# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import errno
import os
import shlex
import subprocess
import threading
import time

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core import files as files_module
from ansible_collections.magi.llama.plugins.module_utils._core.values import ValueTypeError
from ansible_collections.magi.llama.plugins.module_utils._deployment import record, state_files
from ansible_collections.magi.llama.plugins.module_utils._launch import config_files, quoting
from ansible_collections.magi.llama.plugins.module_utils._launch import units as units_module
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import File, Managed
from ansible_collections.magi.llama.plugins.module_utils._services import systemd, table

DRIVER = "ansible_collections.magi.llama.plugins.module_utils._services.systemd_driver"


def server(**changes):
    return {
        "name": "m",
        "argv": ["/usr/bin/llama-server", "--model", "/models/a/x.gguf", "--mmproj", "/models/b c/y.gguf"],
        "host": "127.0.0.1",
        "port": 8080,
        "memory": {"vram_bytes": 0},
        "memory_max_bytes": 1000,
        **changes,
    }


@pytest.mark.parametrize(
    ("program", "code", "shortest", "longest"),
    [
        ("exec sleep 60", 0, 0.0, 0.9),
        # One SIGTERM does not end it.
        ("trap '' TERM; while :; do sleep 0.1; done", units_module.STILL_RUNS, 1.0, 9.0),
    ],
)
def test_stop_command_waits_until_the_process_ends(tmp_path, program, code, shortest, longest):
    settings = units_module.systemd_stop(3)
    assert settings["TimeoutStopSec"] == 2
    words = shlex.split(settings["ExecStop"].removeprefix("-").replace("$$", "$"))
    server = subprocess.Popen(["/bin/sh", "-c", f"touch {tmp_path}/up; {program}"])
    reaper = threading.Thread(target=server.wait)
    reaper.start()
    try:
        while not (tmp_path / "up").exists():
            time.sleep(0.01)
        time.sleep(0.1)
        began = time.monotonic()
        done = subprocess.run(words, env={**os.environ, "MAINPID": str(server.pid)}, check=False, timeout=30)
        took = time.monotonic() - began
    finally:
        server.kill()
        reaper.join()
    assert done.returncode == code
    assert shortest <= took < longest
    # After a crash there is no process to stop.
    assert subprocess.run(words, env={"PATH": os.environ["PATH"]}, check=False, timeout=30).returncode == 0


@pytest.mark.parametrize(("stop_timeout", "expected"), [(30, 20), (90, 60), (1, 2), (31, 21)])
def test_stop_time_out_is_divided(stop_timeout, expected):
    assert units_module.systemd_stop(stop_timeout)["TimeoutStopSec"] == expected


def test_sandbox_on_cpu_has_no_devices_and_no_network():
    assert units_module.systemd_sandbox(server()) == {
        "LoadCredential": None,
        "MemoryMax": 1000,
        "MemorySwapMax": 0,
        "TasksMax": 4096,
        "LimitMEMLOCK": None,
        "ReadWritePaths": [],
        "PrivateUsers": True,
        "SystemCallFilter": "~@resources",
        "SocketBindDeny": "any",
        "SocketBindAllow": "tcp:8080",
        "NUMAPolicy": "",
        "NUMAMask": "",
        "ReadOnlyPaths": ["-/models/a", '"-/models/b c"'],
        "ProtectHome": True,
        "PrivateTmp": True,
        "BindReadOnlyPaths": [],
        "BindPaths": [],
        "PrivateDevices": True,
        "DeviceAllow": [],
        "SupplementaryGroups": [],
        "CacheDirectory": None,
        "CacheDirectoryMode": None,
        "Environment": None,
        "MemoryDenyWriteExecute": True,
        "IPAddressDeny": "any",
        "IPAddressAllow": "localhost",
    }


@pytest.mark.parametrize(
    ("changes", "options", "expected"),
    [
        ({"memory": {"vram_bytes": 1}}, {}, {"PrivateDevices": False, "MemoryDenyWriteExecute": False}),
        ({"memory": {"vram_bytes": 1}}, {"gpu_access": False}, {"PrivateDevices": True, "DeviceAllow": []}),
        (
            {},
            {"gpu_access": "true"},
            {"PrivateDevices": False, "DeviceAllow": [f"{d} rw" for d in units_module.GPU_DEVICES]},
        ),
        ({}, {"gpu_access": "no"}, {"PrivateDevices": True}),
        (
            {"memory": {"vram_bytes": 1}, "env": {"MAGI_LLAMA_GPU_GROUPS": "render,video"}},
            {},
            {
                "SupplementaryGroups": ["render", "video"],
                "CacheDirectory": "magi-llama-gpu/m",
                "Environment": "HOME=/var/cache/magi-llama-gpu/m",
            },
        ),
        (
            {"memory": {"vram_bytes": 1}, "env": {"MAGI_LLAMA_GPU_GROUPS": "a b,\nroot"}},
            {},
            {"SupplementaryGroups": []},
        ),
        ({"memory": {"vram_bytes": 1}}, {}, {"PrivateUsers": None, "SystemCallFilter": None}),
        ({}, {"user_namespaces": False}, {"PrivateUsers": None, "SystemCallFilter": "~@resources"}),
        ({"argv": ["/x", "--numa", "isolate"]}, {}, {"SystemCallFilter": None}),
        ({"argv": ["/x", "--cpu-mask-batch", "f"]}, {}, {"SystemCallFilter": None}),
        ({"argv": ["/x", "--mlock"]}, {}, {"LimitMEMLOCK": "infinity"}),
        ({"argv": ["/x", "--load-mode", "mlock"]}, {}, {"LimitMEMLOCK": "infinity"}),
        ({"argv": ["/x", "--load-mode", "mmap"]}, {}, {"LimitMEMLOCK": None}),
        (
            {"argv": ["/x", "--slot-save-path", "/var/a b", "--log-prompts-dir", "/srv/log"]},
            {},
            {"ReadWritePaths": ["-/srv/log", '"-/var/a b"']},
        ),
        ({"memory_max_bytes": 0}, {}, {"MemorySwapMax": None}),
        ({"port": 8099}, {}, {"SocketBindAllow": "tcp:8099"}),
        ({}, {"systemd_version": 247}, {"SocketBindDeny": None, "SocketBindAllow": None}),
        ({}, {"systemd_version": None}, {"SocketBindDeny": None, "SocketBindAllow": None}),
        ({"host": "0.0.0.0"}, {}, {"IPAddressDeny": None, "IPAddressAllow": None}),
        ({"host": "::1"}, {}, {"IPAddressDeny": "any"}),
        (
            {"host": "0.0.0.0"},
            {"allow_addresses": ["192.0.2.10"]},
            {"IPAddressDeny": "any", "IPAddressAllow": "localhost 192.0.2.10"},
        ),
        # The host's own probes come from the address that they go to.
        ({"host": "192.0.2.1"}, {"allow_addresses": ["::2"]}, {"IPAddressAllow": "localhost 192.0.2.1 ::2"}),
        ({}, {"allow_addresses": ["192.0.2.10"]}, {"IPAddressAllow": "localhost"}),
        (
            {"host": "0.0.0.0", "argv": ["/x", "--rpc", "10.0.0.1:50052"]},
            {"allow_addresses": ["192.0.2.10"]},
            {"IPAddressDeny": None},
        ),
        ({"argv": ["/x", "--rpc", "10.0.0.1:50052"]}, {}, {"IPAddressDeny": None}),
        ({"memory_max_bytes": 0}, {}, {"MemoryMax": None}),
        ({}, {"numa_policy": "bind", "numa_mask": "0"}, {"NUMAPolicy": "bind", "NUMAMask": "0"}),
    ],
)
def test_sandbox_follows_server_settings(changes, options, expected):
    found = units_module.systemd_sandbox(server(**changes), **options)
    assert {key: found[key] for key in expected} == expected


def test_key_file_of_root_is_loaded_as_credential(monkeypatch):
    manager = systemd.Systemd()
    monkeypatch.setattr(systemd.Systemd, "runs_here", lambda self: True)
    for version, expected in ((247, "/run/credentials/magi-llama-m.service/api-keys"), (246, "/root/50% keys")):
        monkeypatch.setattr(f"{DRIVER}.SystemdDriver.version", lambda self, version=version: version)
        path = manager.key_path("m", "/root/50% keys")
        assert path == expected
        argv = ["/x", "--model", "/m/a.gguf", "--api-key-file", path]
        found = units_module.systemd_sandbox(server(argv=argv, api_key_file="/root/50% keys"))
        assert found["LoadCredential"] == ("api-keys:/root/50%% keys" if version == 247 else None)


@pytest.mark.parametrize(
    ("changes", "after", "wants"),
    [
        ({}, ["network.target"], None),
        ({"host": "::1"}, ["network.target"], None),
        ({"host": "0.0.0.0"}, ["network.target"], None),
        ({"host": "10.0.0.5"}, ["network.target", "network-online.target"], "network-online.target"),
        (
            {"memory": {"vram_bytes": 1}},
            ["network.target", "nvidia-persistenced.service", "magi-llama.gpu.service"],
            [None, "magi-llama.gpu.service"],
        ),
    ],
)
def test_unit_waits_for_mounts_and_network(changes, after, wants):
    assert units_module.systemd_dependencies(server(**changes)) == {
        "After": after,
        "Wants": wants,
        "RequiresMountsFor": ["/models/a", '"/models/b c"'],
    }


@pytest.mark.parametrize("given", ["ture", "", None, "Auto "])
def test_gpu_access_not_boolean_is_refused(given):
    for make in (units_module.systemd_sandbox, units_module.systemd_dependencies):
        with pytest.raises(ValueTypeError, match="servers_gpu_access"):
            make(server(), gpu_access=given)


VERSIONS = [(None, False), (247, False), (252, False), (253, False), (254, True), (262, True)]


@pytest.mark.parametrize(("version", "grows"), VERSIONS)
def test_restart_delay_grows_if_systemd_supports_it(version, grows):
    settings = units_module.systemd_restart(version)
    assert ("RestartSteps" in settings) == ("RestartMaxDelaySec" in settings) == grows


def starts(version, until_crash, count):
    """The times at which systemd starts a server that crashes each time, in seconds, by systemd's formula."""
    settings = units_module.systemd_restart(version)
    first, steps, most = settings["RestartSec"], settings.get("RestartSteps", 0), settings.get("RestartMaxDelaySec", 0)
    found = [0.0]
    for number in range(1, count):
        delay = first if not steps or number == 1 else most if number > steps else 0
        found.append(found[-1] + until_crash + (delay or first * (most / first) ** ((number - 1) / steps)))
    return found


@pytest.mark.parametrize("version", [version for version, _grows in VERSIONS])
@pytest.mark.parametrize("max_startup_time", [1, 120, 150, 600, 3600])
def test_restart_limit_stops_crash_loop_and_survives_short_fault(version, max_startup_time):
    limit = units_module.systemd_start_limit(max_startup_time)
    allowed = limit["StartLimitBurst"]
    # systemd refuses the start after the last allowed one if it is within the interval.
    assert starts(version, max_startup_time, allowed + 1)[-1] < limit["StartLimitIntervalSec"]
    assert starts(version, 0, allowed)[-1] >= 150


def test_record_is_plan_without_stopped_servers():
    plan = {
        "profile": "p",
        "start": {"concurrent": True},
        "servers": [
            {"name": "a", "port": 1, "action": "keep", "reason": "runs"},
            {"name": "b", "port": 2, "action": "stop", "reason": "gone"},
        ],
    }
    assert record.record_of(plan, "systemd") == {
        "profile": "p",
        "service_manager": "systemd",
        "start": {"concurrent": True},
        "servers": [{"name": "a", "port": 1}],
    }


def test_config_files_are_written_once(tmp_path):
    files = [File(str(tmp_path / "new" / "a"), b"A"), File(str(tmp_path / "b"), b"B", 0o640)]
    assert config_files.files_to_write(files) == files
    config_files.write_all(files)
    assert config_files.files_to_write(files) == []
    assert (tmp_path / "new" / "a").read_bytes() == b"A"
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o640
    (tmp_path / "b").chmod(0o644)
    assert config_files.files_to_write(files) == files[1:]


def test_stale_files_are_managed_only(tmp_path):
    for name, text in {
        "magi-llama-a.service": "mine\n",
        "magi-llama-b.service": "mine\n",
        "magi-llama-c.service": "of another state directory",
        "other.service": "mine\n",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "magi-llama-d.service").mkdir()
    managed = [Managed(str(tmp_path), "magi-llama-*.service", "mine"), Managed(str(tmp_path / "none"), "*", "")]
    keep = [str(tmp_path / "magi-llama-a.service")]
    assert config_files.stale_files(managed, keep) == [str(tmp_path / "magi-llama-b.service")]


def test_write_on_full_disk_changes_nothing(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).write_text("old")
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    files = [File(str(tmp_path / name), b"new") for name in "abc"]
    with pytest.raises(config_files.LaunchConfigError, match=r"/c could not be written: No space left on device"):
        config_files.write_all(files, [str(tmp_path / "d")])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys("abc", "old")


def test_write_in_read_only_folder_names_it(tmp_path, monkeypatch):
    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files_module.tempfile, "mkstemp", read_only)
    with pytest.raises(config_files.LaunchConfigError, match="/a could not be written: Read-only file system"):
        config_files.write_all([File(str(tmp_path / "a"), b"new")])


def test_leftovers_of_killed_run_are_removed(tmp_path):
    (tmp_path / ".magi-llama-x.tmp").write_text("half")
    (tmp_path / ".other.tmp").write_text("not ours")
    config_files.write_all([File(str(tmp_path / "a"), b"new")])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.tmp", "a"]


@pytest.mark.parametrize("state_dir", ["/var/lib/magi-llama", "/srv/my 50% state"])
def test_config_has_marker_of_state_dir(state_dir):
    env = {"MAGI_LLAMA_STATE": state_dir, "MAGI_LLAMA_SERVER": "a"}
    systemd_files, programs = (table.find_manager(name).managed_files(state_dir) for name in ("systemd", "supervisor"))
    units = [entry for entry in systemd_files if entry.folder == systemd.UNIT_FOLDER]
    assert len(units) == 3
    assert all(entry.marker in f"[Service]\n{quoting.systemd_environment(env)}\n" for entry in units)
    [programs] = programs
    assert programs.marker in quoting.supervisor_environment(env)


def test_units_of_state_dir_with_same_prefix_are_not_managed(tmp_path, monkeypatch):
    monkeypatch.setattr(systemd, "UNIT_FOLDER", str(tmp_path))
    for name, state in (("a", "/srv/llama"), ("b", "/srv/llama-staging"), ("c", "/srv/llama/x")):
        env = quoting.systemd_environment({"MAGI_LLAMA_STATE": state, "MAGI_LLAMA_SERVER": name})
        (tmp_path / f"magi-llama-{name}.service").write_text(f"[Service]\n{env}\nUser=llama\n")
    managed = table.managed_files("/srv/llama")
    assert config_files.stale_files(managed, []) == [str(tmp_path / "magi-llama-a.service")]
    with pytest.raises(config_files.LaunchConfigError, match="not managed by this deployment"):
        config_files.refuse_foreign([config_files.File(str(tmp_path / "magi-llama-b.service"), b"")], managed)


def test_deployed_files_are_compared_by_digest(tmp_path):
    state = str(tmp_path)
    marked = f'environment=MAGI_LLAMA_STATE="{state}"\n'.encode()
    empty = record.empty_record()
    configs = [
        config_files.File(table.find_manager("supervisor").config_path(state, "a"), marked),
        config_files.File(table.find_manager("supervisor").common_config_path(state), b"[supervisord]\n"),
    ]
    wanted = [*state_files.state_files(state, empty, configs=configs)[0], *configs]
    digests = state_files.planned(state, empty, wanted[1:])
    assert state_files.deployed(state, "supervisor") == {}
    config_files.write_all(wanted)
    assert state_files.deployed(state, "supervisor") == digests
    # One that is no longer planned, one with another mode, and one with other content.
    config_files.write_all([config_files.File(table.find_manager("supervisor").config_path(state, "b"), marked)])
    assert state_files.deployed(state, "supervisor").keys() - digests.keys() == {
        table.find_manager("supervisor").config_path(state, "b")
    }
    os.chmod(wanted[1].path, 0o600)
    with open(wanted[2].path, "a", encoding="utf-8") as stream:
        stream.write("user=root\n")
    now = state_files.deployed(state, "supervisor")
    assert [now[file.path] == digests[file.path] for file in wanted] == [True, False, False]
