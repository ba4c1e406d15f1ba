# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import errno
import getpass
import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.magi.llama.plugins.module_utils._core import ownership
from ansible_collections.magi.llama.plugins.module_utils._core.ownership import MARK
from ansible_collections.magi.llama.plugins.module_utils._deployment import shared, teardown
from ansible_collections.magi.llama.plugins.module_utils._launch import quoting
from ansible_collections.magi.llama.plugins.module_utils._services import base, supervisor, systemd
from ansible_collections.magi.llama.plugins.modules import teardown as module

REGISTRY = json.dumps({"schema_version": 1, "models": [], "companions": [], "rejected": []})
CACHE = json.dumps({"schema_version": 1, "files": {}, "help": {}})


class Host:
    """A state directory and a folder for units."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "app"
        self.units = root / "units"
        self.state.mkdir()
        self.units.mkdir()

    def write(self, *names: str, text: str = "x") -> None:
        for name in names:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def record(self, *names: str) -> None:
        servers = [{"name": name, "port": 1, "argv": ["/x"], "model_id": name} for name in names]
        record = {"schema_version": 1, "profile": "p", "service_manager": "supervisor", "servers": servers}
        (self.state / "servers.json").write_text(json.dumps(record))

    def unit(self, name: str, state: object, user: str = "llama") -> None:
        marker = quoting.systemd_environment({"MAGI_LLAMA_STATE": str(state)})
        (self.units / f"magi-llama-{name}.service").write_text(f"[Service]\n{marker}\nUser={user}\n")

    def take_down(self, **more: str) -> list[str]:
        prefix = more.get("prefix")
        registry = more.get("registry", str(self.state / "registry.json"))
        owned = teardown.owned_paths(str(self.state), registry, prefix, more.get("cache"))
        self.unmanaged = {os.path.relpath(path, self.root): why for path, why in owned.unmanaged.items()}
        removed = teardown.remove(owned.paths, str(self.state))
        assert len(removed) == len(set(removed))
        return [os.path.relpath(path, self.root) for path in removed]

    def left(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path != self.units)


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(systemd, "UNIT_FOLDER", str(tmp_path / "units"))
    return Host(tmp_path)


@pytest.fixture
def run(capsys):
    def call(**arguments):
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out)

    return call


def test_supervisor_files_are_all_removed(host):
    host.record("a")
    host.write("app/supervisor/supervisord.conf", text="[supervisord]\nidentifier=magi-llama\n")
    marker = quoting.supervisor_environment({"MAGI_LLAMA_STATE": str(host.state)})
    host.write("app/supervisor/conf.d/a.conf", text=f"[program:a]\nenvironment={marker}\n")
    host.write("app/supervisor/supervisord.log.1", text="INFO spawned: 'older' with pid 11\n")
    host.write(*(f"app/supervisor/{name}" for name in ("supervisord.log", "supervisord.pid", "supervisor.sock.77")))
    host.write("app/supervisor/venv/bin/supervisord", "app/supervisor/started.json")
    host.write("app/supervisor/venv/pyvenv.cfg", text="prompt = 'magi.llama'\n")
    host.write("app/ready.json", text='{"gone": {"pid": 1}}')
    host.write("app/log/a.log", "app/log/a.log.3", "app/log/gone.log", "app/log/older.log.1", "app/run.lock")
    host.take_down()
    assert host.left() == []


def test_unmanaged_files_in_state_directory_stay(host):
    host.record("a")
    host.write("app/ready.json", text='{"a": {"pid": 1}}')
    unmanaged = ["app/log/access.log", "app/log/access.log.1", "app/supervisor/supervisord.conf"]
    unmanaged += ["app/supervisor/supervisord.log", "app/supervisor/venv/bin/python", "app/supervisor/supervisor.sock"]
    unmanaged += ["app/supervisor/conf.d/web.conf", "app/main.py"]
    host.write(*unmanaged, text="[program:web]\n")
    assert not supervisor.is_ours(str(host.state))
    host.take_down()
    assert [path for path in host.left() if (host.root / path).is_file()] == sorted(unmanaged)


def test_unmanaged_supervisor_folder_without_config_stays(host):
    unmanaged = ["app/supervisor/supervisord.log", "app/supervisor/venv/bin/python", "app/supervisor/notes"]
    host.record("a")
    host.write(*unmanaged)
    assert not supervisor.is_ours(str(host.state))
    host.take_down()
    assert [path for path in host.left() if (host.root / path).is_file()] == sorted(unmanaged)


def test_supervisor_folder_of_interrupted_run_is_removed(host):
    host.write(
        "app/supervisor/venv/bin/python", "app/supervisor/.magi-llama-1.tmp", "app/supervisor/conf.d/.magi-llama-2.tmp"
    )
    host.write("app/supervisor/venv/pyvenv.cfg", text="home = /usr/bin\nprompt = 'magi.llama'\n")
    host.take_down()
    assert host.left() == []


def test_unmanaged_log_folder_loses_managed_logs_only(host):
    host.record("a")
    host.write("app/log/a.log", "app/log/b.log")
    host.take_down()
    assert host.left() == ["app", "app/log", "app/log/b.log"]


def test_unmanaged_empty_log_folder_stays(host):
    host.record("a")
    (host.state / "log").mkdir()
    host.take_down()
    assert host.left() == ["app", "app/log"]


def test_state_of_this_and_of_older_versions_is_removed(host):
    previous = {"deployed": {"profile": "p", "service_manager": "supervisor", "servers": []}, "files": []}
    previous["deployed"]["servers"] = [{"name": "before", "port": 1, "argv": ["/x"], "model_id": "before"}]
    host.record("a")
    deployed = json.loads((host.state / "servers.json").read_text())
    content = {"schema_version": 2, "deployed": deployed, "previous": previous}
    host.write("app/deployment.json", text=json.dumps(content))
    host.write("app/observed.json", text='{"schema_version": 2, "servers": {"gone": {"pid": 1}}}')
    host.write("app/previous.json", "app/ready.json")
    host.write("app/supervisor/supervisord.conf", text="[supervisord]\nidentifier=magi-llama\n")
    host.write("app/log/a.log", "app/log/gone.log", "app/log/before.log")
    host.take_down()
    assert host.left() == []


@pytest.mark.parametrize("text", ["{", '{"schema_version": 99}'])
def test_state_that_is_not_read_is_removed(host, text):
    host.write("app/deployment.json", "app/observed.json", text=text)
    host.take_down()
    assert host.left() == []


@pytest.mark.parametrize(("other", "last"), [("/srv/other", False), (None, True)])
def test_target_is_removed_with_last_state_directory(host, other, last):
    host.unit("a", host.state)
    # An unmanaged unit lacks this line, even if its name matches.
    host.write("units/magi-llama-foreign.service", text="[Service]\nExecStart=/usr/bin/llama-server\n")
    host.write("units/magi-llama.target", "units/magi-llama.target.wants/x")
    if other:
        host.unit("b", other)
    host.take_down()
    assert ("units/magi-llama.target" in host.left()) == (not last)
    assert "units/magi-llama-foreign.service" in host.left()
    assert "units/magi-llama-a.service" not in host.left()


def test_leftovers_of_killed_runs_are_removed(host):
    host.write("units/.magi-llama-1.tmp", "app/.magi-llama-2.tmp", "app/supervisor/conf.d/.magi-llama-3.tmp")
    host.write("cache/.magi-llama-4.tmp", "cache/.other.tmp")
    host.write("app/registry.json.partial", text=REGISTRY)
    host.write("opt/runtime.new/bin/x", "opt/runtime.check-abc/bin/x", "opt/runtime-of-others/x", "opt/runtime/x")
    host.write("opt/runtime.check-other/x", "opt/runtime.previous/x")
    host.write("opt/runtime.new/manifest.json", "opt/runtime.check-abc/manifest.json", text=json.dumps(MARK))
    host.take_down(prefix=str(host.root / "opt/runtime"), cache=str(host.root / "cache/runtime.json"))
    assert [path for path in host.left() if (host.root / path).is_file()] == [
        "cache/.other.tmp",
        "opt/runtime-of-others/x",
        "opt/runtime.check-other/x",
        "opt/runtime.previous/x",
        "opt/runtime/x",
    ]


def test_unmanaged_partial_unit_stays(host):
    host.unit("b", "/srv/other")
    host.write("units/.magi-llama-1.tmp")
    host.take_down()
    assert "units/.magi-llama-1.tmp" in host.left()


def test_state_directory_as_mount_point_stays(host, monkeypatch):
    host.record("a")
    real = os.rmdir

    def rmdir(path, **more):
        if str(path) == str(host.state):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        real(path, **more)

    monkeypatch.setattr(os, "rmdir", rmdir)
    assert host.take_down() == ["app/servers.json"]
    assert host.left() == ["app"]


def test_files_of_ours_are_removed_from_given_paths(host):
    host.write("var/registry.json", "var/registry.json.partial", text=REGISTRY)
    host.write("cache/runtime.json", text=CACHE)
    host.write("app/api-keys", text="# Generated by magi.llama. Add further keys below, one per line.\nkey\n")
    host.take_down(registry=str(host.root / "var/registry.json"), cache=str(host.root / "cache/runtime.json"))
    assert [path for path in host.left() if (host.root / path).is_file()] == []
    assert host.unmanaged == {}


@pytest.mark.parametrize("text", ["GGUF", "{", "[]", '{"models": []}', "# Keys of mine\nkey\n", ""])
def test_files_of_others_at_given_paths_stay(host, text):
    unmanaged = ["app/api-keys", "cache/runtime.json", "var/registry.json", "var/registry.json.partial"]
    host.write(*unmanaged, text=text)
    host.take_down(registry=str(host.root / "var/registry.json"), cache=str(host.root / "cache/runtime.json"))
    assert [path for path in host.left() if (host.root / path).is_file()] == unmanaged
    assert host.unmanaged == dict.fromkeys(unmanaged, "lacks the content that magi.llama writes there")


def test_links_and_pipes_at_given_paths_stay(host):
    host.write("data/registry.json", text=REGISTRY)
    (host.root / "registry.json").symlink_to("data/registry.json")
    os.mkfifo(host.root / "cache.json")
    host.take_down(registry=str(host.root / "registry.json"), cache=str(host.root / "cache.json"))
    assert host.left() == ["cache.json", "data", "data/registry.json", "registry.json"]
    assert sorted(host.unmanaged) == ["cache.json", "registry.json"]


def test_folders_of_others_stay_with_what_is_in_them(host):
    host.write("app/ready.json", text='{"a": {"pid": 1}}')
    host.write("app/supervisor/supervisord.conf", text="[supervisord]\nidentifier=magi-llama\n")
    unmanaged = ["app/api-keys", "app/deployment.json", "app/log/a.log", "app/.magi-llama-1.tmp", "models", "cache"]
    unmanaged += ["app/registry.json.partial", "app/supervisor/venv", "opt/runtime", "units/magi-llama.target"]
    files = sorted(f"{folder}/model.gguf" for folder in unmanaged)
    host.write(*files)
    found = {"cache": str(host.root / "cache"), "prefix": str(host.root / "opt/runtime")}
    host.take_down(registry=str(host.root / "models"), **found)
    first = host.unmanaged
    host.take_down(**found)
    assert [path for path in host.left() if (host.root / path).is_file()] == files
    prefix = {"opt/runtime": "is not a folder that magi.llama has made"}
    assert {**first, **host.unmanaged} == {**dict.fromkeys(unmanaged, "is a folder"), **prefix}


@pytest.mark.parametrize("name", ["registry_path", "runtime_cache_path"])
def test_module_refuses_folder_before_it_stops_a_server(host, run, monkeypatch, name):
    monkeypatch.setattr(module, "take_down", None)
    host.write("models/a.gguf", "app/deployment.json")
    given = {"registry_path": str(host.root / "registry.json"), name: str(host.root / "models")}
    result = run(state_dir=str(host.state), **given)
    assert result["msg"].startswith(f"{name} is the path of a file, but {host.root}/models is a folder. Nothing was")
    assert f"Set {name} to a file, such as {host.root}/models/{name.partition('_')[0]}.json." in result["msg"]
    assert host.left() == ["app", "app/deployment.json", "models", "models/a.gguf"]


def test_module_says_what_it_keeps(host, run):
    host.write("registry.json", text="mine")
    path = str(host.root / "registry.json")
    result = run(state_dir=str(host.state), registry_path=path)
    assert result["kept"] == {path: ["lacks the content that magi.llama writes there"]}
    assert f"{path} stays, as it lacks the content" in result["msg"]
    assert (host.root / "registry.json").read_text() == "mine"


def test_module_keeps_prefix_of_others_given_with_a_slash(host, run):
    prefix = host.root / "opt/runtime"
    host.write("opt/runtime/manifest.json", text=json.dumps(MARK))
    host.write("opt/runtime.previous/manifest.json", text=json.dumps(MARK))
    deployed(host.root / "other", prefix / "bin/llama-server")
    host.unit("b", host.root / "other")
    result = run(state_dir=str(host.state), registry_path=f"{host.state}/registry.json", runtime_prefix=f"{prefix}/")
    assert result["kept"] == {str(prefix): [str(host.root / "other")]}
    assert (prefix / "manifest.json").exists()


def test_users_of_unmanaged_units_are_found(host):
    host.unit("a", host.state, user="unused-user")
    assert teardown.users_of("unused-user", str(host.state)) == []
    host.unit("b", "/srv/other", user="unused-user")
    assert teardown.users_of("unused-user", str(host.state)) == ["magi-llama-b.service"]
    mine = teardown.users_of(getpass.getuser(), str(host.state))
    assert any(entry.startswith(f"pid {os.getpid()} (") for entry in mine)


def deployed(folder: Path, program: Path) -> None:
    """A state directory whose deployment starts a program."""
    folder.mkdir(parents=True, exist_ok=True)
    server = {"name": "b", "port": 1, "argv": [str(program)], "model_id": "b"}
    record = {"schema_version": 1, "profile": "p", "service_manager": "supervisor", "servers": [server]}
    (folder / "servers.json").write_text(json.dumps(record))


@pytest.mark.parametrize("found_by", ["manifest", "unit"])
def test_prefix_registry_and_cache_of_another_deployment_stay(host, found_by):
    prefix, other = host.root / "opt/runtime", host.root / "other"
    host.write("opt/runtime/manifest.json", text=json.dumps(MARK))
    deployed(other, prefix / "bin/llama-server")
    if found_by == "manifest":
        shared.note_use(str(other), shared.read_record(str(other)))
    else:
        host.unit("b", other)
    wanted = (str(other / "registry.json"), str(prefix), str(host.root / "runtime.json"))
    assert shared.kept_for_others(str(host.state), *wanted) == {path: [str(other)] for path in wanted}
    # The other deployment has gone, or uses another llama-server.
    deployed(other, host.root / "bin/llama-server")
    assert list(shared.kept_for_others(str(host.state), *wanted)) == [wanted[0]]
    (other / "servers.json").unlink()
    (host.units / "magi-llama-b.service").unlink(missing_ok=True)
    assert shared.kept_for_others(str(host.state), *wanted) == {}


def test_users_of_prefix_are_noted_once(host):
    prefix = host.root / "opt/runtime"
    host.write("opt/runtime/manifest.json", text=json.dumps(MARK))
    deployed(host.state, prefix / "bin/llama-server")
    for _time in range(2):
        shared.note_use(str(host.state), shared.read_record(str(host.state)))
    assert json.loads((prefix / "manifest.json").read_text()) == {**MARK, "used_by": [str(host.state)]}


def test_running_server_of_another_deployment_is_found(host):
    program = host.root / "opt/runtime/bin/llama-server"
    program.parent.mkdir(parents=True)
    program.symlink_to("/bin/sleep")
    prefix = str(host.root / "opt/runtime")
    with subprocess.Popen([program, "60"], env={"MAGI_LLAMA_STATE": "/srv/other"}) as process:
        try:
            # The kernel shows the new environment a moment after the program has started.
            deadline = time.monotonic() + 10
            while not (kept := shared.kept_for_others(str(host.state), "/x/registry.json", prefix, None)):
                assert time.monotonic() < deadline
        finally:
            process.kill()
    assert kept == {prefix: ["/srv/other"]}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
@pytest.mark.parametrize("state", [b"/own\xff\x1b[31m", b"other", b"untrusted"])
def test_process_of_any_user_does_not_hold_up_teardown(host, state):
    prefix, folder = host.root / "opt/runtime", os.path.join(bytes(host.root), state)
    host.write("opt/runtime/manifest.json", text=json.dumps(MARK))
    (host.root / "other").mkdir()
    deployed(host.root / "untrusted", prefix / "bin/llama-server")
    os.chown(host.root / "untrusted", 65534, -1)
    asked = (str(host.state), "/x/registry.json", str(prefix), "/x/cache.json")
    argv, env = [str(prefix / "bin/llama-server"), "60"], {b"MAGI_LLAMA_STATE": folder}
    with subprocess.Popen(argv, executable="/bin/sleep", env=env, user=65534) as process:
        try:
            # The kernel shows the new environment a moment after the program has started.
            deadline = time.monotonic() + 10
            while folder not in Path(f"/proc/{process.pid}/environ").read_bytes():
                assert time.monotonic() < deadline
            assert shared.kept_for_others(*asked) == {}
        finally:
            process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_state_directory_of_another_user_counts_if_root_has_a_unit_of_it(host):
    prefix = host.root / "opt/runtime"
    host.write("opt/runtime/manifest.json", text=json.dumps({**MARK, "used_by": [str(host.root / "other")]}))
    deployed(host.root / "other", prefix / "bin/llama-server")
    os.chown(host.root / "other", 65534, -1)
    assert shared.kept_for_others(str(host.state), "/x/registry.json", str(prefix), None) == {}
    host.unit("b", host.root / "other")
    assert list(shared.kept_for_others(str(host.state), "/x/registry.json", str(prefix), None)) == [str(prefix)]


def test_module_shows_names_without_control_characters(host, run, monkeypatch):
    path = f"{host.root}/registry\x1b[31m.json"
    Path(path).write_text(REGISTRY)
    monkeypatch.setattr(module, "kept_for_others", lambda *_given: {path: ["/own\udcff\x1b[31m"]})
    shown = f"{host.root}/registry\\x1b[31m.json"
    result = run(state_dir=str(host.state), registry_path=path)
    assert result["kept"] == {shown: [r"/own\xff\x1b[31m"]}
    assert f"{shown} stays, as another deployment uses it: " in result["msg"]
    monkeypatch.setattr(module, "kept_for_others", lambda *_given: {})
    assert run(state_dir=str(host.state), registry_path=path)["removed"][0] == shown


def test_removal_that_this_user_cannot_finish_touches_nothing(host, monkeypatch):
    host.record("a")
    host.write("opt/runtime/manifest.json", text=json.dumps(MARK))
    closed = str(host.root / "opt")
    paths = teardown.owned_paths(str(host.state), None, str(host.root / "opt/runtime"), None).paths
    before = host.left()
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != closed)
    with pytest.raises(teardown.TeardownError, match=r"cannot remove .*/opt/runtime. Nothing was stopped or removed"):
        teardown.require_removable(paths, str(host.state))
    assert host.left() == before
    monkeypatch.undo()
    teardown.require_removable(paths, str(host.state))


def test_teardown_without_root_leaves_what_root_has_deployed(host, monkeypatch):
    host.record("a")
    host.write("opt/runtime/manifest.json", "opt/runtime.previous/manifest.json", text=json.dumps(MARK))
    host.write("cache/runtime.json", "cache/.magi-llama-1.tmp", "var/registry.json", "units/.magi-llama-2.tmp")
    host.write("units/magi-llama.target")
    wanted = [str(host.root / path) for path in ("var/registry.json", "opt/runtime", "cache/runtime.json")]
    lstat, uid = os.lstat, os.getuid() + 1

    def of_root(path, **more):
        found = lstat(path, **more)
        return found if str(path).startswith(str(host.state)) else os.stat_result((*found[:4], 0, *found[5:]))

    monkeypatch.setattr(os, "lstat", of_root)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(os, "access", lambda path, _mode: str(path).startswith(str(host.state)))
    assert teardown.of_others(wanted) == dict.fromkeys(wanted, "the user root")
    assert teardown.owned_paths(str(host.state), *wanted).paths == [str(host.state / "servers.json")]
    # Root removes all of it, and a user what is the user's own.
    monkeypatch.setattr(os, "lstat", lstat)
    assert teardown.of_others(wanted) == dict.fromkeys(wanted, ownership.name_of(os.getuid()))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert teardown.of_others(wanted) == {}


def test_state_is_removed_last(host, monkeypatch):
    host.record("a")
    host.write("opt/runtime/manifest.json", text=json.dumps(MARK))

    def rmtree(path, *_more):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(teardown.shutil, "rmtree", rmtree)
    with pytest.raises(teardown.TeardownError):
        host.take_down(prefix=str(host.root / "opt/runtime"))
    assert "app/servers.json" in host.left()


@pytest.mark.parametrize(
    ("signals", "text"),
    [
        ({}, ""),
        ({"a": "SIGTERM"}, "1 server stopped"),
        ({"a": "SIGTERM", "b": "SIGTERM"}, "2 servers stopped"),
        ({"a": "SIGTERM", "c": "SIGKILL", "b": "SIGKILL"}, "3 servers stopped (2 by SIGKILL: b, c)"),
        ({"a": "SIGABRT", "b": "SIGKILL"}, "2 servers stopped (1 by SIGABRT: a; 1 by SIGKILL: b)"),
    ],
)
def test_stop_signals_are_reported(signals, text):
    assert base.ended_text(signals) == text
