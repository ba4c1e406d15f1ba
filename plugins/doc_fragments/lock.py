# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of modules that acquire a host's lock; their types are in module_utils/_arguments/run_lock.py."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  wait:
    description: Seconds to wait for another run that holds the lock; with 0, fail immediately.
    type: float
    default: 300
  take_over:
    description: Steal the lock from another run, which then fails at its next step.
    type: bool
    default: false
"""
