# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checksums and manifests."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._models import checksums
from ansible_collections.magi.llama.plugins.module_utils._models.checksums import (
    ContentKey,
    ManifestError,
    check_manifest,
    differences,
    manifest_of,
    merge_manifests,
    sha256_of,
    without_checksum,
)
from ansible_collections.magi.llama.plugins.module_utils._models.registry_file import Kept, load, save
from ansible_collections.magi.llama.plugins.module_utils._models.scan import scan
from support import gguf_files as make


@pytest.fixture
def models(tmp_path: Path) -> Path:
    make.small_model(tmp_path / "models/sub/a.gguf", general__repo_url="https://example.org/a")
    make.write_tiny_llama(tmp_path / "models/tiny.gguf", split_max_tensors=8)
    (tmp_path / "models/mmproj.gguf").write_bytes(make.model_bytes({"general.architecture": "clip"}))
    (tmp_path / "models/broken.gguf").write_bytes(b"GGUF")
    return tmp_path / "models"


@pytest.fixture
def content(models: Path) -> dict[str, Any]:
    return scan([str(models)], Kept(), checksums=True).content


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_checksums_are_computed_for_every_file(models: Path, content: dict[str, Any]) -> None:
    records = [*content["models"], *content["companions"]]
    assert len(records) == 3
    for record in records:
        assert record["sha256"] == [digest(Path(path)) for path in record["files"]]
        assert record["sha256"][0]


def test_checksums_are_kept_while_file_is_unchanged(
    models: Path, tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "registry.json")
    save(path, content)
    hashed = []

    def counting(name: str, key: ContentKey) -> str | None:
        hashed.append(Path(name).name)
        return sha256_of(name, key)

    monkeypatch.setattr(checksums, "sha256_of", counting)
    assert scan([str(models)], load(path), checksums=True, workers=1).content == content
    assert scan([str(models)], load(path)).content == content
    assert hashed == []
    make.small_model(models / "sub/a.gguf", general__name="Other")
    changed = scan([str(models)], load(path), checksums=True, workers=1)
    assert hashed == ["a.gguf"]
    assert changed.content["models"][0]["sha256"] == [digest(models / "sub/a.gguf")]


def test_checksums_in_slices_are_complete(models: Path, tmp_path: Path, content: dict[str, Any]) -> None:
    path = str(tmp_path / "registry.json")
    calls = 0
    while True:
        result = scan([str(models)], load(path), checksums=True, workers=1, time_limit=0.0, now=0)
        save(path, result.content)
        calls += 1
        if result.complete:
            break
        assert result.done < result.total or (result.checksums and result.checksums.files < 5)
    assert calls > 5
    assert result.checksums is not None
    assert (result.checksums.files, result.checksums.total_files) == (5, 5)
    assert (
        result.checksums.size
        == result.checksums.total_size
        == sum(
            Path(name).stat().st_size
            for record in [*content["models"], *content["companions"]]
            for name in record["files"]
        )
    )
    assert {**result.content, "updated_at": ""} == {**content, "updated_at": ""}


def key_of(path: Path) -> ContentKey:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def test_file_differing_from_record_has_no_checksum(models: Path) -> None:
    path = models / "sub/a.gguf"
    found = key_of(path)
    assert sha256_of(str(path), found) == digest(path)
    for place in range(3):
        changed = [*found]
        changed[place] += 1
        assert sha256_of(str(path), (changed[0], changed[1], changed[2])) is None
    assert sha256_of(str(models / "none"), found) is None
    assert sha256_of(str(models), key_of(models)) is None


