# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps what the console knows of the fleet up to date: events as they come, and looks at the servers in between.

A server is asked for its /health where the console reaches it. Of the others the gateways' view is taken. Hosts with
servers that neither shows get a status job every minute, and all hosts one every ten minutes, which also finds what
others have deployed without sending events. Once an hour a plan says what has drifted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

from ..ansible import collection_folders
from ..jobs.requests import Known, RequestRefused, validate
from ..jobs.service import Jobs
from ..settings import Settings
from ..store.base import CONSOLE, CachedStatus, Event, Store, StoreUnavailable, now
from .facts import MODELS, Fleet, Host, from_plain, host_to_plain, models_to_plain, to_plain
from .inventory import Inventory, InventoryError, InventoryHost, InventoryReader
from .live import with_liveness
from .profiles import ProfileFileError, builtin_folder, list_profiles
from .received import Unusable, mapping
from .server_logs import with_logs
from .sweep import PATIENT_SECONDS, Key, gateway_states, read_metrics, sweep, target
from .view import DEPLOYING, LOOKING, fold, fold_document

LOG = logging.getLogger(__name__)
SWEEP_SECONDS = 10.0
STATUS_SECONDS = 60.0
FULL_STATUS_SECONDS = 600.0
# How often hosts are compared with what their profile would have there.
DRIFT_SECONDS = 3600.0
FIRST_DRIFT_SECONDS = 120.0
# After this time without news a host's state is shown as stale.
STALE_SECONDS = 180.0
SAVE_SECONDS = 5.0
BATCH = 500
# So long after the store was away it is tried again.
AWAY_SECONDS = 1.0
# What reads the result document of a job, by its verb.
FROM_DOCUMENTS = {"scan": fold_document, "verify": fold_document, "status": with_logs}
# What is kept in the store: the runs, each host, and each host's models.
KINDS = ("fleet", "fleet_host", "fleet_models")
# After a run that may have changed a host its status is wanted: pids, memory. Not at once, as another run may follow.
SETTLED_SECONDS = 5.0


