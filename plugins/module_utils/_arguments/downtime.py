# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of modules that plan how servers change while gateways send them requests."""

from __future__ import annotations

OPTIONS = {
    "without_downtime": {"type": "bool", "default": False},
    "served_here": {"type": "dict", "default": {}},
    "served_elsewhere": {"type": "list", "elements": "str", "default": []},
    "allow_downtime": {"type": "bool", "default": False},
}
