# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page: files that were built from console/page. Anyone may have them: they hold no data."""

from __future__ import annotations

import functools
import mimetypes
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

from .problems import unknown

STATIC = Path(__file__).parents[1] / "static"
# Their names change with their content.
FOREVER = "public, max-age=31536000, immutable"
router = APIRouter(include_in_schema=False)


@functools.cache
def files() -> dict[str, bytes]:
    """All files of the page by name, read once: they are about 100 kB."""
    return {path.relative_to(STATIC).as_posix(): path.read_bytes() for path in STATIC.rglob("*") if path.is_file()}


def answer(name: str) -> Response:
    """One of the page's files. Raises Problem 404."""
    if name not in files():
        raise unknown("file", name, list(files()))
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    headers = {"Cache-Control": FOREVER if name.startswith("assets/") else "no-cache"}
    return Response(files()[name], media_type=kind, headers=headers)


@router.api_route("/", methods=["GET", "HEAD"])
async def index() -> Response:
    return answer("index.html")


@router.api_route("/assets/{name}", methods=["GET", "HEAD"])
async def asset(name: str) -> Response:
    return answer(f"assets/{name}")


@router.api_route("/theme.js", methods=["GET", "HEAD"])
async def theme() -> Response:
    return answer("theme.js")


@router.api_route("/icon.svg", methods=["GET", "HEAD"])
async def icon() -> Response:
    return answer("icon.svg")