class FleetWatch:
    """fleet is what is known now; run() keeps it so until it is cancelled."""

    def __init__(self, settings: Settings, store: Store, jobs: Jobs, inventory: InventoryReader) -> None:
        self._settings, self._store, self._jobs, self._reader = settings, store, jobs, inventory
        self.fleet = Fleet()
        self.inventory = Inventory()
        self.inventory_error = ""
        # When the last sweep ended, and how long it took.
        self.swept_at: str | None = None
        self.sweep_seconds: float | None = None
        self._look_now = asyncio.Event()
        self._begun = monotonic()
        # When which verb was last requested of which host; when the status of those that a run has changed is due.
        self._asked: dict[tuple[str, str], float] = {}
        self._due: dict[str, float] = {}
        self._saved, self._saved_at = self.fleet, 0.0

    def host(self, name: str) -> Host:
        return self.fleet.hosts.get(name) or Host(name)

    def hosts(self) -> list[Host]:
        """The hosts of the inventory, in its order: others that were seen once are left out."""
        return [self.host(name) for name in self.inventory.hosts]

    def servers(self) -> dict[str, frozenset[str]]:
        """The names of the deployed servers of each host of which they are known."""
        return {host.name: frozenset(host.servers) for host in self.hosts() if host.is_known}

    def stale_since(self, host: Host) -> str | None:
        """Since when nothing has said how the host is; None where that is recent, or was never known."""
        if host.as_of is None:
            return None
        limit = datetime.now(UTC) - timedelta(seconds=STALE_SECONDS)
        is_old = datetime.fromisoformat(host.as_of) < limit
        return host.as_of if is_old or host.is_reachable is False else None

    async def run(self) -> None:
        await self._load()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow())
                if self._settings.is_watching:
                    group.create_task(self._look())
        finally:
            with contextlib.suppress(StoreUnavailable):
                await self._save()

    async def _load(self) -> None:
        saved = {kind: {one.host: one.document for one in await self._store.statuses(kind)} for kind in KINDS}
        self.fleet = from_plain(saved["fleet"].get(CONSOLE, {}), saved["fleet_host"], saved["fleet_models"])
        self._saved = self.fleet
        if self.fleet.sequence > await self._store.last_sequence():
            # Another store than the one that it was folded from.
            self.fleet = Fleet(self.fleet.hosts)

    async def _save(self) -> None:
        """Keep what has changed since the last time: the hosts, and of those only the models that have changed."""
        fleet, before = self.fleet, self._saved
        if fleet is before:
            return
        self._saved_at = monotonic()
        hosts, models = await asyncio.to_thread(_documents, fleet, before.hosts, now())
        for one in models:
            # One by one, as each may be large: requests are answered in between.
            await self._store.put_status([one])
            await asyncio.sleep(0)
        await self._store.put_status(hosts)
        self._saved = fleet

    async def catch_up(self) -> None:
        """Fold the events that are in the store by now: an answer after a job then shows what it did.

        One that cannot be used is left out.
        """
        while events := await self._store.events(self.fleet.sequence, limit=BATCH):
            for event in events:
                if event.sequence <= self.fleet.sequence:
                    continue
                try:
                    await self._take(event)
                except StoreUnavailable:
                    raise
                except Exception as error:
                    # A host may have sent anything: it must not hold up what the others say.
                    is_known = isinstance(error, Unusable)
                    LOG.warning("event %d is left out: %s", event.sequence, error, exc_info=not is_known)
                    self.fleet = replace(self.fleet, sequence=max(event.sequence, self.fleet.sequence))

    async def _take(self, event: Event) -> None:
        run = self.fleet.runs.get(str(event.event.get("run")))
        self.fleet = fold(self.fleet, event.event, event.sequence)
        if event.event["type"] != "run_ended":
            return
        self._look_now.set()
        if run is not None and not run.is_check and run.playbook not in LOOKING:
            hosts = mapping(event.event["data"].get("hosts"))
            self._due |= dict.fromkeys(hosts, monotonic() + SETTLED_SECONDS)
            if run.playbook in DEPLOYING:
                # What memory is free after a deployment only a plan says.
                self._asked = {key: at for key, at in self._asked.items() if key[0] != "plan" or key[1] not in hosts}
        await self._read_result(event.job, event.event)

    async def _follow(self) -> None:
        while True:
            try:
                await self.catch_up()
                if monotonic() - self._saved_at > SAVE_SECONDS:
                    await self._save()
                await self._store.wait(self.fleet.sequence, 30)
            except StoreUnavailable:
                # What is known stays, and grows old.
                await asyncio.sleep(AWAY_SECONDS)

    async def _read_result(self, job_id: str | None, event: Mapping[str, Any]) -> None:
        """What only the result document of a job has: a scan's whole registry, a verify's speeds, a status' logs."""
        job = await self._store.job(job_id) if job_id else None
        fold_in = FROM_DOCUMENTS.get(job.verb) if job else None
        if job is None or fold_in is None:
            return
        document = read_document(self._jobs.folder(job.id) / "result.json")
        if document is not None:
            self.fleet = fold_in(self.fleet, document, event["at"])

    async def _look(self) -> None:
        while True:
            self._look_now.clear()
            try:
                await self.look()
            except Exception:
                # Nothing that a host or a gateway answers may end the looks at all the others.
                LOG.exception("the servers could not be looked at")
            try:
                await asyncio.wait_for(self._look_now.wait(), SWEEP_SECONDS)
            except TimeoutError:
                continue

    async def refresh(self) -> None:
        """Read the inventory again where it has changed. inventory_error says why it cannot be read."""
        try:
            self.inventory, self.inventory_error = await self._reader.read(), ""
        except InventoryError as error:
            self.inventory_error = str(error)

    async def look(self) -> None:
        """One round: sweep what can be reached, then the gateways' view, then a status job for what is left."""
        await self.refresh()
        if self.inventory_error:
            return
        seen = await self._sweep()
        seen |= await self._ask_gateways(seen)
        await self._request_jobs(seen)

    async def _sweep(self) -> set[Key]:
        targets = [
            place
            for host, inventory_host in self._known_hosts()
            for server in host.servers.values()
            if (place := target(server, inventory_host.address, inventory_host.is_local))
        ]
        began, begun = now(), monotonic()
        found = await sweep(targets)
        if not targets:
            return set()
        self.sweep_seconds, self.swept_at = monotonic() - begun, now()
        in_time = {key: one for key, one in found.items() if not one.get("is_late")}
        self.fleet = with_liveness(self.fleet, in_time, began, now(), "sweep")
        began, late = now(), [place for place in targets if place.key not in in_time]
        seen = await sweep(late, PATIENT_SECONDS)
        self.fleet = with_liveness(self.fleet, seen, began, now(), "sweep")
        return set(found)

    async def _ask_gateways(self, seen: set[Key]) -> set[Key]:
        names = {
            f"{inventory_host.proxy_name}_{server.port}": (host.name, server.name)
            for host, inventory_host in self._known_hosts()
            for server in host.servers.values()
            if (host.name, server.name) not in seen
        }
        if not names or not self.inventory.gateways:
            return set()
        found: dict[Key, dict[str, Any]] = {}
        began = now()
        for text in await asyncio.gather(*(read_metrics(url) for url in self.inventory.gateways)):
            for key, one in gateway_states(text, names).items():
                # One gateway that reaches a server is enough.
                if key not in found or one["state"] == "ready":
                    found[key] = one
        self.fleet = with_liveness(self.fleet, found, began, now(), "gateway")
        return set(found)

    def _known_hosts(self) -> Iterable[tuple[Host, InventoryHost]]:
        return [(self.host(name), one) for name, one in self.inventory.hosts.items()]

    async def _request_jobs(self, seen: set[Key]) -> None:
        """Jobs that look, on hosts that have no other job now."""
        busy = {host for job in await self._store.jobs(("queued", "running"), 1000) for host in job.hosts}
        free = [host for host in self.hosts() if host.name not in busy]
        at = monotonic()
        if due := [host.name for host in free if self._needs_status(host, seen, at)]:
            self._asked |= {("status", name): at for name in due}
            self._due = {name: when for name, when in self._due.items() if name not in due}
            await self._submit("status", {}, due)
            return
        # Only of hosts that have answered: what a host does not answer to one job it does not answer to another.
        reached = [host for host in free if host.is_reachable and host.is_known]
        unscanned = [one for one in reached if not one.has_full_registry]
        if due := [one.name for one in unscanned if self._is_time("scan", one.name, at, FULL_STATUS_SECONDS)]:
            self._asked |= {("scan", name): at for name in due}
            # What models there are is in the document of a scan, which changes nothing when it only checks.
            await self._submit("scan", {"check": True}, due)
            return
        if compared := [one for one in reached if self._is_time("plan", one.name, at, DRIFT_SECONDS)]:
            self._asked |= {("plan", one.name): at for one in compared}
            for profile, names in (await self._profiles_of(compared)).items():
                await self._submit("plan", {"profile": profile}, names)

    async def _profiles_of(self, hosts: Iterable[Host]) -> dict[str, list[str]]:
        """Hosts by the profile that they are to have: the inventory's, else the one that they say is deployed.

        Only profiles that there are count: a host may say anything.
        """
        builtin = builtin_folder(collection_folders(self._settings))
        try:
            known = await asyncio.to_thread(list_profiles, self._settings.inventory, builtin)
        except ProfileFileError as error:
            LOG.warning("no plans: %s", error)
            return {}
        found: dict[str, list[str]] = {}
        for host in hosts:
            profile = self.inventory.hosts[host.name].profile or host.profile
            if profile in known:
                found.setdefault(profile, []).append(host.name)
        return found

    def _is_time(self, verb: str, host: str, at: float, pause: float) -> bool:
        # The first plans wait until the console has run for a while: much else is asked when it starts.
        first = self._begun - pause + FIRST_DRIFT_SECONDS if verb == "plan" else -math.inf
        return at - self._asked.get((verb, host), first) >= pause

    def _needs_status(self, host: Host, seen: set[Key], at: float) -> bool:
        is_seen = host.is_known and all((host.name, name) in seen for name in host.servers)
        pause = FULL_STATUS_SECONDS if is_seen else STATUS_SECONDS
        return at >= self._due.get(host.name, math.inf) or self._is_time("status", host.name, at, pause)

    async def _submit(self, verb: str, variables: Mapping[str, Any], hosts: list[str]) -> None:
        known = Known(
            hosts=tuple(self.inventory.hosts),
            groups=self.inventory.groups,
            profiles=frozenset(filter(None, [variables.get("profile")])),
        )
        limit = {} if len(hosts) == len(known.hosts) else {"limit": hosts}
        try:
            await self._jobs.submit(validate(verb, {**variables, **limit}, known), by=CONSOLE)
        except RequestRefused as error:
            LOG.warning("no %s of %s: %s", verb, ", ".join(hosts), error)


def _documents(fleet: Fleet, before: Mapping[str, Host], at: str) -> tuple[list[CachedStatus], list[CachedStatus]]:
    """The documents of the fleet and of the hosts that are not as before, and those of their models."""
    changed = [host for name, host in fleet.hosts.items() if host is not before.get(name)]
    has_new_models = [
        host
        for host in changed
        if (old := before.get(host.name)) is None or any(getattr(host, key) is not getattr(old, key) for key in MODELS)
    ]
    return (
        [
            CachedStatus(CONSOLE, "fleet", at, "events", to_plain(fleet)),
            *(CachedStatus(host.name, "fleet_host", at, "events", host_to_plain(host)) for host in changed),
        ],
        [CachedStatus(host.name, "fleet_models", at, "events", models_to_plain(host)) for host in has_new_models],
    )


def read_document(path: Path) -> dict[str, Any] | None:
    """A result document; None where there is none, or not yet."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and isinstance(document.get("hosts"), dict) else None