@pytest.mark.parametrize("workers", [1, 2])
def test_file_unreadable_does_not_stop_scan_in_slices(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    (models / "bad.gguf").write_bytes((models / "sub/a.gguf").read_bytes() + bytes(1 << 20))
    tried = []

    def failing(name: str, found: ContentKey) -> str | None:
        if not name.endswith("bad.gguf"):
            return sha256_of(name, found)
        tried.append(name)
        return None

    monkeypatch.setattr(checksums, "sha256_of", failing)
    path = str(tmp_path / "partial.json")
    for _ in range(20):
        partial = load(path, "this scan")
        result = scan([str(models)], Kept(), partial=partial, checksums=True, workers=workers, time_limit=0.0)
        if result.complete:
            break
        save(path, result.unfinished("this scan"))
    assert result.complete
    assert len(tried) == 1
    sums = {Path(record["path"]).name: record["sha256"] for record in result.content["models"]}
    assert sums["bad.gguf"] == [None]
    assert sums["a.gguf"] == [digest(models / "sub/a.gguf")]
    # Another scan tries it again.
    again = scan([str(models)], Kept(), partial=load(path, "another scan"), checksums=True, workers=1)
    assert again.complete and len(tried) == 2


def test_checksums_survive_forced_scan_and_new_reader(
    models: Path, tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "registry.json")
    save(path, {**content, "reader_version": 0})
    assert scan([str(models)], load(path)).content["models"] == content["models"]
    save(path, content)
    assert scan([str(models)], load(path), force=True).content["models"] == content["models"]
    make.small_model(models / "sub/a.gguf", general__name="Other")
    assert "sha256" not in scan([str(models)], load(path), force=True).content["models"][0]
    monkeypatch.setattr(checksums, "sha256_of", lambda *_: "new")
    rescanned = scan([str(models)], load(path), force=True, checksums=True, workers=1).content["models"]
    assert {digest for record in rescanned for digest in record["sha256"]} == {"new"}


def test_manifest(models: Path, content: dict[str, Any]) -> None:
    manifest = manifest_of(content)
    assert list(manifest["files"]) == [
        "mmproj.gguf",
        "sub/a.gguf",
        "tiny-00001-of-00003.gguf",
        "tiny-00002-of-00003.gguf",
        "tiny-00003-of-00003.gguf",
    ]
    assert manifest["files"]["sub/a.gguf"] == {
        "sha256": digest(models / "sub/a.gguf"),
        "size": (models / "sub/a.gguf").stat().st_size,
        "source": "https://example.org/a",
    }
    found = differences(content, manifest)
    assert (found.differing, found.missing, found.unlisted) == ([], [], [])


def test_differences(models: Path, content: dict[str, Any]) -> None:
    manifest = copy.deepcopy(manifest_of(content))
    files = manifest["files"]
    files["tiny-00002-of-00003.gguf"]["sha256"] = "0" * 64
    files["sub/a.gguf"]["size"] = 5
    files["gone.gguf"] = files.pop("mmproj.gguf")
    files["broken.gguf"] = {"sha256": "1" * 64}
    found = differences(content, manifest)
    assert len(found.differing) == 3
    assert found.differing[0].startswith(f"{models}/sub/a.gguf has ")
    assert found.differing[0].endswith(" bytes, the manifest says 5")
    assert found.differing[1].startswith(f"{models}/tiny-00002-of-00003.gguf has the sha256 ")
    assert found.differing[2].startswith(f"{models}/broken.gguf is rejected: ")
    assert found.missing == ["gone.gguf"]
    assert found.unlisted == [f"{models}/mmproj.gguf"]


def test_manifest_with_same_name_in_two_scan_paths(tmp_path: Path) -> None:
    roots = [str(tmp_path / name) for name in ("r1", "r2")]
    for root in roots:
        make.small_model(Path(root) / "x.gguf", general__name=root)
    make.small_model(tmp_path / "r2/y.gguf")
    content = scan([f"{roots[0]}/", roots[1]], Kept(), checksums=True).content
    manifest = manifest_of(content)
    assert list(manifest["files"]) == [f"{roots[0]}/x.gguf", f"{roots[1]}/x.gguf", "y.gguf"]
    found = differences(content, manifest)
    assert (found.differing, found.missing, found.unlisted) == ([], [], [])
    # On a host that has one of them only.
    alone = scan([roots[0]], Kept(), checksums=True).content
    found = differences(alone, manifest)
    assert (found.differing, found.missing, found.unlisted) == ([], [f"{roots[1]}/x.gguf", "y.gguf"], [])
    both = merge_manifests([manifest_of(alone), manifest])
    for each in (content, alone):
        assert differences(each, both).differing == []
    (tmp_path / "r1/x.gguf").write_bytes((tmp_path / "r2/x.gguf").read_bytes())
    swapped = scan(roots, Kept(), checksums=True).content
    assert len(differences(swapped, manifest).differing) == 1


def test_manifest_with_missing_shard_has_the_others(models: Path, content: dict[str, Any]) -> None:
    manifest = manifest_of(content)
    for gone, there in ((2, (1, 3)), (1, (3,))):
        (models / f"tiny-0000{gone}-of-00003.gguf").unlink()
        found = differences(scan([str(models)], Kept(), checksums=True).content, manifest)
        assert [text.split()[0] for text in found.differing] == [
            f"{models}/tiny-0000{number}-of-00003.gguf" for number in there
        ]
    assert found.missing == ["tiny-00001-of-00003.gguf", "tiny-00002-of-00003.gguf"]


def test_file_unreadable_differs_from_manifest(content: dict[str, Any]) -> None:
    manifest = manifest_of(content)
    content = copy.deepcopy(content)
    content["companions"][0]["sha256"] = [None]
    assert without_checksum(content) == [content["companions"][0]["path"]]
    assert "mmproj.gguf" not in manifest_of(content)["files"]
    assert "could not be read" in differences(content, manifest).differing[0]


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (None, "no mapping `files`"),
        ([], "no mapping `files`"),
        ({"files": []}, "no mapping `files`"),
        ({"files": {}}, "schema_version is None"),
        ({"schema_version": 2, "files": {}}, "schema_version is 2"),
        ({"schema_version": 1, "files": {"x": None}}, r"files.x.sha256 is not"),
        ({"schema_version": 1, "files": {"x": {"sha256": "abc"}}}, r"files.x.sha256 is not"),
        ({"schema_version": 1, "files": {"x": {"sha256": "a" * 64, "size": "5"}}}, r"files.x.size is not"),
    ],
)
def test_manifest_invalid_is_refused(manifest: Any, reason: str) -> None:
    with pytest.raises(ManifestError, match=reason):
        check_manifest(manifest)


def test_manifests_of_hosts_are_merged() -> None:
    one = {"schema_version": 1, "files": {"b.gguf": {"sha256": "b" * 64, "size": 1, "source": None}}}
    two = {"schema_version": 1, "files": {"a.gguf": {"sha256": "a" * 64, "size": 1, "source": None}, **one["files"]}}
    assert list(merge_manifests([one, two])["files"]) == ["a.gguf", "b.gguf"]
    other = {"schema_version": 1, "files": {"b.gguf": {"sha256": "c" * 64, "size": 1, "source": None}}}
    with pytest.raises(ManifestError, match=r"b\.gguf differs between two hosts"):
        merge_manifests([one, other])
    # Entries of other hosts are kept; those of these hosts are replaced.
    merged = merge_manifests([other], known=two)["files"]
    assert {name: entry["sha256"][0] for name, entry in merged.items()} == {"a.gguf": "a", "b.gguf": "c"}
    with pytest.raises(ManifestError, match="no mapping `files`"):
        merge_manifests([one], known={"x": 1})
