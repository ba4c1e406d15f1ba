# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store of one console: a SQLite file in its data folder.

Each call is one short transaction of some hundredths of a millisecond, so it is done in the event loop itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .base import CONSOLE, CONSOLE_JOBS_KEPT, ENDED, AuditEntry, CachedStatus, Event, Job, KeyReused, Session, now

TABLES = """
create table if not exists jobs (
  number integer primary key, id text unique not null, state text not null, job text not null);
create index if not exists jobs_by_state on jobs (state);
create table if not exists requests (key text primary key, fingerprint text not null, job text not null);
create table if not exists events (
  sequence integer primary key autoincrement, job text, event text not null);
create index if not exists events_by_job on events (job, sequence);
create table if not exists offsets (job text primary key, bytes integer not null);
create table if not exists sessions (
  digest text primary key, name text not null, role text not null, created_at text not null, expires_at text not null);
create table if not exists audit (
  number integer primary key autoincrement, at text not null, actor text not null, action text not null,
  target text not null, detail text not null, address text not null);
create trigger if not exists audit_is_append_only_1 before update on audit
  begin select raise(abort, 'the audit log is append-only'); end;
create trigger if not exists audit_is_append_only_2 before delete on audit
  begin select raise(abort, 'the audit log is append-only'); end;
create table if not exists statuses (
  host text not null, kind text not null, as_of text not null, source text not null, document text not null,
  primary key (host, kind));
"""


