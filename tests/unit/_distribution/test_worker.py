# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process of a run: it outlives the call that starts it, takes pieces from the connection, and is ended."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.boot import pid_scope
from ansible_collections.magi.llama.plugins.module_utils._core.ownership import OwnershipError
from ansible_collections.magi.llama.plugins.module_utils._distribution import worker
from ansible_collections.magi.llama.plugins.module_utils._distribution.job import Job
from ansible_collections.magi.llama.plugins.module_utils._distribution.owner import as_owner_of, keep_rights
from ansible_collections.magi.llama.plugins.module_utils._distribution.part_file import make_parents
from ansible_collections.magi.llama.plugins.module_utils._distribution.worker import (
    FOLDER,
    WorkerError,
    deliver,
    holder_of,
    look_at,
    own_addresses,
    stop_worker,
)

SECONDS = 20.0


def start(job: Job, rights: str = "") -> None:
    """Start the process as a module does, in a program of its own that then ends. rights is a with statement."""
    code = f"""
        from ansible_collections.magi.llama.plugins.module_utils._distribution.job import Job, JobFile, JobPeer
        from ansible_collections.magi.llama.plugins.module_utils._distribution.owner import as_owner_of
        from ansible_collections.magi.llama.plugins.module_utils._distribution.pieces import Pieces
        from ansible_collections.magi.llama.plugins.module_utils._distribution.worker import start_worker
        {rights}start_worker({job!r})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=_environment(), timeout=SECONDS)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.fixture
def job(fleet: Any) -> Any:
    made = fleet.job("a", ["a"])
    yield made
    stop_worker(made.folder)


def inbox(fleet: Any, job: Job, data: bytes | None = None) -> None:
    """Deliver all pieces, as if they had come through the connection."""
    pieces = [[0, n, fleet.pieces.length(n)] for n in range(len(fleet.pieces.digests))]
    deliver(job.folder, fleet.data if data is None else data, pieces)


def test_pieces_through_the_connection_make_the_file(fleet: Any, job: Job) -> None:
    start(job)
    assert look_at(job.folder, job.run, 0.0)["complete"] is False
    inbox(fleet, job)
    status = look_at(job.folder, job.run, SECONDS)
    assert (status["complete"], status["controller"]) == (True, len(fleet.data))
    assert fleet.path("a").read_bytes() == fleet.data
    assert stop_worker(job.folder, job.run)
    assert not (Path(job.folder) / FOLDER).exists()


def test_piece_that_changed_on_the_way_is_an_error(fleet: Any, job: Job) -> None:
    start(job)
    inbox(fleet, job, b"\0" * len(fleet.data))
    assert "has changed on the controller" in look_at(job.folder, job.run, SECONDS)["error"]


def test_killed_process_is_reported_and_replaced(job: Job) -> None:
    start(job)
    lock = str(Path(job.folder) / FOLDER / "lock")
    pid = holder_of(lock)
    assert pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"has ended.*\.part files: run again"):
        look_at(job.folder, job.run, SECONDS)
    start(job)
    assert holder_of(lock) not in (None, pid)


def test_later_run_ends_the_earlier(fleet: Any, job: Job) -> None:
    start(job)
    later = Job(**{**vars(job), "run": "run-2"})
    start(later)
    with pytest.raises(WorkerError, match="Another run distributes models"):
        look_at(job.folder, job.run, SECONDS)
    # The end of the earlier run leaves the process of the later one alone.
    assert not stop_worker(job.folder, job.run)
    assert look_at(job.folder, later.run, 0.0)["run"] == "run-2"


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has no part in any run."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def models() -> Iterator[Path]:
    """A folder that other users reach, which is not so of those of pytest."""
    with tempfile.TemporaryDirectory(prefix="magi-llama-models-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has other users' rights")
def test_process_of_root_is_the_owners_and_is_ended_with_the_owners_rights(fleet: Any, models: Path) -> None:
    job = Job(**{**vars(fleet.job("a", ["a"])), "folder": str(models)})
    os.chown(models, 1, 1)
    start(job, f"with as_owner_of({str(models)!r}): ")
    with as_owner_of(str(models)):
        pid = holder_of(str(models / FOLDER / "lock"))
    assert "Uid:\t1\t1\t1\t1\n" in Path(f"/proc/{pid}/status").read_text()
    with as_owner_of(str(models)):
        assert stop_worker(job.folder, job.run)


def held_lock(folder: Path, text: str, owner: int | None = None) -> int:
    """A lock as another program could have it, with this text. The descriptor has to stay open."""
    (folder / FOLDER).mkdir()
    descriptor = os.open(folder / FOLDER / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    os.write(descriptor, text.encode())
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    if owner is not None:
        for path in (folder, folder / FOLDER, folder / FOLDER / "lock"):
            os.chown(path, owner, owner)
    return descriptor


def test_folder_that_someone_else_has_put_there_is_not_used(job: Job, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    own = Path(job.folder) / FOLDER
    own.symlink_to(target)
    with pytest.raises(WorkerError, match=r"\.magi-llama-fetch cannot be removed by this user, or is a link"):
        worker.start_worker(job)
    assert list(target.iterdir()) == []
    own.unlink()


def test_files_of_a_run_are_its_users_alone_and_lead_nowhere_else(job: Job, tmp_path: Path) -> None:
    target = tmp_path / "target"
    mask = os.umask(0)
    try:
        worker.make_own_folder(job.folder)
        own = Path(job.folder) / FOLDER
        for link in ("status.json.new", "inbox/.0-0", "polled"):
            (own / link).symlink_to(target)
        worker._write_status(str(own / "status.json"), {"run": job.run})
        deliver(job.folder, b"piece", [[0, 0, 5]])
        worker._touch(str(own / "polled"))
    finally:
        os.umask(mask)
    assert not target.exists()
    assert (own / "inbox/0-0").read_bytes() == b"piece"
    modes = {path: stat.S_IMODE((own / path).stat().st_mode) for path in (".", "inbox", "inbox/0-0", "status.json")}
    assert modes == {".": 0o700, "inbox": 0o700, "inbox/0-0": 0o600, "status.json": 0o600}


def test_error_is_reported_from_a_full_disk(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.make_own_folder(job.folder)
    path = Path(job.folder) / FOLDER / "status.json"
    begun = {"run": job.run, "complete": False, "error": "", "pieces": {"0": "f" * 1000}}
    worker._write_status(str(path), begun)
    before = path.read_bytes()

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker, "_write_new", full)
    worker._write_status(str(path), begun)
    assert path.read_bytes() == before
    worker._write_status(str(path), {**begun, "error": "No space left on device"})
    status = look_at(job.folder, job.run, 0.0)
    assert (status["error"], status["pieces"]) == ("No space left on device", {})


def test_process_reports_while_it_reads_what_an_earlier_run_has_copied(
    fleet: Any, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = fleet.path("a").with_name(fleet.path("a").name + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(fleet.data)
    worker.make_own_folder(job.folder)
    monkeypatch.setattr(worker, "OPENING_SECONDS", -1.0)
    monkeypatch.setattr(worker, "LEASE_SECONDS", 0.0)
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(worker, "_write_status", lambda _path, status: written.append(status))
    worker.run_job(job)
    assert written == [{"run": job.run, "complete": False, "error": ""}] * len(fleet.pieces.digests)


@pytest.mark.parametrize("scope", ["", " another-machine.1"])
def test_process_of_another_machine_is_not_ended(
    tmp_path: Path, bystander: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    monkeypatch.setattr(worker, "STOP_SECONDS", 0.3)
    descriptor = held_lock(tmp_path, f"{bystander.pid}{scope}\n")
    try:
        with pytest.raises(WorkerError, match=r"of another machine or user .* need one run on one of them"):
            stop_worker(str(tmp_path))
    finally:
        os.close(descriptor)
    assert bystander.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has other users' rights")
def test_root_ends_no_process_that_the_owner_could_not_end(
    models: Path, bystander: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "STOP_SECONDS", 0.3)
    descriptor = held_lock(models, f"{bystander.pid} {pid_scope()}\n", owner=1)
    try:
        with as_owner_of(str(models)), pytest.raises(WorkerError, match=rf"The process {bystander.pid} .* by hand"):
            stop_worker(str(models))
        # A lock that another user has made.
        assert holder_of(str(models / FOLDER / "lock")) == 0
    finally:
        os.close(descriptor)
    assert (bystander.poll(), os.getresuid()) == (None, (0, 0, 0))


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("192.0.2.7", ["192.0.2.7", "0.0.0.0"]),
        ("2001:db8::7", ["2001:db8::7", "::"]),
        ("name.invalid", ["0.0.0.0"]),
    ],
)
def test_host_listens_where_it_is_reached(host: str, addresses: list[str]) -> None:
    assert own_addresses(host) == addresses


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has other users' rights")
def test_root_works_as_the_owner_of_the_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, 1, 2)
    before = (os.getgroups(), os.getegid())
    with as_owner_of(str(tmp_path)):
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (1, 2, [])
        if os.fork() == 0:
            keep_rights()
            os._exit(os.getresuid() != (1, 1, 1) or os.getresgid() != (2, 2, 2))
        assert os.wait()[1] == 0
    assert (os.geteuid(), os.getgroups(), os.getegid()) == (0, *before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is asked")
def test_root_makes_no_folder_in_one_of_another_user(models: Path) -> None:
    (models / "alice").mkdir()
    os.chown(models / "alice", 1, 1)
    with pytest.raises(OwnershipError, match=r"/alice belongs to .*root does not use it"):
        make_parents(str(models), "alice/new/model.gguf")
    assert list((models / "alice").iterdir()) == []
    make_parents(str(models), "own/new/model.gguf")
    assert (models / "own/new").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is asked")
def test_root_does_not_write_where_others_could_lead_it_elsewhere(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(OwnershipError, match="is writable for its group and others"), as_owner_of(str(tmp_path)):
        pass
