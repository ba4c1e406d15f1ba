# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder of exported files: all or none, and never over what is not ours."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._export import folder as folder_of
from ansible_collections.magi.llama.plugins.module_utils._export.folder import apply, change_of
from ansible_collections.magi.llama.plugins.module_utils._export.workloads import ExportError

FILES = {"base/a.yaml": "a: 1\n", "b.yaml": "b: 1\n"}


def export(folder: Path, files: dict[str, str] = FILES, form: str = "compose") -> list[str]:
    change = change_of(str(folder), form, files)
    apply(str(folder), change)
    return sorted([file.path for file in change.write] + change.remove)


def content(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def test_second_export_changes_nothing_and_a_changed_one_only_what_differs(tmp_path: Path) -> None:
    folder = tmp_path / "new/out"
    assert len(export(folder)) == 2 and content(folder) == FILES
    assert not change_of(str(folder), "compose", FILES).is_needed
    paths = [str(folder / name) for name in ("b.yaml", "base/a.yaml")]
    assert export(folder, {"b.yaml": "b: 2\n"}) == paths
    assert content(folder) == {"b.yaml": "b: 2\n"} and not (folder / "base").exists()


def test_files_of_users_are_left_alone(tmp_path: Path) -> None:
    export(tmp_path)
    (tmp_path / "base/mine.yaml").write_text("mine")
    export(tmp_path, {"b.yaml": "b: 1\n"})
    assert content(tmp_path) == {"base/mine.yaml": "mine", "b.yaml": "b: 1\n"}


@pytest.mark.parametrize("name", ["c.yaml", "b.yaml"])
def test_file_that_is_not_ours_or_was_changed_is_never_overwritten(tmp_path: Path, name: str) -> None:
    export(tmp_path)
    (tmp_path / name).write_text("mine")
    before = content(tmp_path)
    with pytest.raises(ExportError) as error:
        export(tmp_path, {"base/a.yaml": "a: 2\n", "b.yaml": "b: 2\n", "c.yaml": "c: 2\n"})
    assert str(tmp_path / name) in str(error.value) and "Nothing was written" in str(error.value)
    assert content(tmp_path) == before


def test_other_folders_links_and_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("x")
    export(tmp_path / "other", form="kubernetes")
    (tmp_path / "link").symlink_to(tmp_path / "other")
    for name in ("full", "full/x", "other", "link"):
        with pytest.raises(ExportError, match="Nothing was written") as error:
            export(tmp_path / name)
        assert "export_dir" in str(error.value)
    assert content(tmp_path / "other") == FILES and content(tmp_path / "full") == {"x": "x"}


def test_link_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    export(tmp_path / "out")
    (tmp_path / "out/base/a.yaml").unlink()
    (tmp_path / "out/base").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/base").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExportError, match="is not a folder of this export"):
        export(tmp_path / "out", {"base/a.yaml": "a: 2\n"})
    assert not os.listdir(tmp_path / "elsewhere")


def test_manifest_with_paths_outside_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("a: 1\n")
    folder = tmp_path / "out"
    export(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../keep"] = manifest["files"]["base/a.yaml"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    export(folder, {"b.yaml": "b: 1\n"})
    assert (tmp_path / "keep").exists()


def test_killed_export_is_repaired_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(tmp_path)
    newer, newest = {"base/a.yaml": "a: 2\n", "b.yaml": "b: 2\n"}, {"base/a.yaml": "a: 3\n", "b.yaml": "b: 3\n"}

    def half(files: list, remove: list) -> None:
        (tmp_path / "base/a.yaml").write_text("a: 2\n")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(folder_of, "write_all", half)
        with pytest.raises(KeyboardInterrupt):
            export(tmp_path, newer)
    assert content(tmp_path) == {"base/a.yaml": "a: 2\n", "b.yaml": "b: 1\n"}
    export(tmp_path, newest)
    assert content(tmp_path) == newest
