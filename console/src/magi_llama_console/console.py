# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the parts of a running console share; app.state.console."""

from __future__ import annotations

from dataclasses import dataclass, field

from .attempts import Attempts
from .fleet.inventory import InventoryReader
from .fleet.watch import FleetWatch
from .jobs.service import Jobs
from .known import KnownReader
from .settings import Settings
from .store.base import Store, now
from .streams import Streams
from .tokens import TokenReader


@dataclass(slots=True)
class Console:
    """Made when the application starts, gone when it ends."""

    settings: Settings
    store: Store
    jobs: Jobs
    inventory: InventoryReader
    # What requests are validated against.
    known: KnownReader
    fleet: FleetWatch
    tokens: TokenReader
    attempts: Attempts = field(default_factory=Attempts)
    streams: Streams = field(default_factory=Streams)
    started_at: str = field(default_factory=now)
