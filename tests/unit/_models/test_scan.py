# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scanning folders, and reusing results."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._models import read_files, registry_file
from ansible_collections.magi.llama.plugins.module_utils._models import scan as scan_module
from ansible_collections.magi.llama.plugins.module_utils._models.listing import list_files
from ansible_collections.magi.llama.plugins.module_utils._models.registry_file import (
    REGISTRY,
    Kept,
    RegistryError,
    diff_lines,
    load,
    printable,
    require,
    save,
    serialize,
    short_content,
)
from ansible_collections.magi.llama.plugins.module_utils._models.scan import Scan, scan
from support import gguf_files as make
from support.work import counted

Scanner = Callable[..., Scan]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def rescan(models: Path, tmp_path: Path) -> Scanner:
    """Scan as the module does, with the registry file kept between scans."""

    def run(**options: Any) -> Scan:
        path = str(tmp_path / "registry.json")
        kept = load(path)
        result = scan([str(models)], kept, workers=1, **options)
        if kept.content != result.content:
            save(path, result.content)
        return result

    return run


def paths(result: Scan, part: str = "models") -> list[str]:
    return [os.path.basename(record["path"]) for record in result.content[part]]


def reasons(result: Scan) -> dict[str, str]:
    return {os.path.basename(record["path"]): record["reason"] for record in result.content["rejected"]}


# --- finding ---------------------------------------------------------------------------------------------------------


def test_scan_is_recursive(models: Path, rescan: Scanner) -> None:
    for name in ("a.gguf", "sub/b.gguf", "sub/.hidden/c.GGUF", "sub/deep/er/d.gguf"):
        make.small_model(models / name)
    (models / "readme.md").write_text("x")
    (models / "e.gguf.part").write_text("x")
    (models / "folder.gguf").mkdir()
    (models / "lost+found").mkdir()
    result = rescan()
    assert sorted(paths(result)) == ["a.gguf", "b.gguf", "c.GGUF", "d.gguf"]
    assert result.content["rejected"] == []
    assert result.content["total"] == 4
    assert result.content["scan_paths"] == [str(models)]


@pytest.mark.parametrize(
    "folder", [".Trash-1000", ".Trash", "#recycle", "@eaDir", ".snapshot", ".snapshots", ".zfs", "lost+found"]
)
def test_scan_deleted_files_and_snapshots_are_skipped(models: Path, rescan: Scanner, folder: str) -> None:
    make.small_model(models / "a.gguf")
    make.small_model(models / "sub" / folder / "deep/b.gguf")
    assert paths(rescan()) == ["a.gguf"]


@pytest.mark.parametrize("ending", [".aria2", ".st", ".part", ".crdownload"])
def test_scan_file_with_a_control_file_is_a_download_in_progress(models: Path, rescan: Scanner, ending: str) -> None:
    make.small_model(models / "a.gguf")
    make.small_model(models / "b.gguf")
    control = models / f"b.gguf{ending}"
    control.write_text("x")
    result = rescan()
    assert paths(result) == ["a.gguf"]
    assert reasons(result) == {"b.gguf": f"a download in progress: {control.name} is next to it"}
    control.unlink()
    assert paths(rescan()) == ["a.gguf", "b.gguf"]


def test_scan_paths_all_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"no folder to scan \(looked at: /none, /neither\)"):
        scan(["/none", "/neither"], Kept())
    with pytest.raises(RegistryError, match="looked at: nowhere"):
        scan([], Kept())


def test_scan_without_gguf_files_is_an_error(models: Path) -> None:
    (models / "model.safetensors").write_text("x")
    with pytest.raises(RegistryError, match=f"no GGUF file in {models} or below"):
        scan([str(models)], Kept())


def test_scan_path_missing_is_a_warning(models: Path) -> None:
    make.small_model(models / "a.gguf")
    result = scan([str(models), str(models / "a.gguf"), "/none"], Kept())
    assert paths(result) == ["a.gguf"]
    assert result.warnings == [
        f"The scan path {models / 'a.gguf'} is not a folder.",
        "The scan path /none does not exist.",
    ]


def test_scan_paths_overlapping_find_files_once(models: Path, tmp_path: Path) -> None:
    make.small_model(models / "sub/a.gguf")
    link = tmp_path / "link"
    link.symlink_to(models)
    expected = [str(models / "sub/a.gguf")]
    for order in ([models, models / "sub", link], [link, models / "sub", models]):
        result = scan([str(path) for path in order], Kept())
        assert [record["path"] for record in result.content["models"]] == expected


def test_files_not_regular_are_rejected(models: Path, rescan: Scanner) -> None:
    make.small_model(models / "a.gguf")
    os.mkfifo(models / "fifo.gguf")
    (models / "device.gguf").symlink_to("/dev/zero")
    (models / "loop.gguf").symlink_to(models / "loop.gguf")
    (models / "dangling.gguf").symlink_to(models / "none.gguf")
    (models / "circle").symlink_to(models)
    assert paths(rescan(follow_links=True)) == ["a.gguf"]
    result = rescan()
    assert paths(result) == ["a.gguf"]
    found = reasons(result)
    assert found.pop("device.gguf").startswith("a symlink to /dev/zero, which is outside")
    assert found == {
        "fifo.gguf": "not a regular file",
        "loop.gguf": "cannot be opened: Too many levels of symbolic links",
        "dangling.gguf": "cannot be opened: No such file or directory",
    }


