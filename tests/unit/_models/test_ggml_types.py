# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of types against this machine's own llama.cpp: what its llama-quantize lists, and what it writes.

MAGI_LLAMA_BIN_DIR names the folder with llama-quantize; without it these tests are skipped.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._models.gguf import read_header
from ansible_collections.magi.llama.plugins.module_utils._models.quantization import _FILE_TYPES
from support.gguf_files import write_tiny_llama

BIN_DIR = os.environ.get("MAGI_LLAMA_BIN_DIR", "")
pytestmark = pytest.mark.skipif(not BIN_DIR, reason="MAGI_LLAMA_BIN_DIR names no folder with llama-quantize")

# These need an importance matrix; the gguf package knows their sizes.
_NEED_MATRIX = re.compile(r"IQ[123]_|Q2_K_S")


def offered() -> dict[int, str]:
    """The file types that llama-quantize offers, by number, without its aliases."""
    if not BIN_DIR:
        return {}
    done = subprocess.run([f"{BIN_DIR}/llama-quantize", "--help"], capture_output=True, text=True, check=False)
    rows = re.findall(r"^ *([0-9]+)  or  (\S+) *:(.*)$", done.stdout + done.stderr, re.MULTILINE)
    return {int(number): name for number, name, about in rows if "alias" not in about}


OFFERED = offered()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("types") / "f16.gguf")


def test_file_types_are_those_of_llama_quantize() -> None:
    assert len(OFFERED) > 30
    assert {number: _FILE_TYPES.get(number) for number in OFFERED} == OFFERED


@pytest.mark.parametrize("name", sorted(name for name in OFFERED.values() if not _NEED_MATRIX.match(name)))
def test_tensors_of_each_type_fill_the_file(name: str, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    command = [f"{BIN_DIR}/llama-quantize", str(source), str(target), name, "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    header = read_header(str(target))
    end = max(tensor.offset + tensor.n_bytes for tensor in header.tensors)
    # Padded to the alignment: a block size or type size that is wrong leaves bytes over, or is refused by the reader.
    assert 0 <= target.stat().st_size - header.data_offset - end < 32
