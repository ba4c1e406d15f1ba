# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Send pieces of the controller's files to a host through Ansible's connection."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.magi.llama.plugins.module_utils._distribution.limits import RateLimit
from ansible_collections.magi.llama.plugins.module_utils._distribution.part_file import read_at
from ansible_collections.magi.llama.plugins.module_utils._distribution.peer_server import numbers_of
from ansible_collections.magi.llama.plugins.module_utils._distribution.pieces import Pieces
from ansible_collections.magi.llama.plugins.module_utils._distribution.run_plan import Transfer, pushed

# Sent before the host is looked at again.
BATCH_BYTES = 32 << 20
STALLED_SECONDS = 20.0
# After it was once stalled, hosts or ports are amiss, and the next stall is noticed sooner.
AGAIN_SECONDS = 2.0


class Pusher:
    """Sends a host its share of the pieces of files, by number, that the controller has in a folder.

    Only as many hosts as Ansible has forks are sent pieces at the same time: the others get them from these.
    """

    def __init__(
        self,
        action: ActionBase,
        folder: str,
        files: Mapping[int, Transfer],
        pieces: Mapping[int, Pieces],
        me: str,
        forks: int,
        rate: int,
    ) -> None:
        self._action, self._folder, self._files, self._pieces, self._me = action, folder, files, pieces, me
        self._forks = forks
        sharing = max(min(forks, len(transfer.gets)) for transfer in files.values())
        self._limit = RateLimit(rate // sharing)
        self._sent: dict[tuple[int, int], float] = {}
        self._patience = STALLED_SECONDS
        self._batches = 0
        self.is_busy = True

    def push(self, status: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Send pieces that the host lacks by its status; returns what has arrived as the module takes it."""
        if "pieces" not in status:
            return []
        is_stalled = status["idle_seconds"] > self._patience
        if is_stalled:
            self._patience = AGAIN_SECONDS
        # A host alone has no one to get the rest from.
        is_alone = not status["hosts_reached"]
        batch: list[tuple[int, int]] = []
        total = 0
        for file, number in self._next(status, is_alone, is_stalled):
            if total >= BATCH_BYTES:
                break
            batch.append((file, number))
            total += self._pieces[file].length(number)
        self.is_busy = bool(batch)
        return [self._send(batch)] if batch else []

    def _next(self, status: Mapping[str, Any], is_alone: bool, is_stalled: bool) -> list[tuple[int, int]]:
        found = []
        for file, transfer in self._files.items():
            pieces = self._pieces[file]
            count = len(pieces.digests)
            have = numbers_of(status["pieces"].get(str(file), "0"), count)
            missing = [
                number
                for number in range(count)
                if number not in have and time.monotonic() - self._sent.get((file, number), -60.0) > 30.0
            ]
            limit = max(1, BATCH_BYTES // pieces.piece_bytes)
            hosts = transfer.gets[: self._forks]
            is_only = is_alone and len(transfer.gets) > 1
            for number in pushed(
                missing, hosts, self._me, is_alone=is_only and is_stalled, is_stalled=is_stalled, limit=limit
            ):
                found.append((file, number))
        return found

    def _send(self, batch: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Put pieces, one after the other in one file, into the connecting user's temporary folder on the host."""
        action = self._action
        if action._connection._shell.tmpdir is None:
            action._make_tmp_path()
        folder = action._connection._shell.tmpdir
        self._batches += 1
        remote = action._connection._shell.join_path(folder, f"pieces-{self._batches}")
        with tempfile.NamedTemporaryFile(prefix="magi-llama-pieces-") as local:
            for file, number in batch:
                local.write(self._read(file, number))
            local.flush()
            self._limit.take(local.tell())
            action._transfer_file(local.name, remote)
        action._fixup_perms2((folder, remote), execute=False)
        self._sent.update(dict.fromkeys(batch, time.monotonic()))
        pieces = [[file, number, self._pieces[file].length(number)] for file, number in batch]
        return {"path": str(remote), "pieces": pieces}

    def _read(self, file: int, number: int) -> bytes:
        pieces, path = self._pieces[file], os.path.join(self._folder, self._files[file].name)
        with open(path, "rb", buffering=0) as stream:
            data = read_at(stream.fileno(), number * pieces.piece_bytes, pieces.length(number))
        if not pieces.is_piece(number, data):
            raise AnsibleActionFail(f"{path} has changed since the run began. Run again when it is complete.")
        return data
