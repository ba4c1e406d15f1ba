# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pairing of projectors takes work by the number of files, not by the number of pairs."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._models.projectors import pair_projectors
from support.work import counted


def model(name: str, width: int = 64) -> dict[str, Any]:
    sizes = {"block_count": 1, "embedding_length": width}
    return {"path": f"/m/{name}.gguf", "architecture": "a", "quantization": "Q4_0", "warnings": [], **sizes}


def projector(name: str, width: int = 64) -> dict[str, Any]:
    kinds = {"kind": "mmproj", "quantization": "F16", "projector_type": "x"}
    return {"path": f"/m/{name}.gguf", "embedding_length": width, **kinds}


def same_words(count: int) -> list[dict[str, Any]]:
    """Different file names with the same words."""
    return [projector(f"{'mmproj-' * (number % 20 + 1)}{'model-' * (number // 20)}") for number in range(count)]


def folder(kind: str, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    models = [model(f"alpha-m{number}", number if kind == "width" else 64) for number in range(count)]
    projectors = same_words(count)
    if kind == "name":
        projectors = [{**one, "path": one["path"].replace(".gguf", "alpha.gguf")} for one in projectors]
    if kind == "other":
        projectors = [projector(f"mmproj-alpha-{number}") for number in range(count)]
    if kind == "width":
        projectors = [{**one, "embedding_length": count + number} for number, one in enumerate(projectors)]
    return models, projectors


@pytest.mark.parametrize("kind", ["name", "nameless", "other", "width"])
def test_many_projectors_take_linear_work_and_few_words(kind: str) -> None:
    calls = []
    for count in (200, 800):
        models, projectors = folder(kind, count)
        with counted() as work:
            unused = pair_projectors(models, projectors)
        calls.append(work.calls)
        text = sum(len(warning) for record in models for warning in record["warnings"]) + sum(map(len, unused))
        assert text < 1000 * count
    assert calls[1] < 6 * calls[0]
