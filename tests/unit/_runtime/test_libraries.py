# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which shared libraries a llama-server is loaded with."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.commands import Completed
from ansible_collections.magi.llama.plugins.module_utils._runtime.libraries import loaded_files

# As ldd of Debian 12 prints it.
LDD = """\
/opt/llama-server:
	linux-vdso.so.1 (0x00007ffd1b5f2000)
	libllama.so.0 => /home/me/llama.cpp/build/bin/libllama.so.0 (0x00007f3c9e000000)
	libcudart.so.12 => not found
	libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f3c9dc00000)
	/lib64/ld-linux-x86-64.so.2 (0x00007f3c9e3f1000)
/opt/libggml-cuda.so:
	libcublas.so.12 => /home/me/my cuda/libcublas.so.12 (0x00007f3c9c000000)
	libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f3c9dc00000)
"""


def test_libraries_of_program_and_gpu_backends_are_found(tmp_path: Path) -> None:
    program, backend = tmp_path / "llama-server", tmp_path / "libggml-cuda.so"
    for path in (program, backend, tmp_path / "libggml-cpu-haswell.so"):
        path.write_bytes(b"\x7fELF")
    calls = []

    def run(argv, environment, seconds):
        calls.append(argv)
        return Completed(1, LDD, "")

    link = tmp_path / "link"
    link.symlink_to(program)
    assert loaded_files(str(link), run) == [
        "/home/me/llama.cpp/build/bin/libllama.so.0",
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/lib64/ld-linux-x86-64.so.2",
        "/home/me/my cuda/libcublas.so.12",
    ]
    assert calls == [["ldd", str(program), str(backend)]]


def test_script_s_program_is_asked_for_its_libraries(tmp_path: Path) -> None:
    program, script = tmp_path / "build" / "llama-server", tmp_path / "llama-server"
    program.parent.mkdir()
    program.touch(0o755)
    script.write_text(f'#!/bin/sh\nexec {program} --log-file /no/such/file "$@"\n')
    asked = []

    def run(argv, environment, seconds):
        asked.extend(argv[1:])
        return Completed(1, "\tnot a dynamic executable\n", "")

    assert loaded_files(str(script), run) == [str(program)]
    assert asked == [str(script), str(program)]


def test_distribution_s_program_is_not_asked() -> None:
    assert loaded_files("/usr/bin/env", lambda *_arguments: pytest.fail("asked")) == []


def test_host_without_ldd_is_not_an_error(tmp_path: Path) -> None:
    def run(argv, environment, seconds):
        raise FileNotFoundError(argv[0])

    assert loaded_files(str(tmp_path / "llama-server"), run) == []
