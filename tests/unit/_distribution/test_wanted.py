# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that may be distributed, choosing files, and lists of pieces."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._distribution.host_files import inspect_files
from ansible_collections.magi.llama.plugins.module_utils._distribution.part_file import PartError
from ansible_collections.magi.llama.plugins.module_utils._distribution.pieces import (
    PiecesError,
    compute_pieces,
    known_pieces,
    parse_pieces,
    piece_bytes_for,
    pieces_of,
)
from ansible_collections.magi.llama.plugins.module_utils._distribution.wanted import (
    WantedError,
    check_name,
    chosen_by_name,
    chosen_by_profile,
)

KNOWN = [
    "vision/model-Q4_K_M.gguf",
    "vision/mmproj-model-F16.gguf",
    "big-Q3_K_M-00001-of-00002.gguf",
    "big-Q3_K_M-00002-of-00002.gguf",
    "small-Q2_K.gguf",
]


@pytest.mark.parametrize(
    "name",
    [
        "../a.gguf",
        "/models/a.gguf",
        "a/../../b.gguf",
        "a//b.gguf",
        ".hidden.gguf",
        "a.sh",
        "a\nb.gguf",
        "a\\b.gguf",
        "",
    ],
)
def test_name_that_could_lead_out_is_refused(name: str) -> None:
    with pytest.raises(WantedError):
        check_name(name)


def test_file_in_subfolder_is_accepted() -> None:
    assert check_name("family/model-Q4_K_M.gguf") == "family/model-Q4_K_M.gguf"


def test_shards_are_chosen_together() -> None:
    assert chosen_by_name(["big-q3_k_m"], KNOWN) == KNOWN[2:4]
    assert chosen_by_name(["big-Q3_K_M-00002-of-00002.gguf", "small-Q2_K.gguf"], KNOWN) == KNOWN[2:]


def test_profile_chooses_by_id_and_tier_with_projectors() -> None:
    entries = [
        {"model": "model-q4_k_m", "selector": {}, "key": "enabled_models[0]"},
        {"model": None, "selector": {"tier": "Q3"}, "key": "enabled_models[1]"},
        {"model": None, "selector": {"architecture": "qwen3"}, "key": "enabled_models[2]"},
    ]
    files, without = chosen_by_profile({"enabled_models": entries}, KNOWN)
    assert files == sorted(KNOWN[:4])
    assert without == ["enabled_models[2] (architecture: qwen3)"]


def test_pieces_are_kept_and_read_again_only_where_the_file_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"a" * 3_000_000)
    pieces = pieces_of(str(path))
    assert [pieces.length(number) for number in range(3)] == [1 << 20, 1 << 20, 3_000_000 - (2 << 20)]
    assert known_pieces(str(path)) == pieces
    os.utime(path, ns=(1, 1))
    assert known_pieces(str(path)) is None


def test_size_of_pieces_follows_that_of_the_file() -> None:
    assert [piece_bytes_for(size) >> 20 for size in (1, 300 << 20, 40 << 30)] == [1, 4, 16]


@pytest.mark.parametrize(
    "change",
    [{"schema_version": 2}, {"size": 0}, {"piece_bytes": 1 << 30}, {"pieces": []}, {"pieces": ["x"]}, {"sha256": None}],
)
def test_list_of_pieces_that_is_not_one_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "a").write_bytes(b"content")
    valid = compute_pieces(str(tmp_path / "a")).as_dict()
    with pytest.raises(PiecesError, match=r"a\.pieces"):
        parse_pieces({**valid, **change}, "a.pieces")


def test_host_says_which_files_are_there(tmp_path: Path) -> None:
    (tmp_path / "same.gguf").write_bytes(b"12345")
    (tmp_path / "short.gguf").write_bytes(b"123")
    (tmp_path / "other.gguf").write_bytes(b"67890")
    pieces_of(str(tmp_path / "other.gguf"))
    (tmp_path / "away.gguf").symlink_to(tmp_path / "disk/away.gguf")
    names = ("same", "short", "other", "gone", "away")
    files = [{"name": f"{name}.gguf", "size": 5, "sha256": "0" * 64, "wanted": True} for name in names]
    states = [file["state"] for file in inspect_files(str(tmp_path), files)]
    assert states == ["present", "differs", "differs", "missing", "differs"]
    with pytest.raises(PartError, match="models_dest: there is no folder"):
        inspect_files(str(tmp_path / "none"), files)


def test_pieces_file_is_plain_json(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"content")
    pieces_of(str(tmp_path / "a.gguf"))
    assert json.loads((tmp_path / "a.gguf.pieces").read_text())["size"] == 7