def test_links_out_of_folder_are_rejected_by_default(models: Path, tmp_path: Path, rescan: Scanner) -> None:
    outside = tmp_path / "outside"
    make.small_model(outside / "b.gguf")
    make.small_model(outside / "sub/c.gguf")
    (outside / "sub/back").symlink_to(outside)
    (outside / "sub/home").symlink_to(models)
    make.small_model(models / "a.gguf")
    (models / "b.gguf").symlink_to(outside / "b.gguf")
    (models / "more").symlink_to(outside / "sub")
    result = rescan()
    assert paths(result) == ["a.gguf"]
    assert set(reasons(result)) == {"b.gguf", "more"}
    assert "set follow_links" in reasons(result)["more"]
    followed = rescan(follow_links=True)
    assert [record["path"] for record in followed.content["models"]] == [
        str(models / name) for name in ("a.gguf", "b.gguf", "more/c.gguf")
    ]


def test_links_to_same_folder_resolve_deterministically(
    models: Path, tmp_path: Path, rescan: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    make.small_model(tmp_path / "outside/a.gguf")
    for name in "bcda":
        (models / name).symlink_to(tmp_path / "outside")
    real = os.scandir
    for turned in (False, True):

        @contextlib.contextmanager
        def scandir(path: bytes, turned: bool = turned) -> Iterator[Any]:
            with real(path) as entries:
                yield sorted(entries, key=lambda entry: entry.name, reverse=turned)

        monkeypatch.setattr(os, "scandir", scandir)
        result = rescan(follow_links=True)
        assert [record["path"] for record in result.content["models"]] == [str(models / "a/a.gguf")]


def test_scan_paths_are_normalised(models: Path) -> None:
    make.small_model(models / "sub/a.gguf")
    for path in (f"{models}/", f"/{models}", f"{models}/sub/..", f"{models}//"):
        content = scan([path, str(models)], Kept()).content
        assert content["scan_paths"] == [str(models)]
        assert content["models"][0]["path"] == str(models / "sub/a.gguf")


@pytest.mark.parametrize("swapped", ["file", "folder"])
def test_link_in_place_of_what_was_listed_is_not_followed(models: Path, tmp_path: Path, swapped: str) -> None:
    folder, secret = models / "sub", tmp_path / "secret"
    for place in (folder, secret):
        make.small_model(place / "a-Q4_K_M.gguf")
    [group] = list_files([str(models)]).groups
    assert "models" in read_files.read_group(group)
    if swapped == "file":
        (folder / "a-Q4_K_M.gguf").unlink()
        (folder / "a-Q4_K_M.gguf").symlink_to(secret / "a-Q4_K_M.gguf")
    else:
        folder.rename(models / "aside")
        folder.symlink_to(secret)
    rejected = read_files.read_group(group)["rejected"]
    assert "replaced by a link" in rejected["reason"] and "fingerprint" not in rejected


def test_links_inside_folder_resolve_to_target(models: Path, rescan: Scanner) -> None:
    make.small_model(models / "z.gguf")
    (models / "latest.gguf").symlink_to("z.gguf")
    # As in a Hugging Face cache: the names are symlinks to files without an extension.
    make.small_model(models / "blobs/0123")
    for revision in ("1", "2"):
        (models / "snapshots" / revision).mkdir(parents=True)
        (models / "snapshots" / revision / "hub.gguf").symlink_to(models / "blobs/0123")
    result = rescan()
    assert [record["path"] for record in result.content["models"]] == [
        str(models / "snapshots/1/hub.gguf"),
        str(models / "z.gguf"),
    ]
    assert result.content["rejected"] == []


@pytest.mark.parametrize(
    ("name", "shown", "reason"),
    [
        (b"new\nline.gguf", "new\\nline.gguf", "control character, quote"),
        (b"esc\x1b[2J.gguf", "esc\\x1b[2J.gguf", "control character, quote"),
        (b"it's.gguf", "it's.gguf", "control character, quote"),
        (b'"x".gguf', '"x".gguf', "control character, quote"),
        (b"back\\slash.gguf", "back\\slash.gguf", "control character, quote"),
        (b"-rf.gguf", "-rf.gguf", "begins with a dash"),
        (b"caf\xe9.gguf", "caf\\xe9.gguf", "not UTF-8"),
        (b"\xed\xa0\x80.gguf", "\\xed\\xa0\\x80.gguf", "not UTF-8"),
        (b"sub/-/x.gguf", "x.gguf", "begins with a dash"),
    ],
)
def test_names_not_usable_in_launch_config_are_rejected(
    models: Path, tmp_path: Path, rescan: Scanner, name: bytes, shown: str, reason: str
) -> None:
    path = os.path.join(os.fsencode(models), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as stream:
        stream.write(make.model_bytes(make.llama_values()))
    result = rescan()
    assert result.content["models"] == []
    assert shown in reasons(result) and reason in reasons(result)[shown]
    data = (tmp_path / "registry.json").read_bytes()
    json.loads(data.decode("utf-8").encode("ascii"))
    assert "\\ud" not in data.decode()


def test_names_valid_are_accepted(models: Path, rescan: Scanner) -> None:
    names = ["Qwen 2.5 (7B).gguf", "模型.gguf", "a%b$c.gguf", "x--y.gguf"]
    for name in names:
        make.small_model(models / name)
    assert sorted(paths(rescan())) == sorted(names)


def test_files_unreadable_are_rejected(models: Path, rescan: Scanner, monkeypatch: pytest.MonkeyPatch) -> None:
    make.small_model(models / "a.gguf")
    make.small_model(models / "secret.gguf")
    make.small_model(models / "closed/b.gguf")
    real_open, real_scandir = os.open, os.scandir

    def refuse_open(path: Any, *arguments: Any, **options: Any) -> int:
        if os.fsencode(path).endswith(b"secret.gguf"):
            raise PermissionError(13, "Permission denied", path)
        return real_open(path, *arguments, **options)

    def refuse_scandir(path: Any) -> Any:
        if os.fsencode(path).endswith(b"closed"):
            raise PermissionError(13, "Permission denied", path)
        return real_scandir(path)

    # Root can read everything, so the errors are simulated.
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse_open)
        patch.setattr(os, "scandir", refuse_scandir)
        result = rescan()
    assert paths(result) == ["a.gguf"]
    assert reasons(result) == {
        "secret.gguf": "cannot be opened: Permission denied",
        "closed": "the folder cannot be searched: Permission denied",
    }
    assert sorted(paths(rescan())) == ["a.gguf", "b.gguf", "secret.gguf"]


def test_file_deleted_or_growing_during_scan_is_rejected(
    models: Path, rescan: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.gguf", "gone.gguf", "growing.gguf"):
        make.small_model(models / name)
    real = read_files.read_open_header

    def modify_files(descriptor: int, size: int, budget: Any) -> Any:
        if os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")) == "growing.gguf":
            with open(models / "growing.gguf", "ab") as stream:
                stream.write(b"more")
        return real(descriptor, size, budget)

    listing = list_files([str(models)])
    monkeypatch.setattr(scan_module, "list_files", lambda *_arguments, **_options: listing)
    monkeypatch.setattr(read_files, "read_open_header", modify_files)
    (models / "gone.gguf").unlink()
    result = rescan()
    assert paths(result) == ["a.gguf"]
    assert reasons(result) == {
        "gone.gguf": "cannot be opened: No such file or directory",
        "growing.gguf": "it changed while it was read: scan again later",
    }
    monkeypatch.undo()
    assert sorted(paths(rescan())) == ["a.gguf", "growing.gguf"]


def test_read_error_is_not_cached(models: Path, rescan: Scanner, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.gguf", "b.gguf", "stale.gguf"):
        make.small_model(models / name)
    write = make.write_tiny_llama(models / "tiny-F16.gguf", split_max_tensors=8)
    assert write
    real_pread, real_fstat = os.pread, os.fstat

    def is_open(descriptor: int, *names: str) -> bool:
        return os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")).startswith(names)

    def pread(descriptor: int, *arguments: Any) -> bytes:
        if is_open(descriptor, "a.gguf", "tiny-F16-00002"):
            raise OSError(errno.EIO, "Input/output error")
        return real_pread(descriptor, *arguments)

    looks: list[int] = []

    def fstat(descriptor: int) -> os.stat_result:
        if is_open(descriptor, "stale.gguf"):
            looks.append(descriptor)
            if len(looks) == 2:
                raise OSError(errno.ESTALE, "Stale file handle")
        return real_fstat(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", pread)
        patch.setattr(os, "fstat", fstat)
        result = rescan()
    assert paths(result) == ["b.gguf"]
    assert reasons(result)["a.gguf"] == "cannot be read: Input/output error"
    assert reasons(result)["tiny-F16-00001-of-00003.gguf"].startswith("tiny-F16-00002-of-00003.gguf: cannot be read")
    assert "changed while" in reasons(result)["stale.gguf"]
    assert not any("fingerprint" in record for record in result.content["rejected"])
    assert len(paths(rescan())) == 4


def test_bad_directory_entry_does_not_affect_others(
    models: Path, rescan: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    make.small_model(models / "a.gguf")
    make.small_model(models / "bad.gguf")
    (models / "bad.txt").write_text("x")
    real = os.scandir

    class Entry:
        def __init__(self, entry: os.DirEntry[bytes]) -> None:
            self.name = entry.name
            self._entry = entry

        def is_symlink(self) -> bool:
            if self.name.startswith(b"bad"):
                raise OSError(errno.EIO, "Input/output error")
            return self._entry.is_symlink()

        def is_dir(self, *, follow_symlinks: bool) -> bool:
            return self._entry.is_dir(follow_symlinks=follow_symlinks)

    @contextlib.contextmanager
    def scandir(path: bytes) -> Iterator[Any]:
        with real(path) as entries:
            yield [Entry(entry) for entry in entries]

    monkeypatch.setattr(os, "scandir", scandir)
    result = rescan()
    assert paths(result) == ["a.gguf"]
    assert reasons(result) == {"bad.gguf": "cannot be opened: Input/output error"}


def test_untrusted_text_is_shortened(models: Path, rescan: Scanner) -> None:
    make.small_model(models / "a.gguf")
    make.small_model(models / "b.gguf", llama__attention__key_length="x" * 1_000_000)
    result = rescan()
    assert "attention.key_length is 'xxx" in reasons(result)["b.gguf"]
    assert len(reasons(result)["b.gguf"]) < 200


def test_broken_file_does_not_affect_others(models: Path, rescan: Scanner) -> None:
    make.small_model(models / "a.gguf")
    (models / "broken.gguf").write_bytes(b"GGUF")
    (models / "html.gguf").write_bytes(b"<!DOCTYPE html>")
    result = rescan()
    assert paths(result) == ["a.gguf"]
    assert set(reasons(result)) == {"broken.gguf", "html.gguf"}


def test_unexpected_error_is_a_rejection(models: Path, rescan: Scanner, monkeypatch: pytest.MonkeyPatch) -> None:
    make.small_model(models / "a.gguf")

    def fail(*_arguments: Any) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(read_files, "describe", fail)
    assert reasons(rescan()) == {"a.gguf": "its metadata is invalid (ZeroDivisionError: by zero)"}
    monkeypatch.undo()
    assert paths(rescan()) == ["a.gguf"]


# --- shards ----------------------------------------------------------------------------------------------------------


def test_shards_are_grouped(models: Path, rescan: Scanner) -> None:
    make.write_tiny_llama(models / "tiny-F16.gguf", split_max_tensors=8)
    record = rescan().content["models"][0]
    assert (record["id"], record["shards"]) == ("tiny-f16", 3)
    second = models / "tiny-F16-00002-of-00003.gguf"
    content = second.read_bytes()

    second.write_bytes(content[:-40])
    result = rescan()
    assert paths(result) == []
    assert reasons(result)["tiny-F16-00001-of-00003.gguf"].startswith(
        "tiny-F16-00002-of-00003.gguf: truncated: tensor data ends at byte"
    )
    second.unlink()
    assert reasons(rescan()) == {"tiny-F16-00001-of-00003.gguf": "1 of 3 shards missing: tiny-F16-00002-of-00003.gguf"}
    (models / "tiny-F16-00001-of-00003.gguf").unlink()
    assert "2 of 3 shards missing" in reasons(rescan())["tiny-F16-00003-of-00003.gguf"]

    second.write_bytes(content)
    os.rename(second, models / "renamed.gguf")
    assert "one of 3 shards" in reasons(rescan())["renamed.gguf"]


def test_shard_names_invalid_are_rejected(models: Path, rescan: Scanner) -> None:
    for name in ("a-00003-of-00002.gguf", "b-00001-of-00000.gguf", "c-00001-of-99999.gguf", "d-00001-of-00001.gguf"):
        make.small_model(models / name)
    for number in (1, 2):
        make.small_model(models / f"a-0000{number}-of-00002.gguf")
    result = rescan()
    assert paths(result) == ["d-00001-of-00001.gguf"]
    found = reasons(result)
    assert found["a-00003-of-00002.gguf"] == "its name says shard 3 of 2"
    assert found["b-00001-of-00000.gguf"] == "its name says shard 1 of 0"
    assert found["c-00001-of-99999.gguf"].startswith("99998 of 99999 shards missing: c-00002-of-99999.gguf, ")
    assert found["c-00001-of-99999.gguf"].endswith(" and 99995 more")


# --- reuse -----------------------------------------------------------------------------------------------------------


def test_files_unchanged_are_not_read_again(models: Path, tmp_path: Path, rescan: Scanner) -> None:
    make.small_model(models / "a.gguf")
    make.write_tiny_llama(models / "tiny-F16.gguf", split_max_tensors=8)
    values = {"general.architecture": "clip", "clip.vision.projection_dim": 256}
    (models / "mmproj-a.gguf").write_bytes(make.model_bytes(values))
    (models / "broken.gguf").write_bytes(b"GGUF")
    first = rescan(now=1)
    assert (first.read, first.done, first.total) == (4, 4, 4)
    assert first.content["models"][0]["mmproj"] == str(models / "mmproj-a.gguf")
    written = (tmp_path / "registry.json").stat()
    second = rescan(now=2)
    assert second.read == 0
    assert second.content == first.content
    assert second.content["updated_at"] == "1970-01-01T00:00:01Z"
    assert (tmp_path / "registry.json").stat().st_ino == written.st_ino
    assert second.changes == {"added": [], "removed": [], "replaced": []}
    forced = rescan(force=True, now=3)
    assert forced.read == 4
    assert forced.content == first.content


@pytest.mark.parametrize("change", ["size", "mtime", "inode", "second shard"])
def test_files_changed_are_read_again(models: Path, tmp_path: Path, rescan: Scanner, change: str) -> None:
    make.write_tiny_llama(models / "tiny-F16.gguf", split_max_tensors=8)
    path = make.small_model(models / "a.gguf")
    rescan()
    status = path.stat()
    if change == "size":
        with path.open("ab") as stream:
            stream.write(b"x")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "mtime":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "inode":
        other = path.with_suffix(".new")
        other.write_bytes(path.read_bytes())
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.replace(other, path)
    else:
        shard = models / "tiny-F16-00002-of-00003.gguf"
        # Older than the newest shard, so size, newest time and first inode stay the same.
        os.utime(shard, ns=(0, 1))
    before = diff_lines(load(str(tmp_path / "registry.json")).content)
    result = rescan()
    assert result.read == 1
    assert result.changes["replaced"] == ["tiny-f16" if change == "second shard" else "a"]
    changed = [
        (old, new) for old, new in zip(before.splitlines(), diff_lines(result.content).splitlines()) if old != new
    ]
    assert len(changed) == 1


def test_file_system_mounted_again_with_other_inodes_changes_nothing(
    models: Path, tmp_path: Path, rescan: Scanner
) -> None:
    make.small_model(models / "a.gguf")
    make.write_tiny_llama(models / "tiny-F16.gguf", split_max_tensors=8)
    first = rescan(checksums=True)
    path = tmp_path / "registry.json"
    # As if the inodes had been others in the first scan.
    content = json.loads(path.read_text())
    for model in content["models"]:
        model["fingerprint"]["inode"] += 1_000_000
        for shard in model["fingerprint"].get("shards", ()):
            shard[2] += 1_000_000
    save(str(path), content)
    again = rescan(checksums=True)
    assert (again.read, again.changes["replaced"]) == (0, [])
    # What servers are identified by is what it was.
    kept = {model["id"]: model["fingerprint"]["inode"] for model in again.content["models"]}
    assert kept == {model["id"]: model["fingerprint"]["inode"] + 1_000_000 for model in first.content["models"]}
    assert [model["sha256"] for model in again.content["models"]] == [
        model["sha256"] for model in first.content["models"]
    ]


def test_edit_in_place_with_the_old_time_is_found(models: Path, rescan: Scanner) -> None:
    path = make.small_model(models / "a.gguf")
    before = rescan(checksums=True)
    status = path.stat()
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"!")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = rescan(checksums=True)
    assert after.content["models"][0]["sha256"] != before.content["models"][0]["sha256"]
    assert after.content["models"][0]["sha256"] == [hashlib.sha256(path.read_bytes()).hexdigest()]


def test_other_mode_is_no_other_model(models: Path, rescan: Scanner) -> None:
    path = make.small_model(models / "a.gguf")
    rescan()
    path.chmod(0o640)
    assert rescan().changes["replaced"] == []


def test_reader_version_change_reads_again(models: Path, tmp_path: Path, rescan: Scanner) -> None:
    make.small_model(models / "a.gguf")
    rescan()
    path = tmp_path / "registry.json"
    path.write_text(
        path.read_text().replace(f'"reader_version": {registry_file.READER_VERSION}', '"reader_version": 0')
    )
    assert rescan().read == 1


def test_changes_keep_ids_stable(models: Path, rescan: Scanner) -> None:
    make.small_model(models / "a/x.gguf")
    assert rescan().changes == {"added": ["x"], "removed": [], "replaced": []}
    make.small_model(models / "b/x.gguf")
    later = rescan()
    added = later.changes["added"]
    assert len(added) == 1 and added[0].startswith("x-")
    assert later.changes["removed"] == []
    (models / "a/x.gguf").unlink()
    assert rescan().changes == {"added": [], "removed": ["x"], "replaced": []}
    assert [record["id"] for record in rescan(force=True).content["models"]] == added


def test_id_survives_broken_or_missing_file(models: Path, rescan: Scanner) -> None:
    first = make.small_model(models / "a/x.gguf")
    rescan()
    make.small_model(models / "b/x.gguf")
    ids = {model["path"]: model["id"] for model in rescan().content["models"]}
    assert ids[str(first)] == "x"
    whole = first.read_bytes()
    for damage in (lambda: first.write_bytes(whole[:100]), first.unlink):
        damage()
        content = rescan().content
        assert content["ids"] == {str(first): "x"}
        assert {model["path"]: model["id"] for model in content["models"]}.items() <= ids.items()
        first.write_bytes(whole)
        content = rescan().content
        assert {model["path"]: model["id"] for model in content["models"]} == ids
        assert content["ids"] == {}
    assert short_content(content)["ids"] == {}


def test_id_follows_moved_file_and_stays_with_broken_one(models: Path, rescan: Scanner) -> None:
    make.small_model(models / "x.gguf")
    rescan()
    (models / "sub").mkdir()
    (models / "x.gguf").rename(models / "sub/x.gguf")
    content = rescan().content
    assert [model["id"] for model in content["models"]] == ["x"]
    assert content["ids"] == {}
    (models / "sub/x.gguf").write_bytes(b"GGUF")
    make.small_model(models / "new/x.gguf")
    assert rescan().content["models"][0]["id"].startswith("x-")


def test_old_ids_are_limited(models: Path, rescan: Scanner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "MAX_OLD_IDS", 2)
    make.small_model(models / "z.gguf")
    for name in "abc":
        make.small_model(models / f"{name}.gguf")
        rescan()
        (models / f"{name}.gguf").unlink()
    assert list(rescan().content["ids"].values()) == ["b", "c"]


# --- the file --------------------------------------------------------------------------------------------------------


def test_registry_missing_is_a_warning(tmp_path: Path) -> None:
    kept = load(str(tmp_path / "none.json"))
    assert kept.content is None
    assert "There is no registry at" in str(kept.warning)


def test_registry_that_a_plan_needs_is_named_with_what_writes_it(tmp_path: Path) -> None:
    """A plan reads no model file."""
    path = tmp_path / "registry.json"
    advice = "so the models of this host are not known. Write it with scan.yml, or with site.yml without --skip-tags registry."
    with pytest.raises(RegistryError) as missing:
        require(str(path))
    assert str(missing.value) == f"There is no registry at {path} yet, {advice}"
    path.write_text('{"schema_version": 2}', encoding="utf-8")
    with pytest.raises(RegistryError) as newer:
        require(str(path))
    assert "Update the collection on this controller), so the models" in str(newer.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[]", "the registry is [], not an object"),
        (b"[" * 100_000, "damaged"),
        (b"{}", "the registry lacks schema_version"),
        (b'{"schema_version": 2}', "written by a newer magi.llama (schema version 2, here 1)"),
        (b'{"schema_version": 0}', "unknown schema version 0"),
        (b'{"schema_version": true}', "schema_version is True, not a whole number"),
        (b'{"schema_version": 1}', "the registry lacks models"),
        (b'{"schema_version": 1, "models": [{"id": "x"}]}', "models[0] lacks display_name"),
        (b'{"schema_version": 1, "models": [], "companions": {}}', "companions is {}, not a list"),
        (
            b'{"schema_version": 1, "models": [], "companions": [], "rejected": [], "ids": []}',
            "ids is [], not an object",
        ),
        (
            b'{"schema_version": 1, "models": [], "companions": [], "rejected": [], "ids": {"a": 1}}',
            "ids.a is 1, not a text",
        ),
        (
            b'{"schema_version": 1, "models": [], "companions": [], "rejected": [], "tried": {"a": [[]]}}',
            "tried.a[0] is [], not a text",
        ),
        (
            b'{"schema_version": 1, "models": [], "companions": [], "rejected": [{"path": 1, "reason": "x"}]}',
            "rejected[0].path is 1, not a text",
        ),
    ],
)
def test_registry_damaged_is_a_warning_and_rescanned(
    models: Path, tmp_path: Path, rescan: Scanner, data: bytes, reason: str
) -> None:
    make.small_model(models / "a.gguf")
    path = tmp_path / "registry.json"
    path.write_bytes(data)
    assert reason in str(load(str(path)).warning)
    assert rescan().read == 1
    assert load(str(path)).warning is None


def test_registry_as_folder_is_an_error(tmp_path: Path) -> None:
    assert "cannot be read (Is a directory)" in str(load(str(tmp_path)).warning)
    with pytest.raises(RegistryError, match="cannot be written"):
        save(str(tmp_path), {})


def test_the_registry_file(models: Path, tmp_path: Path, rescan: Scanner) -> None:
    make.small_model(models / "a.gguf", general__name="Ünï\x00code")
    result = rescan()
    path = tmp_path / "registry.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert json.loads(path.read_bytes()) == result.content
    assert path.read_bytes() == serialize(result.content)
    assert [line[:10] for line in path.read_text().splitlines()].count('  {"id": "') == 1
    assert list(result.content)[:3] == ["schema_version", "collection_version", "reader_version"]


def test_short_content(models: Path, rescan: Scanner) -> None:
    make.small_model(models / "a.gguf")
    content = rescan().content
    short = short_content(content)
    assert short["models"][0]["id"] == "a"
    assert short["models"][0].items() <= content["models"][0].items()
    assert all(not isinstance(value, (dict, list)) for value in short["models"][0].values())


def test_printable() -> None:
    assert printable("/a b/ü\x00\n\udce9\u202e") == "/a b/ü\\x00\\n\\xe9\\u202e"


# --- slices and cores ------------------------------------------------------------------------------------------------


def test_time_limit_splits_scan_into_slices(models: Path, tmp_path: Path) -> None:
    for number in range(5):
        make.small_model(models / f"m{number}.gguf")
    partial = Kept()
    path = str(tmp_path / "partial.json")
    calls = 0
    while True:
        result = scan([str(models)], Kept(), partial=partial, force=True, time_limit=0.0, workers=1)
        calls += 1
        assert result.read == 1
        assert (result.done, result.total) == (calls, 5)
        if result.complete:
            break
        save(path, result.content)
        partial = load(path)
    assert calls == 5
    assert paths(result) == [f"m{number}.gguf" for number in range(5)]


def test_slow_search_leaves_equal_time_for_reading(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        make.small_model(models / f"m{number}.gguf")
    real = scan_module.list_files

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.2)
        return real(*arguments, **options)

    monkeypatch.setattr(scan_module, "list_files", slow)
    assert scan([str(models)], Kept(), time_limit=0.05, workers=1).complete
    assert scan([str(models)], Kept(), time_limit=0.0, workers=1).done == 1


@pytest.mark.parametrize("what", ["unreadable", "growing"])
def test_bad_file_is_read_once_in_sliced_scan(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    for name in ("a", "b", "c"):
        make.small_model(models / f"{name}.gguf")
    real = read_files.read_group
    tried = []

    def read_group(files: Any) -> Any:
        if not files[0].path.endswith("/a.gguf"):
            return real(files)
        tried.append(files)
        if what == "growing":
            with open(files[0].path, "ab") as stream:
                stream.write(b"x")
            return real(files)
        return {"rejected": {"path": files[0].path, "reason": "cannot be read"}}

    monkeypatch.setattr(read_files, "read_group", read_group)
    path = str(tmp_path / "partial.json")
    for _ in range(10):
        if what == "growing":
            with open(models / "a.gguf", "ab") as stream:
                stream.write(b"x")
        result = scan([str(models)], Kept(), partial=load(path, "this"), time_limit=0.0, workers=1)
        if result.complete:
            break
        save(path, result.unfinished("this"))
    assert result.complete and len(tried) == 1
    assert len(result.content["models"]) == (3 if what == "growing" else 2)
    assert "tried" not in result.content
    if what == "unreadable":
        assert scan([str(models)], Kept(), partial=load(path, "another"), workers=1).complete
        assert len(tried) == 2


def test_scan_with_all_cores_is_the_same(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        make.small_model(models / f"m{number}.gguf")
    (models / "broken.gguf").write_bytes(b"GGUF")
    alone = scan([str(models)], Kept(), workers=1, now=1)
    monkeypatch.setattr(scan_module.pool, "SERIAL_SECONDS", 0.0)
    together = scan([str(models)], Kept(), workers=3, now=1)
    assert together.content == alone.content


@pytest.mark.slow
def test_reuse_is_fast(models: Path, tmp_path: Path) -> None:
    """1,000 unchanged files: nothing is read, and each takes few calls. make bench measures the time."""
    for number in range(1000):
        make.small_model(models / f"{number % 20}/model-{number}.gguf")
    path = str(tmp_path / "registry.json")
    save(path, scan([str(models)], load(path)).content)
    with counted() as work:
        result = scan([str(models)], load(path))
    assert result.read == work.reads == 0
    assert work.calls < 300 * 1000, work


# --- Hugging Face's cache ----------------------------------------------------------------------------------------------


PROJECTOR = make.model_bytes(
    {"general.architecture": "clip", "clip.projector_type": "mlp", "clip.vision.projection_dim": 256},
    [("mm.0.weight", (256, 4), 1)],
)


class Cache:
    """A repository in Hugging Face's cache, as huggingface_hub lays it out."""

    def __init__(self, hub: Path, name: str = "models--ann--tiny-GGUF") -> None:
        self.folder = hub / name
        (self.folder / "blobs").mkdir(parents=True)

    def commit(self, revision: str, files: dict[str, str], *, is_main: bool = True, age: int = 0) -> None:
        """A snapshot whose files link to blobs; a blob's content follows from its name."""
        snapshot = self.folder / "snapshots" / revision
        snapshot.mkdir(parents=True)
        for name, blob in files.items():
            target = self.folder / "blobs" / blob
            if not target.exists():
                target.write_bytes(PROJECTOR) if "mmproj" in name else make.small_model(target)
            (snapshot / name).symlink_to(f"../../blobs/{blob}")
        os.utime(snapshot, (1_000_000 - age, 1_000_000 - age))
        if is_main:
            (self.folder / "refs").mkdir(exist_ok=True)
            (self.folder / "refs/main").write_text(revision)


OLD_REVISION, NEW_REVISION = "a" * 40, "b" * 40


def revisions(result: Scan) -> list[str]:
    return [Path(record["path"]).parent.name[0] for record in result.content["models"]]


def test_hugging_face_snapshot_of_main_is_the_one_that_counts(models: Path) -> None:
    cache = Cache(models)
    cache.commit(NEW_REVISION, {"tiny.gguf": "two"})
    cache.commit(OLD_REVISION, {"tiny.gguf": "one"}, age=-50, is_main=False)
    result = scan([str(models)], Kept())
    assert (revisions(result), paths(result), result.content["rejected"]) == (["b"], ["tiny.gguf"], [])


def test_hugging_face_newest_snapshot_counts_without_main(models: Path) -> None:
    cache = Cache(models)
    cache.commit(OLD_REVISION, {"tiny.gguf": "one"}, is_main=False, age=50)
    cache.commit(NEW_REVISION, {"tiny.gguf": "two"}, is_main=False)
    assert revisions(scan([str(models)], Kept())) == ["b"]


def test_hugging_face_commit_without_a_new_blob_keeps_the_path(models: Path, rescan: Scanner) -> None:
    cache = Cache(models)
    cache.commit(OLD_REVISION, {"tiny.gguf": "one", "gone.gguf": "other"})
    before = rescan()
    cache.commit(NEW_REVISION, {"tiny.gguf": "one"})
    after = rescan()
    assert (revisions(after), after.read) == (["a"], 0)
    assert [record["id"] for record in after.content["models"]] == ["tiny"]
    assert paths(before) == ["gone.gguf", "tiny.gguf"]
    # Once the old snapshot is pruned, the new path has to do.
    (cache.folder / "snapshots" / OLD_REVISION / "tiny.gguf").unlink()
    assert revisions(rescan()) == ["b"]


def test_hugging_face_new_blob_keeps_the_id(models: Path, rescan: Scanner) -> None:
    # Two repositories have files of one name: the ids carry a suffix, which must not depend on the revision.
    cache, other = Cache(models), Cache(models, "models--bob--tiny-GGUF")
    other.commit(OLD_REVISION, {"tiny.gguf": "one"})
    cache.commit(OLD_REVISION, {"tiny.gguf": "one"})
    before = {record["id"] for record in rescan().content["models"]}
    cache.commit(NEW_REVISION, {"tiny.gguf": "two"})
    after = rescan()
    assert {record["id"] for record in after.content["models"]} == before and len(before) == 2
    assert sorted(revisions(after)) == ["a", "b"]


def test_hugging_face_projector_of_a_later_commit_belongs_to_the_model_of_before(models: Path, rescan: Scanner) -> None:
    cache, other = Cache(models), Cache(models, "models--bob--other-GGUF")
    cache.commit(OLD_REVISION, {"tiny.gguf": "one"})
    other.commit(OLD_REVISION, {"other.gguf": "three"})
    assert [record["mmproj"] for record in rescan().content["models"]] == [None, None]
    cache.commit(NEW_REVISION, {"tiny.gguf": "one", "mmproj-F16.gguf": "two"})
    after = rescan()
    projector = str(cache.folder / "snapshots" / NEW_REVISION / "mmproj-F16.gguf")
    assert {record["id"]: record["mmproj"] for record in after.content["models"]} == {"other": None, "tiny": projector}
    assert (revisions(after), after.warnings) == (["a", "a"], [])


def test_projector_that_folders_share_belongs_to_the_models_of_each(models: Path, rescan: Scanner) -> None:
    """A tool that keeps equal files once, and the repositories that use the same projector."""
    shared = models / "blobs/projector"
    shared.parent.mkdir()
    shared.write_bytes(PROJECTOR)
    for name in ("ann", "bob"):
        make.small_model(models / name / f"{name}.gguf")
        (models / name / "mmproj-F16.gguf").symlink_to(shared)
    # One that is there twice is one.
    (models / "ann/mmproj-again.gguf").symlink_to(shared)
    for found in (rescan(), rescan()):
        own = {record["id"]: str(models / record["id"] / "mmproj-F16.gguf") for record in found.content["models"]}
        assert {record["id"]: record["mmproj"] for record in found.content["models"]} == own
        assert found.warnings == []
    assert found.read == 0
    assert [record["path"] for record in found.content["companions"]] == sorted(own.values())
    # A link to a model is not another model.
    (models / "bob/linked.gguf").symlink_to(models / "ann/ann.gguf")
    assert [record["id"] for record in rescan().content["models"]] == ["ann", "bob"]


@pytest.mark.parametrize("link", ["current", "latest"])
def test_version_that_a_link_leads_to_is_the_one_that_counts(models: Path, rescan: Scanner, link: str) -> None:
    for version in ("v1.0", "v1.1"):
        make.small_model(models / "tiny" / version / "tiny.gguf")
    make.small_model(models / "tiny/extra/other.gguf")
    (models / "tiny" / link).symlink_to("v1.0")
    before = rescan()
    path = str(models / "tiny" / link / "tiny.gguf")
    known = {record["id"]: record["path"] for record in before.content["models"]}
    assert known == {"other": str(models / "tiny/extra/other.gguf"), "tiny": path}
    assert before.content["rejected"] == []
    (models / "tiny" / link).unlink()
    (models / "tiny" / link).symlink_to("v1.1")
    after = rescan()
    # The same model at the same path, with other content.
    assert {record["id"]: record["path"] for record in after.content["models"]} == known
    assert after.changes["replaced"] == ["tiny"]


@pytest.mark.parametrize("target", ["elsewhere/v1", "tiny", "gone", None])
def test_folders_without_a_link_to_a_version_all_count(models: Path, target: str | None) -> None:
    for place in ("v1", "v2", "tiny", "elsewhere/v1"):
        make.small_model(models / place / f"{place.replace('/', '-')}.gguf")
    if target:
        (models / "current").symlink_to(target)
    assert [record["id"] for record in scan([str(models)], Kept()).content["models"]] == [
        *("elsewhere-v1", "tiny", "v1", "v2")
    ]


# --- Ollama's store ----------------------------------------------------------------------------------------------------


class Store:
    """A store of models, as Ollama lays it out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs").mkdir(parents=True)
        (folder / "manifests").mkdir()

    def blob(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / f"blobs/sha256-{digest}").write_bytes(content)
        return f"sha256:{digest}"

    def tag(self, name: str, layers: dict[str, str], file_type: str = "Q4_K_M") -> Path:
        """Write the manifest of registry.ollama.ai/NAME; layers are digests by kind."""
        manifest = self.folder / "manifests/registry.ollama.ai" / name
        manifest.parent.mkdir(parents=True, exist_ok=True)
        config = self.blob(json.dumps({"model_format": "gguf", "file_type": file_type}).encode())
        listed = [
            {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": 1}
            for kind, digest in layers.items()
        ]
        manifest.write_text(json.dumps({"schemaVersion": 2, "config": {"digest": config}, "layers": listed}))
        return manifest


def model_content(folder: Path) -> bytes:
    path = make.small_model(folder / "made.gguf")
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.fixture
def store(models: Path) -> Store:
    return Store(models / ".ollama/models")


def test_ollama_models_have_the_names_of_their_manifests(models: Path, store: Store, rescan: Scanner) -> None:
    digest = store.blob(model_content(models))
    store.tag("library/qwen3/latest", {"model": digest, "template": "sha256:" + "0" * 64})
    store.tag("library/qwen3/8b", {"model": digest})
    (model,) = rescan().content["models"]
    assert model["id"] == "qwen3-8b-q4_k_m"
    assert model["path"] == str(store.folder / "blobs" / digest.replace(":", "-"))
    assert rescan().read == 0
    store.tag("library/qwen3/8b-instruct-q8_0", {"model": digest})
    renamed = rescan()
    assert ([model["id"] for model in renamed.content["models"]], renamed.read) == (["qwen3-8b-instruct-q8_0"], 1)
    assert REGISTRY.load(json.loads(json.dumps(renamed.content)))


def test_ollama_projector_belongs_to_its_model(models: Path, store: Store) -> None:
    model = store.blob(model_content(models))
    values = {"general.architecture": "clip", "clip.projector_type": "mlp", "clip.vision.projection_dim": 256}
    projector = store.blob(make.model_bytes(values, [("mm.0.weight", (256, 4), 1)]))
    store.tag("library/llava/7b", {"model": model, "projector": projector})
    result = scan([str(models)], Kept())
    (record,) = result.content["models"]
    assert record["mmproj"] == str(store.folder / "blobs" / projector.replace(":", "-"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not a usable manifest of Ollama: Expecting"),
        ("[" * 100_000, "not a usable manifest of Ollama: "),
        ('{"layers": {}}', "not a usable manifest of Ollama: it has no list of layers"),
        (
            '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../etc/passwd"}]}',
            "not a usable manifest of Ollama: it names a layer by something that is not a SHA-256 digest",
        ),
        (" " * (2 << 20), "not a usable manifest of Ollama: it is larger than 1 MiB"),
    ],
)
def test_ollama_manifest_damaged_is_rejected(models: Path, store: Store, text: str, reason: str) -> None:
    make.small_model(models / "other.gguf")
    manifest = store.tag("library/qwen3/8b", {})
    manifest.write_text(text)
    result = scan([str(models)], Kept())
    assert paths(result) == ["other.gguf"]
    (found,) = reasons(result).values()
    assert found.startswith(reason)


def test_ollama_blob_missing_or_outside_is_rejected(models: Path, store: Store, tmp_path: Path) -> None:
    make.small_model(models / "other.gguf")
    make.small_model(tmp_path / "outside")
    link = store.folder / ("blobs/sha256-" + "1" * 64)
    link.symlink_to(tmp_path / "outside")
    store.tag("library/missing/1b", {"model": "sha256:" + "2" * 64})
    store.tag("library/outside/1b", {"model": "sha256:" + "1" * 64})
    result = scan([str(models)], Kept())
    assert paths(result) == ["other.gguf"]
    missing, outside = sorted(reasons(result).values(), key=len)
    assert missing == "cannot be opened: No such file or directory; Ollama has it as missing-1b-q4_k_m.gguf"
    assert "outside the scanned folders" in outside
