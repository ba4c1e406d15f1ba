# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The application: routers, and the services that run as long as it does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version

from fastapi import APIRouter, FastAPI

from . import openapi
from .ansible import full_environment
from .api import docs, health, legacy, page, problems, status_page
from .api.headers import SecureHeaders
from .api.v1 import events, hosts, jobs, keys, loading, locks, models, plans, profiles, servers, session
from .console import Console
from .fleet.inventory import InventoryError, InventoryReader
from .fleet.watch import FleetWatch
from .jobs.launcher import SessionLauncher, UnitLauncher
from .jobs.service import Jobs
from .known import KnownReader
from .settings import Settings
from .store.base import Store, StoreUnavailable
from .store.sqlite import SqliteStore
from .tokens import TokenReader

LOG = logging.getLogger(__name__)
# Each module of the API has one; the order is that of the OpenAPI file.
ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    hosts.router,
    servers.router,
    models.router,
    loading.router,
    profiles.router,
    plans.router,
    jobs.router,
    events.router,
    locks.router,
    keys.router,
    session.router,
    legacy.router,
    status_page.router,
    docs.router,
    page.router,
)


def make_console(settings: Settings) -> Console:
    """The parts of a console on its data folder, which is made."""
    for folder in (settings.data, settings.jobs):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = make_store(settings)
    launcher = UnitLauncher(settings.job_unit) if settings.job_unit else SessionLauncher()
    inventory = InventoryReader(
        settings.inventory, [str(settings.ansible_bin / "ansible-inventory")], full_environment(settings)
    )
    jobs = Jobs(settings, store, launcher)
    fleet = FleetWatch(settings, store, jobs, inventory)
    return Console(
        settings=settings,
        store=store,
        jobs=jobs,
        inventory=inventory,
        known=KnownReader(settings, inventory, fleet.servers),
        fleet=fleet,
        tokens=TokenReader(settings.token_file),
    )


def make_store(settings: Settings) -> Store:
    """The store of the settings. Raises StoreUnavailable for a Redis that cannot be used as it is given."""
    if not settings.redis:
        return SqliteStore(settings.database)
    # Its package is installed only where it is wanted.
    from .store.redis import RedisStore

    return RedisStore(settings.database, settings.redis, settings.redis_password_file)


async def run_jobs(console: Console) -> None:
    await console.jobs.run()


async def watch_fleet(console: Console) -> None:
    await console.fleet.run()


async def read_inventory(console: Console) -> None:
    """So that the first request does not have to wait for it."""
    with contextlib.suppress(InventoryError):
        # The request that needs it answers with the error.
        await console.inventory.read()
    await asyncio.Event().wait()


# Each runs from start to end, and is cancelled then.
SERVICES: tuple[Callable[[Console], Awaitable[None]], ...] = (run_jobs, watch_fleet, read_inventory)


async def _forever(service: Callable[[Console], Awaitable[None]], console: Console) -> None:
    """A defect in one service must not silence it for ever, nor the others."""
    while True:
        try:
            await service(console)
        except StoreUnavailable:
            # The store has logged it. The service waits until it is there again.
            pass
        except Exception:
            LOG.exception("a service of the console failed and is started again")
        await asyncio.sleep(1)


def create_app(settings: Settings) -> FastAPI:
    """The application. Nothing is read or written before it starts."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        console = make_console(settings)
        app.state.console = console
        services = [asyncio.create_task(_forever(service, console)) for service in SERVICES]
        try:
            yield
        finally:
            for service in services:
                service.cancel()
            await asyncio.gather(*services, return_exceptions=True)
            await console.store.close()

    app = FastAPI(
        title="magi.llama console",
        version=version("magi-llama-console"),
        lifespan=lifespan,
        # /docs comes from our own files: FastAPI's loads scripts from another origin.
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    problems.install(app)
    app.add_middleware(SecureHeaders, is_https=settings.is_https)
    for router in ROUTERS:
        app.include_router(router)
    openapi.install(app)
    return app
