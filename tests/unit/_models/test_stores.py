# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders that other programs fill are scan paths like any other: LM Studio's and llama.cpp's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._models.names import slug, stem_of
from ansible_collections.magi.llama.plugins.module_utils._models.registry_file import Kept
from ansible_collections.magi.llama.plugins.module_utils._models.scan import scan
from support import gguf_files as make


def ids(*folders: Path) -> dict[str, str]:
    """The models by id, each with its path below the first folder; nothing may be rejected."""
    content = scan([str(folder) for folder in folders], Kept()).content
    assert content["rejected"] == []
    return {model["id"]: str(Path(model["path"]).relative_to(folders[0])) for model in content["models"]}


def test_models_of_lm_studio_are_named_like_their_files(tmp_path: Path) -> None:
    models = tmp_path / ".lmstudio/models"
    qwen = "lmstudio-community/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf"
    gemma = "unsloth/gemma-3-4b-it-GGUF/gemma-3-4b-it-Q4_K_M.gguf"
    make.small_model(models / qwen)
    make.small_model(models / gemma)
    (models / ".internal").mkdir()
    (models / ".internal/model-index-cache.json").write_text("{}", encoding="utf-8")
    assert ids(models) == {"qwen3-8b-q4_k_m": qwen, "gemma-3-4b-it-q4_k_m": gemma}


def test_one_file_of_two_publishers_has_two_ids(tmp_path: Path) -> None:
    for publisher in ("lmstudio-community", "unsloth"):
        make.small_model(tmp_path / publisher / "Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf")
    found = ids(tmp_path)
    assert len(found) == 2
    assert all(name.startswith("qwen3-8b-q4_k_m") for name in found)


def test_downloads_of_llama_cpp_are_named_without_their_repository(tmp_path: Path) -> None:
    cache = tmp_path / ".cache/llama.cpp"
    name = "ggml-org_gemma-3-1b-it-GGUF_gemma-3-1b-it-Q4_K_M.gguf"
    make.small_model(cache / name)
    for side, text in ((f"{name}.etag", '"abc"'), (f"{name}.json", "{}")):
        (cache / side).write_text(text, encoding="utf-8")
    (cache / "manifest=ggml-org=gemma-3-1b-it-GGUF=latest.json").write_text("{}", encoding="utf-8")
    (cache / "ggml-org_other-GGUF_other-Q8_0.gguf.downloadInProgress").write_bytes(b"GGUF")
    assert ids(cache) == {"gemma-3-1b-it-q4_k_m": name}


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("ggml-org_gemma-3-1b-it-GGUF_gemma-3-1b-it-Q4_K_M.gguf", "gemma-3-1b-it-Q4_K_M"),
        ("unsloth_Qwen3-8B-GGUF_qwen3-8b-Q8_0.gguf", "qwen3-8b-Q8_0"),
        ("o_Big-GGUF_Big-Q4_K_M-00001-of-00002.gguf", "Big-Q4_K_M"),
        # What is not named like its repository keeps its whole name.
        ("ggml-org_gemma-3-4b-it-GGUF_mmproj-model-f16.gguf", "ggml-org_gemma-3-4b-it-GGUF_mmproj-model-f16"),
        ("my_model_v2-Q4_K_M.gguf", "my_model_v2-Q4_K_M"),
    ],
)
def test_stem_of_download_is_that_of_its_file(name: str, stem: str) -> None:
    assert stem_of(f"/m/{name}") == stem
    assert slug(f"/m/{name}").startswith(stem.lower()[:8])
