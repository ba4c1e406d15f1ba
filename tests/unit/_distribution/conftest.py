# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts of a run, each a Swarm in this process, on loopback."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._distribution import board, pieces
from ansible_collections.magi.llama.plugins.module_utils._distribution.job import Job, JobFile, JobPeer
from ansible_collections.magi.llama.plugins.module_utils._distribution.swarm import Swarm
from support import checkout

NAME = "family/model-Q4_K_M.gguf"
SIZE = 1_000_000
PIECE = 64 << 10


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces, and no long waits."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", ((1 << 30, 16 << 20), (0, PIECE)))
    monkeypatch.setattr(board, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(board, "JOIN_SECONDS", 0.5)
    monkeypatch.setattr(board, "RETRY_SECONDS", 0.5)


class Fleet:
    """Makes hosts, each with a models folder of its own. Those named first, in seeds, have the file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Another test may run next to this one.
        self.token = secrets.token_hex(8)
        self.data = random.Random(1).randbytes(SIZE)
        self.swarms: list[Swarm] = []
        original = self.path("original")
        original.parent.mkdir(parents=True)
        original.write_bytes(self.data)
        self.pieces = pieces.compute_pieces(str(original))

    def path(self, host: str) -> Path:
        return self.folder / host / NAME

    def job(self, me: str, names: Sequence[str], seeds: Sequence[str] = (), **more: Any) -> Job:
        (self.folder / me).mkdir(exist_ok=True)
        gets = tuple(name for name in names if name not in seeds)
        role = "get" if me in gets else "give"
        file = {
            "mirror": "",
            "sha256": "",
            **{key: more.pop(key) for key in ("mirror", "sha256") if key in more},
        }
        ports = checkout.ports("distribution")
        return Job(
            run="run-1",
            token=more.pop("token", self.token),
            me=me,
            folder=str(self.folder / me),
            files=(JobFile(NAME, self.pieces, role, gets, **file),),
            peers=tuple(
                JobPeer(name, "127.0.0.1", frozenset({0} if name in seeds else ())) for name in names if name != me
            ),
            addresses=("127.0.0.1",),
            ports=ports,
            **more,
        )

    def seed(self, name: str) -> None:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_bytes(self.data)

    def start(self, job: Job, kind: Callable[[Job], Swarm] = Swarm) -> Swarm:
        swarm = kind(job)
        self.swarms.append(swarm)
        swarm.start()
        return swarm


@pytest.fixture
def fleet(small: None, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    for swarm in made.swarms:
        swarm.stop()
