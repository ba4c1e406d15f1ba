# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store of several consoles: events, sessions, used keys of requests and cached status are in a Redis or Valkey.

Jobs are processes of this host, so they and the audit log remain in the console's own SQLite file. All keys begin with
magi:. The stream magi:events is also that of controllers and CI runners which set MAGI_EVENTS.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as NotAnswered

from .base import CachedStatus, Event, Job, KeyReused, Session, StoreUnavailable, now
from .sqlite import SqliteStore, compact, job_as_text, job_from_text

LOG = logging.getLogger(__name__)
CONNECT_SECONDS, ANSWER_SECONDS = 1.0, 2.0
# So long a Redis that did not answer is not tried again: until then requests fail at once.
PAUSE_SECONDS = 1.0
# Of so many of the newest entries those about a server are looked for.
NEWEST = 2000
# As in the collection's plugins/plugin_utils/event_sinks.py: about so many events are kept, of all runs.
STREAM, STREAM_LENGTH = "magi:events", 100_000
# How far this host's files of events have been read; used keys of requests, and which one a job came with.
OFFSETS, REQUESTS, KEYS_OF_JOBS = "magi:offsets", "magi:requests", "magi:requests:jobs"
SESSIONS, STATUSES = "magi:sessions", "magi:statuses"
# A job's own copy of its events: with a time to live, so a Redis whose memory is used up removes it first.
COPY_SECONDS = 30 * 86400
# An event's sequence is made of its id in the stream: milliseconds since 2025, and a number below 10,000 within one.
# So it stays an exact number in JavaScript until 2053.
EPOCH, IN_ONE_MILLISECOND = 1_735_689_600_000, 10_000

# Each script is one transaction.
# Keys: stream, copy, offsets. Arguments: job, new offset, length, seconds, events. What was kept before is left out.
ADD_EVENTS = """
if ARGV[2] ~= '' then
  local offset = redis.call('HGET', KEYS[3], ARGV[1])
  if offset and tonumber(offset) >= tonumber(ARGV[2]) then return 0 end
  redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
end
for i = 5, #ARGV do
  if ARGV[1] == '' then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'event', ARGV[i])
  else
    local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'event', ARGV[i], 'job', ARGV[1])
    redis.call('XADD', KEYS[2], id, 'event', ARGV[i], 'job', ARGV[1])
  end
end
if ARGV[1] ~= '' then redis.call('EXPIRE', KEYS[2], ARGV[4]) end
return 1
"""
# Keys: stream, copy, offsets, requests, keys of jobs. Argument: job.
FORGET_JOB = """
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+')) do redis.call('XDEL', KEYS[1], entry[1]) end
local key = redis.call('HGET', KEYS[5], ARGV[1])
if key then redis.call('HDEL', KEYS[4], key) end
redis.call('HDEL', KEYS[5], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('DEL', KEYS[2])
"""
# Keys: requests, keys of jobs. Arguments: key, request, job. Returns the request that the key was used for before.
CLAIM = """
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return redis.call('HGET', KEYS[1], ARGV[1]) end
redis.call('HSET', KEYS[2], ARGV[3], ARGV[1])
return false
"""
# Key: statuses. Arguments: field, time and document of each. A document has its time in front.
PUT_STATUS = """
for i = 1, #ARGV, 3 do
  local old = redis.call('HGET', KEYS[1], ARGV[i])
  if not old or ARGV[i + 1] >= string.match(old, '^%S*') then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1] .. ' ' .. ARGV[i + 2])
  end
end
"""


def connect(url: str, password_file: Path | None = None) -> Any:
    """A client, which connects by its first command. Raises StoreUnavailable for a URL or file that cannot be used."""
    # It sends nothing a second time by itself: what was done before an answer was lost would be done twice.
    options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0)}
    options |= {"socket_connect_timeout": CONNECT_SECONDS, "socket_timeout": ANSWER_SECONDS}
    try:
        if password_file is not None:
            options["password"] = password_file.read_text(encoding="utf-8").partition("\n")[0]
        return Redis.from_url(url, **options)
    except (OSError, ValueError, TypeError) as error:
        raise StoreUnavailable(f"{url} cannot be used: {error}") from error


