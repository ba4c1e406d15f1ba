# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""A host's part in a run: it gets pieces from several sides at the same time, and hands out those that it has."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from .._core.errors import MagiError
from .._core.text import visible_text
from .board import Board, Choice, Need, Peer
from .client import FAILURES, BusyError, MirrorError, fetch_have, fetch_piece, fetch_range
from .job import Job
from .limits import RateLimit
from .part_file import PartFile, require_space, written_bytes
from .peer_server import PieceServer, numbers_of

SOURCE_THREADS, HOST_THREADS = 2, 4
IDLE_SECONDS = 0.05
POLL_SECONDS = 0.4
# Between two attempts to reach a host that does not answer.
LOST_SECONDS = 2.0
MAX_MIRROR_FAILURES = 20


class _NoPortError(ConnectionError):
    """No port of the range is open."""


class Swarm:
    """Runs a job in threads. wait() returns once every file is there, or an error has ended it.

    While it is made it reads what an earlier run has copied, and calls opening after each piece.
    """

    def __init__(
        self, job: Job, clock: Callable[[], float] = time.monotonic, opening: Callable[[], object] = lambda: None
    ) -> None:
        self._job, self._clock = job, clock
        self.error = ""
        self.counts = {"source": 0, "hosts": 0, "controller": 0}
        self.garbage: dict[str, str] = {}
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._board = Board(job.me, clock())
        self._down = RateLimit(job.rate_down)
        self._mirror_failures = 0
        self.files = self._open(opening)
        self._last_piece = self._last_read = clock()
        for peer in job.peers:
            self._board.peers[peer.name] = Peer(peer.name, peer.host, seeds=peer.seeds)
        for number, (file, part) in enumerate(zip(job.files, self.files)):
            if part is not None and not part.is_done:
                self._board.needs.append(Need(number, part.missing, file.hosts, file.mirror))
        self.server = PieceServer(job.me, self.files, job.token, RateLimit(job.rate_up), job.addresses, job.ports)

    def _open(self, opening: Callable[[], object]) -> list[PartFile | None]:
        """Open the files; FILE.part is created only where all of them fit. Raises MagiError, OSError."""
        parts: list[PartFile | None] = []
        needed = 0
        for file in self._job.files:
            part = PartFile(self._job.folder, file.name, file.pieces) if file.role != "none" else None
            if part is not None and not part.open_complete():
                if file.role == "give":
                    raise MagiError(f"{part.path} is not there any more, or has another size. Run again.")
                needed += max(0, file.pieces.size - written_bytes(part.path))
            parts.append(part)
        require_space(self._job.folder, needed, self._job.reserve_bytes)
        for part in parts:
            if part is not None and not part.is_done:
                part.open_part(opening)
        return parts

    def start(self) -> None:
        """Begin to hand out and to get pieces."""
        self.server.start()
        work = [self._poll_of(peer) for peer in self._board.peers.values()]
        if self._board.needs:
            work += [lambda: self._get(self._next_from_source)] * SOURCE_THREADS
            work += [lambda: self._get(self._next_from_host)] * HOST_THREADS
            work.append(self._finish)
        for one in work:
            threading.Thread(target=one, daemon=True).start()

    def stop(self) -> None:
        """End all threads that get pieces, and the server."""
        self._ended.set()
        self.server.stop()

    @property
    def is_complete(self) -> bool:
        return all(part is None or part.is_done for part in self.files)

    def idle_seconds(self) -> float:
        """Seconds since the last new piece."""
        return self._clock() - self._last_piece

    def quiet_seconds(self) -> float:
        """Seconds since the last new piece, and since a complete file was last read for its sha256."""
        return self._clock() - max(self._last_piece, self._last_read)

    def _note_read(self) -> None:
        self._last_read = self._clock()

    def wait(self, seconds: float) -> bool:
        """Wait until every file is there; False after the time, or after an error."""
        until = self._clock() + seconds
        while not self.is_complete and not self.error and self._clock() < until:
            time.sleep(IDLE_SECONDS)
        return self.is_complete

    def _poll_of(self, peer: Peer) -> Callable[[], None]:
        return lambda: self._poll(peer)

    def _poll(self, peer: Peer) -> None:
        """Ask a host again and again what it has; one that has all is asked no more often than a lost one."""
        while not self._ended.is_set() and not peer.dropped:
            try:
                have = self._ask(peer)
            except FAILURES as error:
                with self._lock:
                    peer.note_failure(visible_text(str(error))[:200], self._clock())
                self._ended.wait(LOST_SECONDS)
                continue
            with self._lock:
                peer.have = have
                peer.note_success()
            self._ended.wait(POLL_SECONDS if self._board.needs and not self.is_complete else LOST_SECONDS)

    def _ask(self, peer: Peer) -> dict[int, set[int]]:
        """What a host has. Its port is the first of the range at which it answers with its name."""
        error: Exception = _NoPortError("it does not listen on any port of the range")
        for port in [peer.port] if peer.port else self._job.ports:
            try:
                answer = fetch_have((peer.host, port), self._job.token)
                if not isinstance(answer, dict) or answer.get("name") != peer.name:
                    raise ValueError("another host of the run answers there")
                have = self._numbers(answer.get("have"))
            except socket.timeout:
                # Closed ports are silent: each further one would take as long.
                peer.port = None
                raise
            except FAILURES as failure:
                # The first port that is open says most.
                is_closed = isinstance(failure, ConnectionRefusedError)
                error = failure if isinstance(error, _NoPortError) and not is_closed else error
                continue
            peer.port = port
            return have
        peer.port = None
        raise error

    def _numbers(self, have: Any) -> dict[int, set[int]]:
        if not isinstance(have, dict):
            raise ValueError("its answer is not one of this run")
        counts = {str(number): len(file.pieces.digests) for number, file in enumerate(self._job.files)}
        return {int(key): numbers_of(bitmap, counts[key]) for key, bitmap in have.items() if key in counts}

    def _get(self, choose: Callable[[], Choice | None]) -> None:
        """Get one piece after the other while something is missing."""
        while not self._ended.is_set() and not self.error:
            with self._lock:
                choice = choose()
                if choice is not None:
                    self._board.in_flight.add((choice.file, choice.number))
            if choice is None:
                self._ended.wait(IDLE_SECONDS)
                continue
            try:
                self._get_piece(choice)
            except (MagiError, OSError) as error:
                self.error = str(error)
            finally:
                with self._lock:
                    self._board.in_flight.discard((choice.file, choice.number))

    def _next_from_source(self) -> Choice | None:
        return self._board.from_source(self._clock(), self.idle_seconds())

    def _next_from_host(self) -> Choice | None:
        return self._board.from_hosts(self._clock())

    def _get_piece(self, choice: Choice) -> None:
        """Get a piece and keep it. Raises MagiError where the mirror is of no use, OSError of the disk."""
        pieces = self._job.files[choice.file].pieces
        length = pieces.length(choice.number)
        self._down.take(length)
        try:
            if choice.peer is None:
                start = choice.number * pieces.piece_bytes
                data = fetch_range(self._job.files[choice.file].mirror, start, length)
            else:
                data = fetch_piece(choice.peer.address, self._job.token, choice.file, choice.number, length)
        except BusyError:
            with self._lock:
                if choice.peer is not None:
                    choice.peer.note_busy(self._clock())
            return
        except FAILURES as error:
            self._note_failure(choice, visible_text(str(error))[:200])
            return
        is_source = choice.peer is None or choice.file in choice.peer.seeds
        if not pieces.is_piece(choice.number, data):
            self._drop(choice)
        elif self.keep(choice.file, choice.number, data, "source" if is_source else "hosts"):
            self._mirror_failures = 0

    def _note_failure(self, choice: Choice, text: str) -> None:
        with self._lock:
            if choice.peer is not None:
                choice.peer.note_failure(text, self._clock())
                return
            self._mirror_failures += 1
        if self._mirror_failures > MAX_MIRROR_FAILURES:
            raise MirrorError(f"{self._job.files[choice.file].mirror}: {text}, {MAX_MIRROR_FAILURES} times in a row.")
        self._ended.wait(min(5.0, 0.2 * self._mirror_failures))

    def _drop(self, choice: Choice) -> None:
        """Take nothing more from who has sent something else than the piece."""
        file = self._job.files[choice.file]
        text = f"piece {choice.number} of {file.name} is not what the source has announced"
        if choice.peer is None:
            raise MirrorError(f"{file.mirror}: {text}. The mirror has another file than its {file.name}.pieces.")
        with self._lock:
            choice.peer.dropped = text
            self.garbage[choice.peer.name] = text

    def keep(self, file: int, number: int, data: bytes, origin: str) -> bool:
        """Keep a piece that came from source, hosts or controller; False for one that is not wanted. Raises OSError."""
        part = self.files[file]
        if part is None or part.is_done or not part.write(number, data):
            return False
        with self._lock:
            self.counts[origin] += len(data)
            self._last_piece = self._clock()
        return True

    def _finish(self) -> None:
        """Give each file its name once it has all pieces."""
        while not self._ended.is_set() and not self.error and not self.is_complete:
            for need in list(self._board.needs):
                part = self.files[need.file]
                if part is None or part.is_done or part.missing():
                    continue
                try:
                    part.finish(self._job.files[need.file].sha256, self._note_read)
                except (MagiError, OSError) as error:
                    self.error = str(error)
                    return
                self._last_piece = self._clock()
            self._ended.wait(IDLE_SECONDS)

    def status(self) -> dict[str, Any]:
        """How far it is, in bytes: {"wanted", "have", "resumed", "source", "hosts", "controller", "sent", …}."""
        wanted = [self.files[need.file] for need in self._board.needs]
        with self._lock:
            peers = list(self._board.peers.values())
        return {
            "complete": self.is_complete,
            "error": self.error,
            "wanted": sum(part.pieces.size for part in wanted if part),
            "have": sum(part.pieces.length(number) for part in wanted if part for number in list(part.have)),
            "resumed": sum(part.resumed_bytes for part in wanted if part),
            **self.counts,
            "sent": self.server.sent_bytes,
            "port": self.server.port,
            "hosts_reached": sum(peer.was_reached for peer in peers),
            "dropped": dict(self.garbage),
            "unreached": {peer.name: peer.error for peer in peers if not peer.was_reached and peer.error},
            "idle_seconds": round(self.idle_seconds(), 1),
            "quiet_seconds": round(self.quiet_seconds(), 1),
        }
