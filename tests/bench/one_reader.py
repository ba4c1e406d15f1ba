# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read one header, or scan one folder, in its own process: `python -m bench.one_reader NAME PATH` prints JSON."""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def reader(name: str) -> Callable[[str], Any]:
    if name == "ours":
        from ansible_collections.magi.llama.plugins.module_utils._models.gguf import read_header

        return read_header
    if name == "gguf":
        from gguf import GGUFReader

        return GGUFReader
    if name == "gguf-parser":
        from gguf_parser import GGUFParser

        return lambda path: GGUFParser(path).parse()
    if name == "gguf-inspect":
        from gguf_inspect import parse_gguf

        # The fastest setting: arrays are skipped, as in ours.
        return lambda path: parse_gguf(path, array_limit=1)
    from ansible_collections.magi.llama.plugins.module_utils._models.registry_file import load
    from ansible_collections.magi.llama.plugins.module_utils._models.scan import scan

    return lambda folder: scan([folder], load(f"{folder}/none.json"))


def from_proc(file: str) -> dict[str, int]:
    text = Path("/proc/self", file).read_text()
    return {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)", text, re.MULTILINE)}


def count_reads() -> Callable[[], int]:
    """Count file reads in this process and its forks; reads from pipes are not counted."""
    counted = tempfile.TemporaryFile()  # noqa: SIM115 - open until the process ends
    real = os.pread

    def pread(descriptor: int, count: int, offset: int) -> bytes:
        os.write(counted.fileno(), b".")
        return real(descriptor, count, offset)

    os.pread = pread
    return lambda: os.fstat(counted.fileno()).st_size


def processor() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    name, path = sys.argv[1:]
    read = reader(name)  # the import is not timed
    file_reads = count_reads()
    first, before = from_proc("io"), from_proc("io")
    looking = before["syscr"] - first["syscr"]  # the calls of one measurement
    used, began = processor(), time.perf_counter()
    read(path)
    seconds = time.perf_counter() - began
    after = from_proc("io")
    result = {
        "seconds": seconds,
        "processor": processor() - used,
        "fetched": after["read_bytes"] - before["read_bytes"],
        "file_reads": file_reads(),
        "reads": after["syscr"] - before["syscr"] - looking,
        "peak_bytes": from_proc("status")["VmHWM"] * 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