async def check(url: str, password_file: Path | None) -> None:
    """Raises StoreUnavailable unless the Redis answers and lets this user read the events."""
    client = connect(url, password_file)
    try:
        await client.xrevrange(STREAM, count=1)
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"{url} cannot be used: {error}") from error
    finally:
        await client.aclose()


class RedisStore(SqliteStore):
    """Implements Store. Methods that need the Redis raise StoreUnavailable while it does not answer."""

    def __init__(self, path: Path, url: str, password_file: Path | None = None) -> None:
        super().__init__(path)
        self._url, self._redis = url, connect(url, password_file)
        # Distinguishes requests to this console from those to others.
        self._name = f"{socket.gethostname()}:{path}"
        self._adding = asyncio.Lock()
        self._listener: asyncio.Task[None] | None = None
        self._away_until, self._logged = 0.0, ""

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        await self._redis.aclose()
        await super().close()

    async def add_job(self, job: Job, *, key: str = "", fingerprint: str = "") -> Job:
        if not key:
            return await super().add_job(job)
        async with self._adding:
            request = compact({"console": self._name, "fingerprint": fingerprint, "job": job_as_text(job)})
            found = await self._run(CLAIM, (REQUESTS, KEYS_OF_JOBS), key, request, job.id)
            if found is not None:
                if first := await self._claimed(found, fingerprint):
                    return first
                # This console was cut off before it kept that job, which therefore never ran.
                await self._ask("hset", REQUESTS, key, request)
                await self._ask("hset", KEYS_OF_JOBS, job.id, key)
            return await super().add_job(job)

    async def job_of_key(self, key: str, fingerprint: str) -> Job | None:
        found = await self._ask("hget", REQUESTS, key)
        return None if found is None else await self._claimed(found, fingerprint)

    async def _claimed(self, request: str | bytes, fingerprint: str) -> Job | None:
        """The job that a key came with; None if this console was cut off before it kept it. Raises KeyReused."""
        first = json.loads(request)
        if first["fingerprint"] != fingerprint:
            raise KeyReused
        kept = job_from_text(first["job"])
        own = await self.job(kept.id)
        return kept if own is None and first["console"] != self._name else own

    async def prune(self, keep: int) -> list[str]:
        old = await super().prune(keep)
        # While there is no Redis, the copies of their events expire in it.
        with contextlib.suppress(StoreUnavailable):
            for name in old:
                await self._run(FORGET_JOB, (STREAM, _copy(name), OFFSETS, REQUESTS, KEYS_OF_JOBS), name)
        return old

    async def add_events(self, job: str | None, events: Sequence[Mapping[str, Any]], offset: int | None = None) -> None:
        place = "" if offset is None else str(offset)
        texts = [compact(event) for event in events]
        keys = (STREAM, _copy(job or ""), OFFSETS)
        await self._run(ADD_EVENTS, keys, job or "", place, STREAM_LENGTH, COPY_SECONDS, *texts)

    async def offset(self, job: str) -> int:
        return int(await self._ask("hget", OFFSETS, job) or 0)

    async def events(self, after: int = 0, job: str | None = None, limit: int = 500) -> list[Event]:
        found: list[Event] = []
        while True:
            key = STREAM if job is None else _copy(job)
            entries = await self._ask("xrange", key, min=f"({_id(after)}", count=limit)
            found += [event for entry in entries if (event := _event(*entry)) is not None]
            if len(found) >= limit or len(entries) < limit:
                return found[:limit]
            after = _sequence(entries[-1][0])

    async def newest_events(self, host: str, types: Sequence[str], limit: int) -> list[Event]:
        return [one for one in await self._newest_of(STREAM, types) if one.event.get("host") == host][-limit:]

    async def newest_events_of_job(self, job: str, types: Sequence[str], limit: int) -> list[Event]:
        return (await self._newest_of(_copy(job), types))[-limit:]

    async def _newest_of(self, key: str, types: Sequence[str]) -> list[Event]:
        # A stream has no index: of its newest entries those are taken that match.
        entries = await self._ask("xrevrange", key, count=NEWEST)
        found = [event for entry in reversed(entries) if (event := _event(*entry)) is not None]
        return [one for one in found if one.event.get("type") in types]

    async def last_sequence(self) -> int:
        newest = await self._newest()
        return 0 if newest is None else _sequence(newest)

    async def wait(self, after: int, seconds: float) -> bool:
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen())
        return await super().wait(after, seconds)

    async def _listen(self) -> None:
        """Wake those that wait when there are events, and when there is no Redis, which they then notice."""
        seen = b"0-0"
        while True:
            try:
                if await self._ask("xread", {STREAM: seen}, count=1, block=round(ANSWER_SECONDS * 500)):
                    seen = await self._newest() or seen
                    self._notify()
            except StoreUnavailable:
                self._notify()
                await asyncio.sleep(PAUSE_SECONDS)

    async def _newest(self) -> bytes | None:
        entries = await self._ask("xrevrange", STREAM, count=1)
        return entries[0][0] if entries else None

    async def add_session(self, session: Session) -> None:
        if expired := [one.digest for one in await self._sessions() if one.expires_at <= now()]:
            await self._ask("hdel", SESSIONS, *expired)
        fields = {name: getattr(session, name) for name in Session.__dataclass_fields__}
        await self._ask("hset", SESSIONS, session.digest, compact(fields))

    async def session(self, digest: str) -> Session | None:
        text = await self._ask("hget", SESSIONS, digest)
        session = None if text is None else Session(**json.loads(text))
        return session if session is not None and session.expires_at > now() else None

    async def _sessions(self) -> list[Session]:
        return [Session(**json.loads(text)) for text in await self._ask("hvals", SESSIONS)]

    async def delete_session(self, digest: str) -> None:
        await self._ask("hdel", SESSIONS, digest)

    async def delete_sessions_of(self, name: str) -> None:
        if digests := [one.digest for one in await self._sessions() if one.name == name]:
            await self._ask("hdel", SESSIONS, *digests)

    async def put_status(self, statuses: Sequence[CachedStatus]) -> None:
        rows: list[str] = []
        for one in statuses:
            document = compact({"source": one.source, "document": one.document})
            rows += [json.dumps([one.host, one.kind]), one.as_of, document]
        await self._run(PUT_STATUS, (STATUSES,), *rows)

    async def statuses(self, kind: str | None = None) -> list[CachedStatus]:
        found = []
        for field, text in (await self._ask("hgetall", STATUSES)).items():
            host, of_kind = json.loads(field)
            if kind in (None, of_kind):
                as_of, _, document = text.decode().partition(" ")
                found.append(CachedStatus(host, of_kind, as_of, **json.loads(document)))
        return sorted(found, key=lambda one: (one.host, one.kind))

    async def _run(self, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        return await self._ask("eval", script, len(keys), *keys, *arguments)

    async def _ask(self, command: str, *arguments: Any, **options: Any) -> Any:
        """The answer to a command. Raises StoreUnavailable."""
        if time.monotonic() < self._away_until:
            raise StoreUnavailable(self._logged)
        try:
            answer = await getattr(self._redis, command)(*arguments, **options)
        except (RedisError, OSError) as error:
            text = f"{self._url} cannot be used: {error}"
            if isinstance(error, (NotConnected, NotAnswered, OSError)):
                self._away_until = time.monotonic() + PAUSE_SECONDS
            if text != self._logged:
                LOG.warning("no live view: %s", text)
            self._logged = text
            raise StoreUnavailable(text) from error
        if self._away_until:
            LOG.warning("%s answers again", self._url)
            self._away_until, self._logged = 0.0, ""
        return answer


def _copy(job: str) -> str:
    return f"magi:events:{job}"


def _sequence(entry_id: bytes) -> int:
    milliseconds, number = entry_id.split(b"-")
    return (int(milliseconds) - EPOCH) * IN_ONE_MILLISECOND + int(number)


def _id(sequence: int) -> str:
    milliseconds, number = divmod(sequence, IN_ONE_MILLISECOND)
    return f"{milliseconds + EPOCH}-{number}"


def _event(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Event | None:
    """The event of an entry; None for what is not an event: others write to this stream too."""
    try:
        event = json.loads(fields.get(b"event", b""))
        job = fields[b"job"].decode() if b"job" in fields else None
    except ValueError:
        return None
    texts = ("run", "type", "at")
    if not isinstance(event, dict) or not isinstance(event.get("data"), dict):
        return None
    return Event(_sequence(entry_id), job, event) if all(isinstance(event.get(one), str) for one in texts) else None