class SqliteStore:
    """Implements Store. Raises sqlite3.Error if the file cannot be written."""

    def __init__(self, path: Path) -> None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._db = sqlite3.connect(path, isolation_level=None)
        # A crash of the process loses nothing; a power cut may lose the last moments, which the jobs' files still have.
        self._db.executescript(f"pragma journal_mode = wal; pragma synchronous = normal; {TABLES}")
        self._changed = asyncio.Event()

    async def close(self) -> None:
        self._db.close()

    async def add_job(self, job: Job, *, key: str = "", fingerprint: str = "") -> Job:
        with self._transaction():
            if key:
                row = self._db.execute("select fingerprint, job from requests where key = ?", (key,)).fetchone()
                if row is not None:
                    if row[0] != fingerprint:
                        raise KeyReused
                    return self._job(row[1]) or job
                self._db.execute("insert into requests values (?, ?, ?)", (key, fingerprint, job.id))
            self._db.execute(
                "insert into jobs (id, state, job) values (?, ?, ?)", (job.id, job.state, job_as_text(job))
            )
        self._notify()
        return job

    async def job_of_key(self, key: str, fingerprint: str) -> Job | None:
        row = self._db.execute("select fingerprint, job from requests where key = ?", (key,)).fetchone()
        if row is None:
            return None
        if row[0] != fingerprint:
            raise KeyReused
        return self._job(row[1])

    async def save_job(self, job: Job) -> None:
        with self._transaction():
            self._db.execute("update jobs set state = ?, job = ? where id = ?", (job.state, job_as_text(job), job.id))

        self._notify()

    async def job(self, job_id: str) -> Job | None:
        return self._job(job_id)

    def _job(self, job_id: str) -> Job | None:
        row = self._db.execute("select job from jobs where id = ?", (job_id,)).fetchone()
        return None if row is None else job_from_text(row[0])

    async def jobs(self, states: Sequence[str] = (), limit: int = 100) -> list[Job]:
        where = f"where state in ({', '.join('?' * len(states))})" if states else ""
        rows = self._db.execute(f"select job from jobs {where} order by number desc limit ?", (*states, limit))
        return [job_from_text(row[0]) for row in rows]

    async def prune(self, keep: int) -> list[str]:
        with self._transaction():
            old = [*self._beyond(keep, "<>"), *self._beyond(CONSOLE_JOBS_KEPT, "=")]
            for table, column in (("jobs", "id"), ("requests", "job"), ("events", "job"), ("offsets", "job")):
                self._db.executemany(f"delete from {table} where {column} = ?", [(name,) for name in old])
        return old

    def _beyond(self, keep: int, comparison: str) -> list[str]:
        """The ended jobs after the newest ones, of users (<>) or of the console itself (=)."""
        rows = self._db.execute(
            f"select id from jobs where state in ({', '.join('?' * len(ENDED))})"
            f" and json_extract(job, '$.by') {comparison} ? order by number desc limit -1 offset ?",
            (*ENDED, CONSOLE, keep),
        )
        return [str(row[0]) for row in rows]

    async def add_events(self, job: str | None, events: Sequence[Mapping[str, Any]], offset: int | None = None) -> None:
        with self._transaction():
            self._db.executemany(
                "insert into events (job, event) values (?, ?)", [(job, compact(event)) for event in events]
            )
            if offset is not None:
                self._db.execute("insert or replace into offsets values (?, ?)", (job, offset))
        if events:
            self._notify()

    async def offset(self, job: str) -> int:
        row = self._db.execute("select bytes from offsets where job = ?", (job,)).fetchone()
        return 0 if row is None else int(row[0])

    async def events(self, after: int = 0, job: str | None = None, limit: int = 500) -> list[Event]:
        only = "" if job is None else "and job = ?"
        rows = self._db.execute(
            f"select sequence, job, event from events where sequence > ? {only} order by sequence limit ?",
            (after, *(() if job is None else (job,)), limit),
        )
        return [Event(row[0], row[1], json.loads(row[2])) for row in rows]

    async def newest_events(self, host: str, types: Sequence[str], limit: int) -> list[Event]:
        # Most events are another host's, which the text shows without its being parsed.
        rows = self._db.execute(
            "select sequence, job, event from events where instr(event, ?) and json_valid(event)"
            " and json_extract(event, '$.host') = ?"
            f" and json_extract(event, '$.type') in ({', '.join('?' * len(types))}) order by sequence desc limit ?",
            (f'"host":{json.dumps(host, ensure_ascii=False)}', host, *types, limit),
        )
        return [Event(row[0], row[1], json.loads(row[2])) for row in rows][::-1]

    async def newest_events_of_job(self, job: str, types: Sequence[str], limit: int) -> list[Event]:
        rows = self._db.execute(
            "select sequence, job, event from events where job = ? and json_valid(event)"
            f" and json_extract(event, '$.type') in ({', '.join('?' * len(types))}) order by sequence desc limit ?",
            (job, *types, limit),
        )
        return [Event(row[0], row[1], json.loads(row[2])) for row in rows][::-1]

    async def last_sequence(self) -> int:
        return int(self._db.execute("select coalesce(max(sequence), 0) from events").fetchone()[0])

    async def wait(self, after: int, seconds: float) -> bool:
        changed = self._changed
        if await self.last_sequence() > after:
            return True
        try:
            await asyncio.wait_for(changed.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def add_session(self, session: Session) -> None:
        with self._transaction():
            self._db.execute("delete from sessions where expires_at <= ?", (now(),))
            row = (session.digest, session.name, session.role, session.created_at, session.expires_at)
            self._db.execute("insert into sessions values (?, ?, ?, ?, ?)", row)

    async def session(self, digest: str) -> Session | None:
        row = self._db.execute("select * from sessions where digest = ? and expires_at > ?", (digest, now())).fetchone()
        return None if row is None else Session(*row)

    async def delete_session(self, digest: str) -> None:
        with self._transaction():
            self._db.execute("delete from sessions where digest = ?", (digest,))

    async def delete_sessions_of(self, name: str) -> None:
        with self._transaction():
            self._db.execute("delete from sessions where name = ?", (name,))

    async def add_audit(self, entry: AuditEntry) -> None:
        row = (entry.at, entry.by, entry.action, entry.target, compact(entry.detail), entry.address)
        with self._transaction():
            self._db.execute(
                "insert into audit (at, actor, action, target, detail, address) values (?, ?, ?, ?, ?, ?)", row
            )

    async def audit(self, limit: int = 100) -> list[AuditEntry]:
        rows = self._db.execute(
            "select at, actor, action, target, detail, address from audit order by number desc limit ?", (limit,)
        )
        return [
            AuditEntry(at, by, action, on, json.loads(detail), address) for at, by, action, on, detail, address in rows
        ]

    async def put_status(self, statuses: Sequence[CachedStatus]) -> None:
        rows = [(one.host, one.kind, one.as_of, one.source, compact(one.document)) for one in statuses]
        with self._transaction():
            self._db.executemany(
                "insert into statuses values (?, ?, ?, ?, ?) on conflict (host, kind) do update set as_of ="
                " excluded.as_of, source = excluded.source, document = excluded.document"
                " where excluded.as_of >= statuses.as_of",
                rows,
            )

    async def statuses(self, kind: str | None = None) -> list[CachedStatus]:
        only = "" if kind is None else "where kind = ?"
        rows = self._db.execute(f"select * from statuses {only} order by host, kind", () if kind is None else (kind,))
        return [CachedStatus(host, kind, as_of, source, json.loads(text)) for host, kind, as_of, source, text in rows]

    def _notify(self) -> None:
        """Wake all that wait; later ones wait for the next change."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    """begin immediate, and commit or roll back."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("begin immediate")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._db.execute("commit" if kind is None else "rollback")


def compact(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def job_as_text(job: Job) -> str:
    return compact({name: getattr(job, name) for name in Job.__dataclass_fields__})


def job_from_text(text: str) -> Job:
    fields = json.loads(text)
    return Job(**{**fields, "hosts": tuple(fields["hosts"])})
