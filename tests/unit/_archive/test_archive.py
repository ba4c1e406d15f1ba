# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups: what of a host's state is read, how it travels, and which archives are refused."""

from __future__ import annotations

import io
import os
import sqlite3
import tarfile
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._archive import archive, folder, restore, state, zstd
from ansible_collections.magi.llama.plugins.module_utils._archive.retention import Keep
from ansible_collections.magi.llama.plugins.module_utils._archive.state import StateError, StateFile
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import write_all
from support.schemas import errors

NOW = datetime(2026, 11, 28, 2, 15, tzinfo=timezone.utc)
DIGEST = "0" * 64
RECORD = (
    b'{"schema_version": 2, "collection_version": "0.2.0", "deployed": {"profile": null, "service_manager": null, '
    b'"servers": []}, "intended": {}, "previous": null}'
)
FILES = {"deployment.json": RECORD, "registry.json": b"{}"}


@pytest.fixture
def host(tmp_path: Path) -> dict[str, str]:
    """The places of a host with a record, a registry and a key file."""
    for name, content in (*FILES.items(), ("api-keys", b"secret\n")):
        (tmp_path / name).write_bytes(content)
    return state.places(str(tmp_path), str(tmp_path / "registry.json"), "auto")


def stored(tmp_path: Path, files: dict[str, bytes] = FILES, **given: str) -> str:
    return folder.store(str(tmp_path / "h"), files, given.get("host", "h"), DIGEST, NOW)


def with_member(path: str, member: tarfile.TarInfo, content: bytes = b"") -> None:
    """Add a member, and write the checksum again as one who may write to the folder could."""
    stream = io.BytesIO(zstd.decompress(Path(path).read_bytes(), 1 << 20))
    with tarfile.open(fileobj=stream, mode="a") as tar:
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    Path(path).write_bytes(zstd.stored(stream.getvalue()))
    sign(path)


def sign(path: str) -> None:
    digest = archive.hashlib.sha256(Path(path).read_bytes()).hexdigest()
    Path(path + ".sha256").write_text(f"# state {DIGEST}\n{digest}  {os.path.basename(path)}\n")


def test_state_is_read_and_travels(host: dict[str, str]) -> None:
    files = state.read_state(host)
    assert [file.name for file in files] == ["deployment.json", "registry.json", "api-keys"]
    answer = state.to_answer(files, "")
    assert state.unpacked(answer["files"]) == files and answer["digest"] == state.digest_of(files)
    # Nothing is sent that is there already.
    assert state.to_answer(files, answer["digest"]) == {"digest": answer["digest"]}
    Path(host["registry.json"]).write_text('{"a": 1}')
    assert state.to_answer(state.read_state(host), answer["digest"])["digest"] != answer["digest"]


def test_keys_are_read_only_where_they_have_a_place(host: dict[str, str]) -> None:
    assert state.KEYS not in state.places("/s", "/r", None)
    del host[state.KEYS]
    assert [file.name for file in state.read_state(host)] == ["deployment.json", "registry.json"]


def test_host_without_record_has_no_state(host: dict[str, str]) -> None:
    os.unlink(host["deployment.json"])
    assert state.to_answer(state.read_state(host), None) == {"digest": ""}


