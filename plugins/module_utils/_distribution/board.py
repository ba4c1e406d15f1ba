# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Which piece a host gets next, and from whom.

Each piece of a source is first shown to one host, its owner, which hands it on: a source then sends a file little more
than once, however many hosts there are. A host that is gone has its pieces taken over by the others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# Seconds without a new piece after which a host asks the source for what others should have got first.
PATIENCE_SECONDS = 20.0
# Failures in a row after which a host is not asked for a while.
MAX_FAILURES = 3
RETRY_SECONDS = 10.0
BUSY_SECONDS = 0.1
# The others of a run begin a little later, more so where Ansible has fewer forks than hosts.
JOIN_SECONDS = 30.0
# Pieces that are looked at for one choice: with all of a large fleet's, choosing would take longer than fetching.
SAMPLE = 256


@dataclass
class Peer:
    """Another host of the run. have are the numbers of its pieces for each file, seeds the files that it had before."""

    name: str
    host: str
    port: int | None = None
    seeds: frozenset[int] = frozenset()
    have: dict[int, set[int]] = field(default_factory=dict)
    failures: int = 0
    rest_until: float = 0.0
    dropped: str = ""
    was_reached: bool = False
    error: str = ""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port; the port is known once it was reached."""
        return self.host, self.port or 0

    def is_alive(self, now: float) -> bool:
        return not self.dropped and (self.failures < MAX_FAILURES or now >= self.rest_until)

    def note_failure(self, error: str, now: float) -> None:
        self.failures += 1
        self.error = error
        self.rest_until = now + (RETRY_SECONDS if self.failures >= MAX_FAILURES else BUSY_SECONDS)

    def note_busy(self, now: float) -> None:
        self.rest_until = now + BUSY_SECONDS

    def note_success(self) -> None:
        self.failures, self.was_reached, self.error = 0, True, ""


@dataclass(frozen=True)
class Choice:
    """A piece to get: the file's and the piece's number, and the peer, None for the mirror."""

    file: int
    number: int
    peer: Peer | None


@dataclass
class Need:
    """A file that this host is to get: its missing pieces, the hosts that get it too, in order, and its mirror."""

    file: int
    missing: Callable[[], set[int]]
    hosts: Sequence[str]
    mirror: str = ""


class Board:
    """What this host knows of the others. It is not safe for threads: the caller has a lock."""

    def __init__(self, me: str, began: float, chance: random.Random | None = None) -> None:
        self.me, self._began = me, began
        self.peers: dict[str, Peer] = {}
        self.needs: list[Need] = []
        self.in_flight: set[tuple[int, int]] = set()
        self._chance = chance or random.Random()

    def owner(self, need: Need, number: int, now: float) -> str:
        """The host that is shown this piece first."""
        first = need.hosts[number % len(need.hosts)]
        if first == self.me or self._is_there(first, now):
            return first
        rest = [name for name in need.hosts if name == self.me or self._is_there(name, now)]
        return rest[number // len(need.hosts) % len(rest)] if rest else self.me

    def _is_there(self, name: str, now: float) -> bool:
        peer = self.peers.get(name)
        if peer is None or peer.dropped:
            return False
        is_expected = not peer.was_reached and now - self._began < JOIN_SECONDS
        return is_expected or peer.failures < MAX_FAILURES

    def from_hosts(self, now: float) -> Choice | None:
        """The rarest missing piece that a host has which is getting the file too, or has got it in this run."""
        best: Choice | None = None
        least = len(self.peers) + 1
        ready = [peer for peer in self.peers.values() if peer.is_alive(now) and now >= peer.rest_until]
        for need in self.needs:
            sharing = [peer for peer in ready if need.file not in peer.seeds and peer.have.get(need.file)]
            if not sharing:
                continue
            for number in self._sample(need):
                holders = [peer for peer in sharing if number in peer.have[need.file]]
                if holders and len(holders) < least:
                    least, best = len(holders), Choice(need.file, number, self._chance.choice(holders))
        return best

    def from_source(self, now: float, idle_seconds: float) -> Choice | None:
        """A missing piece that is this host's to get from a source and that no other host has."""
        is_patient = idle_seconds < PATIENCE_SECONDS
        for need in self.needs:
            sources = self._sources(need, now)
            if not sources:
                continue
            for number in self._sample(need):
                if self._is_held(need, number, now) and is_patient:
                    continue
                if not is_patient or self.owner(need, number, now) == self.me:
                    return Choice(need.file, number, self._chance.choice(sources))
        return None

    def _sources(self, need: Need, now: float) -> list[Peer | None]:
        found: list[Peer | None] = [
            peer
            for peer in self.peers.values()
            if need.file in peer.seeds and peer.have.get(need.file) and peer.is_alive(now) and now >= peer.rest_until
        ]
        return [*found, None] if need.mirror else found

    def _is_held(self, need: Need, number: int, now: float) -> bool:
        """Whether a host that is not a source has a piece."""
        return any(
            number in peer.have.get(need.file, ()) and need.file not in peer.seeds and peer.is_alive(now)
            for peer in self.peers.values()
        )

    def _sample(self, need: Need) -> list[int]:
        missing = [number for number in need.missing() if (need.file, number) not in self.in_flight]
        if len(missing) > SAMPLE:
            own = [number for number in missing if need.hosts[number % len(need.hosts)] == self.me]
            missing = self._chance.sample(own, min(SAMPLE, len(own))) + self._chance.sample(missing, SAMPLE)
        self._chance.shuffle(missing)
        return missing
