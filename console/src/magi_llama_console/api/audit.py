# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes to the audit log who did what."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..console import Console
from ..store.base import AuditEntry, now

LOG = logging.getLogger(__name__)


async def record(
    console: Console, by: str, action: str, target: str, detail: Mapping[str, Any] | None = None, address: str = ""
) -> None:
    """Add an entry. detail has no secret: it is kept as it is, and shown to all who may read."""
    await console.store.add_audit(AuditEntry(now(), by, action, target, detail or {}, address))
    LOG.info("%s by %s from %s: %s", action, by, address or "-", target)
