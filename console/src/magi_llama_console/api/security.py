# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may do what: bearer tokens with the roles read and operate."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from ..tokens import TokenFileError, digest, read_tokens
from .deps import ConsoleDep
from .problems import Problem


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sent a request: the name of the token, and its role."""

    name: str
    role: str


def require(role: str) -> Callable[..., Awaitable[Principal]]:
    """A dependency that refuses requests without this role (401, 403). operate includes read."""

    async def principal(request: Request, console: ConsoleDep) -> Principal:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        found = None
        if scheme.lower() == "bearer" and token:
            found = _by_token(console, token.strip())
        if found is None:
            raise Problem(
                401,
                "This needs a token.",
                fix="Send the header Authorization: Bearer TOKEN, or sign in on the page.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if role == "operate" and found.role != "operate":
            raise Problem(403, f"The token {found.name} has the role read.", fix="Use one with the role operate.")
        return found

    return principal


def _by_token(console: ConsoleDep, token: str) -> Principal | None:
    wanted = digest(token)
    try:
        tokens = read_tokens(console.settings.token_file)
    except TokenFileError as error:
        raise Problem(500, "The console's file of tokens cannot be read.", fix="Look at its log.") from error
    return next((Principal(one.name, one.role) for one in tokens if hmac.compare_digest(one.sha256, wanted)), None)


Reader = Annotated[Principal, Depends(require("read"))]
Operator = Annotated[Principal, Depends(require("operate"))]
