# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What requests are validated against: hosts, groups, profiles, and the servers that are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .ansible import collection_folders
from .fleet.inventory import InventoryReader
from .fleet.profiles import builtin_folder, list_profiles
from .jobs.requests import Known
from .settings import Settings


class KnownReader:
    """Reads the inventory and lists the profiles, both as they are now.

    servers gives the names of the deployed servers of each host of which they are known.
    """

    def __init__(
        self,
        settings: Settings,
        inventory: InventoryReader,
        servers: Callable[[], Mapping[str, frozenset[str]]] | None = None,
    ) -> None:
        self._settings, self._inventory, self.servers = settings, inventory, servers

    async def read(self) -> Known:
        """Raises InventoryError, ProfileFileError."""
        inventory = await self._inventory.read()
        builtin = builtin_folder(collection_folders(self._settings))
        return Known(
            hosts=tuple(inventory.hosts),
            groups=inventory.groups,
            profiles=frozenset(list_profiles(self._settings.inventory, builtin)),
            servers=self.servers() if self.servers else {},
        )
