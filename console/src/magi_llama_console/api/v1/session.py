# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions of browsers: EventSource cannot send a bearer token, so the page signs in with one and has a cookie."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from ...store.base import Session, now
from ...tokens import digest
from ..audit import record
from ..deps import ConsoleDep
from ..problems import Problem
from ..security import Reader, address_of, by_token, check_attempts, check_origin, cookie_name

router = APIRouter(prefix="/api/v1/session", tags=["session"])
HOURS = 12


class SignIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    token: Annotated[str, Field(max_length=200)]


class SessionDocument(BaseModel):
    """Who is signed in. expires_at is null where the request came with a bearer token."""

    name: str
    role: str
    expires_at: str | None


@router.post("", status_code=201, responses={401: {}, 429: {}})
async def sign_in(body: SignIn, request: Request, response: Response, console: ConsoleDep) -> SessionDocument:
    """Sign in with a token; the answer sets a cookie that only the browser's own requests to us carry."""
    address = address_of(request)
    if request.headers.get("origin"):
        check_origin(request, console)
    token = by_token(console, body.token.strip())
    if token is None:
        # Who has a token may sign in although others of this address, such as a program with an old one, were refused.
        check_attempts(console, address)
        console.attempts.refused(address)
        if console.attempts.is_noted():
            await record(console, "", "session.refused", "", address=address)
        raise Problem(
            401, "The token is not valid.", fix="Make one on the console's host: magi-llama-console token --help."
        )
    cookie = secrets.token_urlsafe(32)
    expires = (datetime.now(UTC) + timedelta(hours=HOURS)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    await console.store.add_session(Session(digest(cookie), token.name, token.role, now(), expires))
    await record(console, token.name, "session.create", "", address=address)
    response.set_cookie(
        cookie_name(console),
        cookie,
        max_age=HOURS * 3600,
        httponly=True,
        secure=console.settings.is_https,
        samesite="strict",
        path="/",
    )
    return SessionDocument(name=token.name, role=token.role, expires_at=expires)


@router.get("")
async def get(who: Reader) -> SessionDocument:
    return SessionDocument(name=who.name, role=who.role, expires_at=who.session.expires_at if who.session else None)


@router.delete("", status_code=204)
async def sign_out(request: Request, response: Response, console: ConsoleDep, who: Reader) -> None:
    """End the session of the cookie."""
    if who.session:
        await console.store.delete_session(who.session.digest)
        await record(console, who.name, "session.delete", "", address=address_of(request))
    response.delete_cookie(
        cookie_name(console), path="/", secure=console.settings.is_https, httponly=True, samesite="strict"
    )
