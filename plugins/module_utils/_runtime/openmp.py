# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Whether the threads of a llama-server wait for each other in GNU OpenMP, which obeys GOMP_SPINCOUNT."""

from __future__ import annotations

import os

from .elf import needed_libraries
from .libraries import named_by_script
from .probe import ggml_files

_GNU_OPENMP = "libgomp.so"
# A program that needs none of them has what computes on the CPU in itself.
_OF_LLAMA = ("libggml", "libllama", "libmtmd")


def uses_openmp(program: str) -> bool | None:
    """Return whether what computes on the CPU needs GNU OpenMP; None where that part is not found."""
    real = os.path.realpath(program)
    programs = [real, *(path for path in named_by_script(real) if os.access(path, os.X_OK))]
    files = [path for one in programs for path in ggml_files(one)]
    files = [path for path in files if os.path.basename(path).startswith(("libggml-cpu", "libggml.so"))]
    needs = {path: found for path in (*programs, *files) if (found := needed_libraries(path)) is not None}
    names = {name for found in needs.values() for name in found}
    if any(name.startswith(_GNU_OPENMP) for name in names):
        return True
    has_backend = any(os.path.basename(path).startswith("libggml-cpu") for path in needs)
    is_whole = bool(needs) and not any(name.startswith(_OF_LLAMA) for name in names)
    return False if has_backend or is_whole else None
