# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may do what: bearer tokens with the roles read and operate, and sessions of browsers signed in with one.

A browser sends its cookie along with requests that another site makes it send, so a request that changes something
with a cookie must name our own origin. A bearer token is only sent by those who mean it.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from ..console import Console
from ..store.base import Session
from ..tokens import Token, TokenFileError, digest
from .deps import ConsoleDep
from .problems import Problem

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sent a request: the name of the token, its role, and the session if it came with a cookie."""

    name: str
    role: str
    session: Session | None = None

    @property
    def is_operator(self) -> bool:
        return self.role == "operate"


def cookie_name(console: Console) -> str:
    """It has the port, as browsers send a cookie to all ports of a host: consoles would sign each other's users out."""
    # Browsers accept the prefix only for cookies that are Secure, without a domain, and for /.
    prefix = "__Host-" if console.settings.is_https else ""
    return f"{prefix}magi-console-{console.settings.port}"


def address_of(request: Request) -> str:
    """The client's address; the proxy's only if the console does not know that there is one."""
    return request.client.host if request.client else ""


def require(role: str) -> Callable[..., Awaitable[Principal]]:
    """A dependency that refuses requests without this role (401, 403, 429). operate includes read."""

    async def principal(request: Request, console: ConsoleDep) -> Principal:
        found = await authenticate(request, console)
        if found is None:
            if request.headers.get("authorization"):
                check_attempts(console, address_of(request))
                console.attempts.refused(address_of(request))
            raise Problem(
                401,
                "This needs a valid token.",
                fix="Send the header Authorization: Bearer TOKEN, or sign in on the page.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if role == "operate" and not found.is_operator:
            raise Problem(403, f"The token {found.name} has the role read.", fix="Use one with the role operate.")
        if found.session and request.method not in SAFE_METHODS:
            check_origin(request, console)
        return found

    return principal


async def authenticate(request: Request, console: Console) -> Principal | None:
    """Who sent the request, by its token or else by its cookie; None without either, or with one that is not valid."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value:
        token = by_token(console, value.strip())
        return Principal(token.name, token.role) if token else None
    cookie = request.cookies.get(cookie_name(console))
    session = await console.store.session(digest(cookie)) if cookie else None
    if session is None:
        return None
    # A session is worth what its token is now: nothing without it, or when the token was made again.
    for one in tokens_of(console):
        if one.name == session.name and one.created_at <= session.created_at:
            return Principal(one.name, one.role, session)
    return None


def by_token(console: Console, value: str) -> Token | None:
    wanted = digest(value)
    return next((one for one in tokens_of(console) if hmac.compare_digest(one.sha256, wanted)), None)


def tokens_of(console: Console) -> list[Token]:
    """All tokens. Raises Problem 500 where their file cannot be read."""
    try:
        return console.tokens.read()
    except TokenFileError as error:
        raise Problem(500, "The console's file of tokens cannot be read.", fix=str(error)) from error


async def still_valid(request: Request, console: Console) -> bool:
    """Whether a long answer may be continued: the token is there, the session has not ended."""
    return await authenticate(request, console) is not None


def check_attempts(console: Console, address: str) -> None:
    """Raises Problem 429 for an address with too many refused tokens."""
    if seconds := console.attempts.seconds_to_wait(address):
        raise Problem(
            429,
            "Too many tokens of this address were refused.",
            fix=f"Try again in {seconds} s.",
            headers={"Retry-After": str(seconds)},
        )


def check_origin(request: Request, console: Console) -> None:
    """Raises Problem 403 unless a browser says that our own page sent the request."""
    scheme = "https" if console.settings.is_https else request.url.scheme
    own = f"{scheme}://{request.headers.get('host', '')}"
    if request.headers.get("origin") != own:
        raise Problem(
            403, "The request came from another origin.", fix=f"Send it from a page of {own}, or with a token."
        )


Reader = Annotated[Principal, Depends(require("read"))]
Operator = Annotated[Principal, Depends(require("operate"))]
