# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a llama-server uses GNU OpenMP, by the libraries that its files need."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._runtime.elf import needed_libraries
from ansible_collections.magi.llama.plugins.module_utils._runtime.openmp import uses_openmp

BASE = 0x10000


def elf(*libraries: str, bits: int = 64, order: str = "<") -> bytes:
    """A file with an ELF header, a segment that is loaded at BASE, and the dynamic segment in it."""
    is_64 = bits == 64
    header = struct.Struct(f"{order}HHIQQQIHHHHHH" if is_64 else f"{order}HHIIIIIHHHHHH")
    program = struct.Struct(f"{order}IIQQQQQQ" if is_64 else f"{order}8I")
    pair = struct.Struct(f"{order}QQ" if is_64 else f"{order}II")
    first = 16 + header.size
    names, offsets = b"\0", []
    for library in libraries:
        offsets.append(len(names))
        names += library.encode() + b"\0"
    strings = first + 2 * program.size
    entries = [(1, offset) for offset in offsets] + [(5, BASE + strings), (0, 0), (1, 99)]
    dynamic = b"".join(pair.pack(*entry) for entry in entries)
    at, size = strings + len(names), strings + len(names) + len(dynamic)

    def segment(kind: int, offset: int, length: int) -> bytes:
        fields = [offset, BASE + offset, 0, length, length]
        return program.pack(kind, 4, *fields, 8) if is_64 else program.pack(kind, *fields, 4, 8)

    ident = b"\x7fELF" + bytes([2 if is_64 else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    head = header.pack(3, 62, 1, 0, first, 0, 0, 16 + header.size, program.size, 2, 0, 0, 0)
    return ident + head + segment(1, 0, size) + segment(2, at, len(dynamic)) + names + dynamic


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("order", ["<", ">"])
def test_needed_libraries_are_read(tmp_path: Path, bits: int, order: str) -> None:
    path = tmp_path / "llama-server"
    path.write_bytes(elf("libgomp.so.1", "libc.so.6", bits=bits, order=order))
    assert needed_libraries(str(path)) == ["libgomp.so.1", "libc.so.6"]


def test_other_and_damaged_files_need_nothing_that_is_known(tmp_path: Path) -> None:
    path, whole = tmp_path / "llama-server", elf("libgomp.so.1")
    assert needed_libraries(str(path)) is None
    for content in (b"", b"#!/bin/sh\n", whole[:15], whole[:70], whole.replace(struct.pack("<Q", BASE), bytes(8))):
        path.write_bytes(content)
        assert needed_libraries(str(path)) is None
    # One wrong byte makes other files of it; each is read to an end.
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        needed_libraries(str(path))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # One file with everything.
        ({"bin/llama-server": elf("libgomp.so.1", "libc.so.6")}, True),
        ({"bin/llama-server": elf("libc.so.6")}, False),
        # clang's OpenMP has settings of its own.
        ({"bin/llama-server": elf("libomp.so.5")}, False),
        # Upstream's and a distribution's layout.
        ({"bin/llama-server": elf("libllama.so"), "bin/libggml-cpu-zen4.so": elf("libgomp.so.1")}, True),
        ({"bin/llama-server": elf("libllama.so"), "bin/libggml-cpu-zen4.so": elf("libm.so.6")}, False),
        (
            {"bin/llama-server": elf("libllama.so"), "lib/x/ggml/backends0/libggml-cpu-zen4.so": elf("libgomp.so.1")},
            True,
        ),
        # Libraries that are elsewhere, and files that cannot be read.
        ({"bin/llama-server": elf("libllama.so", "libc.so.6")}, None),
        ({"bin/llama-server": elf("libllama.so"), "bin/libggml-cpu.so": b"damaged"}, None),
        ({"bin/llama-server": b"#!/bin/sh\nexec /nonexistent/llama-server\n"}, None),
    ],
)
def test_openmp_is_found_in_what_computes_on_the_cpu(
    tmp_path: Path, files: dict[str, bytes], expected: bool | None
) -> None:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert uses_openmp(str(tmp_path / "bin/llama-server")) is expected
    # As the wrapper of a prefix, which starts it.
    if expected is not None:
        (tmp_path / "bin/llama-server").chmod(0o755)
        wrapper = tmp_path / "wrapper"
        wrapper.write_text(f'#!/bin/sh\nexec {tmp_path}/bin/llama-server "$@"\n')
        assert uses_openmp(str(wrapper)) is expected
