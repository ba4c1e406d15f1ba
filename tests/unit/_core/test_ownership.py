# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What root trusts: a path that no one else can change. Every file that root obeys is read by this rule."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core import commands, ownership, run_lock
from ansible_collections.magi.llama.plugins.module_utils._core.commands import Completed, ids_of, run_command
from ansible_collections.magi.llama.plugins.module_utils._core.ownership import OwnershipError, require_trusted
from ansible_collections.magi.llama.plugins.module_utils._deployment import record, teardown
from ansible_collections.magi.llama.plugins.module_utils._health import observations
from ansible_collections.magi.llama.plugins.module_utils._models import registry_file
from ansible_collections.magi.llama.plugins.module_utils._runtime import probe
from ansible_collections.magi.llama.plugins.module_utils._services.supervisor_driver import SupervisorDriver

OTHER = 4321
RUN = run_lock.Run("id", "ops", "ann", 1, "site.yml")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path, as a socket's path has a limit."""
    with tempfile.TemporaryDirectory(prefix="magi-") as folder:
        yield Path(folder)


def make(folder: Path) -> Path:
    """A file two folders below another."""
    path = folder / "a" / "b" / "file"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    for part in (folder / "a", folder / "a" / "b", path):
        part.chmod(0o755)
    return path


@as_root
def test_path_of_root_is_trusted(tmp_path: Path) -> None:
    path = make(tmp_path)
    (tmp_path / "link").symlink_to(path)
    require_trusted(str(path))
    require_trusted(str(tmp_path / "link"))
    require_trusted(str(path.parent / "missing" / "file"))


@as_root
@pytest.mark.parametrize("place", ["a", "a/b", "a/b/file"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: os.chown(path, OTHER, 0), f"belongs to uid {OTHER}"),
        (lambda path: path.chmod(0o775), "is writable for its group (mode 0775)"),
        (lambda path: path.chmod(0o777), "is writable for its group and others (mode 0777)"),
    ],
)
def test_path_that_others_change_is_named(
    tmp_path: Path, place: str, change: Callable[[Path], None], said: str
) -> None:
    path = make(tmp_path)
    change(tmp_path / place)
    for wanted in (path, path.parent / "missing") if place != "a/b/file" else (path,):
        with pytest.raises(OwnershipError, match=re.escape(f"{tmp_path / place} {said}")):
            require_trusted(str(wanted))


@as_root
def test_link_is_followed_to_what_others_change(tmp_path: Path) -> None:
    path = make(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "link").symlink_to("../a/b")
    require_trusted(str(tmp_path / "x" / "link" / "file"))
    os.chown(path.parent, OTHER, 0)
    with pytest.raises(OwnershipError, match=f"^{path.parent} belongs to"):
        require_trusted(str(tmp_path / "x" / "link" / "file"))
    os.chown(path.parent, 0, 0)
    os.chown(tmp_path / "x" / "link", OTHER, 0, follow_symlinks=False)
    with pytest.raises(OwnershipError, match=f"^{tmp_path / 'x' / 'link'} belongs to"):
        require_trusted(str(tmp_path / "x" / "link" / "file"))


@as_root
def test_sticky_folder_of_root_is_trusted(tmp_path: Path) -> None:
    path = make(tmp_path)
    path.parent.chmod(0o1777)
    require_trusted(str(path))
    os.chown(path, OTHER, 0)
    with pytest.raises(OwnershipError, match=f"^{path} belongs to"):
        require_trusted(str(path))


@as_root
def test_named_owner_is_trusted_like_root(tmp_path: Path) -> None:
    path = make(tmp_path)
    os.chown(path, 1, 0)
    with pytest.raises(OwnershipError, match="belongs to the user daemon"):
        require_trusted(str(path))
    require_trusted(str(path), "daemon")
    with pytest.raises(OwnershipError, match="no user magi-test-missing"):
        require_trusted(str(path), "magi-test-missing")


def test_user_without_root_may_use_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path).chmod(0o777)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    require_trusted(str(tmp_path / "a/b/file"))


STATE_READERS = {
    "lock": lambda state: run_lock.acquire(state, RUN),
    "holder": run_lock.holder,
    "record": record.read_record,
    "intended": record.read_intended,
    "previous": record.read_previous_deployment,
    "observations": observations.ready_revisions,
    "registry": lambda state: registry_file.load(f"{state}/registry.json"),
    "programs": lambda state: SupervisorDriver(state).start(["x"]),
    "teardown": lambda state: teardown.owned_paths(state, f"{state}/registry.json", None, None),
}


@as_root
@pytest.mark.parametrize("reader", STATE_READERS)
def test_state_directory_of_another_user_is_refused(short: Path, reader: str) -> None:
    state = short / "state"
    (state / "supervisor" / "conf.d").mkdir(parents=True)
    os.chown(state, OTHER, OTHER)
    with pytest.raises(OwnershipError, match=f"^{state} belongs to uid {OTHER}"):
        STATE_READERS[reader](str(state))
    assert sorted(path.name for path in state.iterdir()) == ["supervisor"]


@as_root
def test_supervisor_program_of_another_user_is_refused(short: Path) -> None:
    program = short / "supervisor" / "conf.d" / "x.conf"
    program.parent.mkdir(parents=True)
    program.write_text("[program:x]\ncommand=/bin/sh\n")
    os.chown(program, OTHER, OTHER)
    with pytest.raises(OwnershipError, match=f"^{program} belongs to uid {OTHER}"):
        SupervisorDriver(str(short)).start(["x"])


@as_root
def test_binary_and_cache_of_another_user_are_refused(tmp_path: Path) -> None:
    binary, cache = tmp_path / "llama-server", tmp_path / "cache.json"
    for path in (binary, cache):
        path.write_text("{}")

    def never(*_arguments: object) -> Completed:
        raise AssertionError("it was run")

    os.chown(cache, OTHER, 0)
    with pytest.raises(OwnershipError, match=f"^{cache} belongs to"):
        probe.probe(str(binary), never, cache_path=str(cache))
    os.chown(binary, OTHER, 0)
    with pytest.raises(OwnershipError, match=f"^{binary} belongs to"):
        probe.probe(str(binary), never)


@as_root
def test_binary_is_asked_as_servers_user() -> None:
    assert ids_of("daemon") == commands.User(1, 1, ids_of("daemon").groups)
    assert run_command(["id", "-u"], {"PATH": "/usr/bin:/bin"}, user=ids_of("daemon")).stdout == "1\n"
    # Not made yet.
    done = run_command(["id", "-u"], {"PATH": "/usr/bin:/bin"}, user=ids_of("magi-test-missing"))
    assert done.stdout == f"{commands.UNPRIVILEGED}\n"


@as_root
def test_prefix_of_another_user_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"managed_by": "magi.llama"}')
    assert ownership.is_own_folder(str(tmp_path))
    os.chown(tmp_path, OTHER, 0)
    assert not ownership.is_own_folder(str(tmp_path))