def test_record_that_is_a_link_or_too_large_is_an_error(host: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(state.MAX_BYTES, "deployment.json", 10)
    with pytest.raises(StateError, match="larger than"):
        state.read_state(host)
    os.unlink(host["deployment.json"])
    os.symlink("/etc/passwd", host["deployment.json"])
    with pytest.raises(StateError, match=r"deployment.json cannot be backed up: it is not a regular file"):
        state.read_state(host)


def test_files_of_a_host_are_held_to_names_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    [packed] = state.packed([StateFile("registry.json", b"x" * 1000)])
    with pytest.raises(StateError, match="not expected"):
        state.unpacked([{**packed, "name": "../x"}])
    with pytest.raises(StateError, match="not expected"):
        state.unpacked([packed, packed])
    with pytest.raises(StateError, match="damaged"):
        state.unpacked([{**packed, "data": "?"}])
    monkeypatch.setitem(state.MAX_BYTES, "registry.json", 999)
    with pytest.raises(StateError, match="larger than"):
        state.unpacked([packed])


def test_files_without_meaning_are_named() -> None:
    wrong = [StateFile("deployment.json", b"[1]"), StateFile("registry.json", b"{"), StateFile("api-keys", b"# none\n")]
    assert [text.split(" ")[0] for text in archive.faults(wrong)] == ["deployment.json", "registry.json", "api-keys"]
    assert archive.faults([StateFile("deployment.json", RECORD), StateFile("api-keys", b"key\n")]) == []


def test_backup_is_private_complete_and_described(tmp_path: Path) -> None:
    path = stored(tmp_path)
    assert path.endswith("/h/20261128T021500Z.tar.zst")
    assert [os.stat(one).st_mode & 0o777 for one in (path, f"{path}.sha256", tmp_path / "h")] == [0o600, 0o600, 0o700]
    found = folder.load(path, "h")
    assert found.files == FILES and found.taken_at == "20261128T021500Z"
    assert folder.newest(str(tmp_path / "h")) == folder.Newest("20261128T021500Z", DIGEST)
    assert stored(tmp_path).endswith("/20261128T021501Z.tar.zst")
    manifest = archive._members(zstd.decompress(Path(path).read_bytes(), 1 << 20))["manifest.json"]
    assert errors("backup", archive.json.loads(manifest)) == []


def test_truncated_and_changed_archives_are_refused_by_name(tmp_path: Path) -> None:
    path = stored(tmp_path)
    data = Path(path).read_bytes()
    for changed in (data[:-1], data[:100], data[:50] + b"\xff" + data[51:], b""):
        Path(path).write_bytes(changed)
        with pytest.raises(StateError, match=f"{path} is not used: it is truncated or was changed"):
            folder.load(path, "h")
        found = folder.newest(str(tmp_path / "h"))
        assert found.state == "" and path in found.fault
    # With a checksum to match, the archive itself says so.
    Path(path).write_bytes(data[:-1])
    sign(path)
    with pytest.raises(StateError, match=f"{path} is not used: it is (truncated|damaged)"):
        folder.load(path, "h")
    os.unlink(f"{path}.sha256")
    with pytest.raises(StateError, match=r"its checksum 20261128T021500Z.tar.zst.sha256 is missing"):
        folder.load(path, "h")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("x", tarfile.REGTYPE), ("../x", tarfile.REGTYPE), ("api-keys.vault", tarfile.SYMTYPE), ("d", tarfile.DIRTYPE)],
)
def test_members_that_a_backup_does_not_have_are_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    path = stored(tmp_path)
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/shadow" if kind == tarfile.SYMTYPE else ""
    with_member(path, member)
    with pytest.raises(StateError, match=f"has the member '{name}', which a backup does not have"):
        folder.load(path, "h")


def test_changed_and_additional_files_are_refused(tmp_path: Path) -> None:
    path = stored(tmp_path, {"deployment.json": RECORD})
    with_member(path, tarfile.TarInfo("registry.json"), b"{}")
    with pytest.raises(StateError, match="its files are not those of its manifest"):
        folder.load(path, "h")
    data = zstd.decompress(archive.build(FILES, "h", NOW, DIGEST), 1 << 20)
    Path(path).write_bytes(zstd.stored(data.replace(b'"intended": {}', b'"intended":{ }')))
    sign(path)
    with pytest.raises(StateError, match=r"deployment.json was changed: the manifest has another SHA-256"):
        folder.load(path, "h")


def test_backup_of_another_host_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="a backup of the host 'other', not of h"):
        folder.load(stored(tmp_path, host="other"), "h")


def test_backup_is_chosen_by_time(tmp_path: Path) -> None:
    place = str(tmp_path / "h")
    with pytest.raises(StateError, match="There is no backup in"):
        folder.chosen(place, "latest")
    first, second = stored(tmp_path), stored(tmp_path)
    assert folder.chosen(place, "latest") == second
    assert folder.chosen(place, "20261128T021500Z") == folder.chosen(place, "2026-11-28T02:15:00Z") == first
    with pytest.raises(StateError, match="one of: 20261128T021500Z, 20261128T021501Z"):
        folder.chosen(place, "../other/20261128T021500Z")


def test_newest_backup_is_the_latest_where_the_clock_has_gone_back(tmp_path: Path) -> None:
    place = str(tmp_path / "h")
    first = stored(tmp_path)
    os.link(first, f"{place}/20269999T000000Z.tar.zst")
    second = folder.store(place, {"deployment.json": RECORD}, "h", DIGEST, NOW - timedelta(days=3))
    assert second.endswith("/20261128T021501Z.tar.zst")
    assert folder.times(place) == ["20261128T021500Z", "20261128T021501Z"]
    assert folder.newest(place).time == "20261128T021501Z" and folder.chosen(place, "latest") == second
    assert folder.load(second, "h").taken_at == "20261128T021501Z"
    assert folder.prune(place, Keep(1, 0, 0, 0)) == ["20261128T021500Z"]


