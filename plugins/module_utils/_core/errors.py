# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Base classes of the collection's errors."""

from __future__ import annotations


class MagiError(Exception):
    """An error that the user can fix. Its text is a full sentence that names the file or key and the fix."""


class EstimateError(MagiError):
    """Raised for a header or setting from which memory cannot be estimated."""
