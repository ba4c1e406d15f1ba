# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the endpoints are given: Annotated dependencies."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request

from ..console import Console
from ..settings import Settings
from ..store.base import Store


def get_console(request: Request) -> Console:
    return cast(Console, request.app.state.console)


def get_store(request: Request) -> Store:
    return get_console(request).store


def get_settings(request: Request) -> Settings:
    return get_console(request).settings


ConsoleDep = Annotated[Console, Depends(get_console)]
StoreDep = Annotated[Store, Depends(get_store)]
SettingsDep = Annotated[Settings, Depends(get_settings)]