def test_pruning_removes_archives_with_their_checksums(tmp_path: Path) -> None:
    for _number in range(4):
        path = stored(tmp_path)
    (tmp_path / "h/20269999T000000Z.tar.zst").write_bytes(b"not ours")
    assert folder.prune(str(tmp_path / "h"), Keep(2, 0, 0, 0)) == ["20261128T021500Z", "20261128T021501Z"]
    left = sorted(os.listdir(tmp_path / "h"))
    assert len(left) == 5 and os.path.basename(path) in left and "20269999T000000Z.tar.zst" in left


@pytest.mark.parametrize("host", ["gpu-1", "user@gpu-1.example.com", "10.0.0.1", "::1"])
def test_usual_names_of_hosts_are_their_folders(host: str) -> None:
    assert folder.host_folder("/b", host) == f"/b/{host}"


@pytest.mark.parametrize("host", ["..", ".", "../etc", "/etc", "a/../../b", ".ssh", "a\x00b", "a b", "ä"])
def test_no_name_of_a_host_leads_out_of_the_folder(host: str) -> None:
    found = folder.host_folder("/b", host)
    assert os.path.dirname(found) == "/b" and not os.path.basename(found).startswith(".") and "\x00" not in found
    assert os.path.normpath(found) == found


def test_hosts_without_a_usable_name_are_refused() -> None:
    for host in ("", "x" * 256):
        with pytest.raises(StateError):
            folder.host_folder("/b", host)


def test_restored_files_are_those_that_differ(host: dict[str, str], tmp_path: Path) -> None:
    files = state.read_state(host)
    assert restore.changes(files, host) == []
    os.chmod(host["api-keys"], 0o640)
    Path(host["api-keys"]).write_text("other\n")
    os.unlink(host["deployment.json"])
    found = restore.changes(files, host)
    assert [(os.path.basename(file.path), file.mode) for file in found] == [
        ("deployment.json", 0o644),
        ("api-keys", 0o640),
    ]
    assert "secret" not in str(restore.diff_of(found, host)) and "other" not in str(restore.diff_of(found, host))
    write_all(found)
    assert restore.changes(files, host) == []
    with pytest.raises(StateError, match="Set servers_api_key_file"):
        restore.changes(files, {name: path for name, path in host.items() if name != "api-keys"})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another group")
def test_restored_key_file_keeps_its_group(host: dict[str, str]) -> None:
    files = state.read_state(host)
    Path(host["api-keys"]).write_text("other\n")
    os.chown(host["api-keys"], 0, 4711)
    os.chmod(host["api-keys"], 0o640)
    write_all(restore.changes(files, host))
    status = os.stat(host["api-keys"])
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, 4711, 0o640)
    assert Path(host["api-keys"]).read_bytes() == b"secret\n"


def test_database_of_a_running_console_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "console.db"
    with closing(sqlite3.connect(path)) as console:
        console.executescript("pragma journal_mode = wal; create table jobs (id text); insert into jobs values ('a');")
        files = state.read_state({state.DATABASE: str(path)})
        # As long as nothing is written the copy is the same.
        assert state.digest_of(files) == state.digest_of(state.read_state({state.DATABASE: str(path)}))
        console.executescript("insert into jobs values ('b');")
        assert state.digest_of(files) != state.digest_of(state.read_state({state.DATABASE: str(path)}))
    assert archive.faults(files) == []
    stored_path = stored(tmp_path, {file.name: file.content for file in files})
    (tmp_path / "copy.db").write_bytes(folder.load(stored_path, "h").files["console.db"])
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("select id from jobs").fetchall() == [("a",)]
    with pytest.raises(StateError, match=r"has no deployment.json"):
        archive.state_files(folder.load(stored_path, "h"), None)


def test_database_that_another_process_locks_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "console.db"
    monkeypatch.setattr(state, "BACKUP_SECONDS", 0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.executescript("create table jobs (id text); begin exclusive;")
        with pytest.raises(StateError, match=r"console.db cannot be backed up: another process has locked it for 0 s"):
            state.read_state({state.DATABASE: str(path)})
        other.execute("rollback")
    # What is not locked is copied, however long that takes.
    assert state.read_state({state.DATABASE: str(path)})


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    assert state.read_state({state.DATABASE: str(tmp_path / "console.db")}) == []
    (tmp_path / "console.db").write_bytes(b"x" * 5000)
    with pytest.raises(StateError, match=r"console.db cannot be backed up: file is not a database"):
        state.read_state({state.DATABASE: str(tmp_path / "console.db")})
    assert archive.faults([StateFile("console.db", b"x")]) == ["console.db is not a database of SQLite"]
    os.unlink(tmp_path / "console.db")
    os.symlink("/etc/passwd", tmp_path / "console.db")
    with pytest.raises(StateError, match="not a regular file"):
        state.read_state({state.DATABASE: str(tmp_path / "console.db")})
