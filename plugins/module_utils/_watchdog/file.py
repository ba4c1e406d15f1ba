# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The watchdog's program as hosts have it."""

from __future__ import annotations

from .._core.host_program import host_program
from . import program


def watchdog_program(header: str) -> str:
    """The program that looks at a host's servers; header is a text that it begins with, as a comment."""
    return host_program(program.__name__, header)
