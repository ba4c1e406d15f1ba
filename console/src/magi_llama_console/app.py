# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The application: routers, and the services that run as long as it does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version

from fastapi import APIRouter, FastAPI

from .api import health, problems
from .console import Console
from .settings import Settings
from .store.sqlite import SqliteStore

# Each module of the API has one; the order is that of the OpenAPI file.
ROUTERS: tuple[APIRouter, ...] = (health.router,)
# Each runs from start to end, and is cancelled then.
SERVICES: tuple[Callable[[Console], Awaitable[None]], ...] = ()


def create_app(settings: Settings) -> FastAPI:
    """The application. Nothing is read or written before it starts."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        console = Console(settings, SqliteStore(settings.database))
        app.state.console = console
        services = [asyncio.ensure_future(service(console)) for service in SERVICES]
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
    for router in ROUTERS:
        app.include_router(router)
    return app
