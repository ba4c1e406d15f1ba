# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The versions that the collection is tested with."""

from __future__ import annotations

# Each ansible-core with the controller Pythons that it supports, the preferred one first. pyproject.toml has a group
# of dependencies for each, and uv.lock the exact versions; .github/workflows/ci.yml has a job for each pair.
CORES = {
    "2.19": ("3.11", "3.12"),
    "2.20": ("3.12", "3.13"),
    "2.21": ("3.14", "3.13", "3.12"),
    "2.22": ("3.14", "3.13"),
}
# Not released yet: their failures are expected.
PREVIEWS = {"2.22"}
# Pythons of managed hosts.
TARGETS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
