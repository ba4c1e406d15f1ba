# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tokens of the console: names and roles, and a new one once. And the audit log."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from ...console import Console
from ...tokens import NAME, Token, add_token, remove_token
from ..audit import record
from ..deps import ConsoleDep
from ..problems import Problem, unknown
from ..security import Operator, Reader, address_of, tokens_of

router = APIRouter(prefix="/api/v1", tags=["keys"])
Name = Annotated[str, Field(max_length=64, pattern=f"^{NAME.pattern}$")]


class KeyRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Name
    role: Literal["read", "operate"] = "read"


class Key(BaseModel):
    name: str
    role: str
    created_at: str


class KeyList(BaseModel):
    keys: list[Key]


class NewKey(BaseModel):
    """token is answered this once: only its sha256 is kept."""

    key: Key
    token: str


class AuditDocument(BaseModel):
    at: str
    by: str
    action: str
    target: str
    detail: dict[str, Any]
    address: str


class AuditList(BaseModel):
    entries: list[AuditDocument]


def _key(token: Token) -> Key:
    return Key(name=token.name, role=token.role, created_at=token.created_at)


def _find(console: Console, name: str) -> Token:
    tokens = {one.name: one for one in tokens_of(console)}
    if name not in tokens:
        raise unknown("key", name, tokens)
    return tokens[name]


@router.get("/keys")
async def list_keys(console: ConsoleDep, _: Reader) -> KeyList:
    return KeyList(keys=[_key(one) for one in tokens_of(console)])


@router.post("/keys", status_code=201, responses={409: {}})
async def create(body: KeyRequest, request: Request, console: ConsoleDep, who: Operator) -> NewKey:
    """Add a token. It is in this answer and nowhere else."""
    if any(one.name == body.name for one in tokens_of(console)):
        raise Problem(409, f"There is a key {body.name!r} already.", fix="Delete it first, or use another name.")
    token = add_token(console.settings.token_file, body.name, body.role)
    await record(console, who.name, "key.create", body.name, {"role": body.role}, address_of(request))
    return NewKey(key=_key(_find(console, body.name)), token=token)


@router.delete("/keys/{name}", status_code=204, responses={404: {}, 409: {}})
async def delete(
    name: Annotated[str, Path(max_length=64)], request: Request, console: ConsoleDep, who: Operator
) -> None:
    """Remove a token; the sessions that were opened with it end."""
    found = _find(console, name)
    others = [one for one in tokens_of(console) if one.name != name and one.role == "operate"]
    if found.role == "operate" and not others:
        raise Problem(
            409, f"{name} is the last key that may operate.", fix="Add another one with the role operate first."
        )
    # First, as it may fail, and then nothing is done that the audit log would not have.
    await console.store.delete_sessions_of(name)
    remove_token(console.settings.token_file, name)
    await record(console, who.name, "key.delete", name, address=address_of(request))


@router.get("/audit", tags=["audit"])
async def audit(console: ConsoleDep, _: Reader, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> AuditList:
    """Who did what, the newest first."""
    entries = await console.store.audit(limit)
    return AuditList(
        entries=[
            AuditDocument(
                at=one.at, by=one.by, action=one.action, target=one.target, detail=dict(one.detail), address=one.address
            )
            for one in entries
        ]
    )
