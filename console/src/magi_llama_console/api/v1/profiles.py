# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Profiles: list them, check a text with a preview of what it would select, save it next to the inventory."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ...ansible import collection_folders, full_environment
from ...console import Console
from ...fleet import capacity, profiles
from ...fleet.profiles import Checked, Profile, ProfileFileError
from ..audit import record
from ..deps import ConsoleDep
from ..errors import errors
from ..problems import Problem
from ..security import Operator, Reader, address_of

router = APIRouter(prefix="/api/v1/profiles", tags=["profiles"])
# One file at a time is compared and replaced.
SAVING = asyncio.Lock()


class ProfileDocument(BaseModel):
    """A profile's file. active_on are the hosts that are deployed with it."""

    name: str
    path: str
    description: str
    builtin: Annotated[bool, Field(description="Part of the collection: saving it makes a file next to the inventory.")]
    active_on: list[str]
    text: str
    sha256: Annotated[str, Field(description="Of the text, for expected_sha256.")]


class ProfileList(BaseModel):
    profiles: list[ProfileDocument]


class ProfileText(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(max_length=profiles.MAX_BYTES)]
    preview: Annotated[bool, Field(description="Check it and show the difference, and save nothing.")] = False
    expected_sha256: Annotated[
        str | None, Field(max_length=64, description="Refuse to save it where the file is another one by now.")
    ] = None


class Selected(BaseModel):
    """What a profile selects on a host, out of the registry that is known."""

    models: list[str]
    missing: Annotated[list[str], Field(description="Models that it names and the host does not have.")]
    needs_bytes: Annotated[int, Field(description="The estimate, or file size, of all of them together.")]


class SavedProfile(BaseModel):
    """errors are the collection's own; with any of them nothing was saved."""

    diff: Annotated[str, Field(description="Unified; empty where nothing changes.")]
    errors: list[str]
    warnings: list[str]
    saved: bool
    path: str
    selects: dict[str, Selected]
    commit: Annotated[str | None, Field(description="The id of the git commit, where the folder is in a repository.")]


@router.get("", responses=errors(500))
async def list_profiles(console: ConsoleDep, _: Reader) -> ProfileList:
    """All profiles by name: those next to the inventory come before the built-in ones of the same name."""
    known = await read_all(console)
    active: dict[str | None, list[str]] = {}
    for host in console.fleet.hosts():
        active.setdefault(host.profile, []).append(host.name)
    # Their YAML is parsed, which may take a second for a long one.
    return await asyncio.to_thread(described, known, active)


def described(known: Mapping[str, Profile], active: Mapping[str | None, list[str]]) -> ProfileList:
    return ProfileList(
        profiles=[
            ProfileDocument(
                name=one.name,
                path=str(one.path),
                description=one.description,
                builtin=one.is_builtin,
                active_on=active.get(one.name, []),
                text=one.text,
                sha256=one.sha256,
            )
            for one in known.values()
        ]
    )


@router.put("/{name}", responses=errors(409, 422, 500))
async def save_profile(
    name: str, body: ProfileText, request: Request, console: ConsoleDep, who: Operator
) -> SavedProfile:
    """Check a profile with the collection's own loader, and save it unless preview is set or it has errors.

    Templates are refused: they would run on the controller.
    """
    if not profiles.NAME.fullmatch(name):
        raise Problem(
            422, f"{name!r} is not a name of a profile.", fix="Use letters, digits, '.', '_' and '-'; at most 64."
        )
    known = await read_all(console)
    path = profiles.place(name, console.settings.inventory, known)
    before = known.get(name)
    if before and before.is_too_long:
        raise Problem(409, f"{path} is too long to be changed here.", fix="Edit the file itself.")
    checked = await check(console, name, path, body.text)
    saved = SavedProfile(
        diff=await asyncio.to_thread(profiles.diff, before.text if before else "", body.text, path),
        errors=list(checked.errors),
        warnings=list(checked.warnings),
        saved=False,
        path=str(path),
        selects=selected(console, checked),
        commit=None,
    )
    if body.preview or checked.errors:
        return saved
    await replace(console, name, path, body, before)
    saved.saved = True
    try:
        saved.commit = await profiles.commit(path, name, who.name, full_environment(console.settings))
    except ProfileFileError as error:
        saved.warnings.append(str(error))
    await record(
        console, who.name, "profile.save", name, {"path": str(path), "commit": saved.commit}, address_of(request)
    )
    return saved


async def replace(console: Console, name: str, path: Path, body: ProfileText, before: Profile | None) -> None:
    """Write a profile's file. Raises Problem 409 where it is not as it was read, or not the expected one."""
    async with SAVING:
        # The check took a while: what is replaced is what the difference was shown to.
        is_other = (await read_all(console)).get(name) != before
        if is_other or body.expected_sha256 not in (None, before.sha256 if before else ""):
            raise Problem(
                409,
                f"{path} has been changed meanwhile.",
                fix="Read the profile again, and make your change in that text.",
            )
        try:
            await asyncio.to_thread(profiles.save, path, body.text)
        except ProfileFileError as error:
            raise Problem(500, str(error), fix="Let the console's user write in the inventory's folder.") from error


async def read_all(console: Console) -> dict[str, Profile]:
    """Every profile by name. Raises Problem 500 where one cannot be read."""
    builtin = profiles.builtin_folder(collection_folders(console.settings))
    try:
        return await asyncio.to_thread(profiles.list_profiles, console.settings.inventory, builtin)
    except ProfileFileError as error:
        raise Problem(500, str(error), fix="Let the console's user read it.") from error


async def check(console: Console, name: str, path: Path, text: str) -> Checked:
    registries = {host.name: host.models for host in console.fleet.hosts()}
    # The interpreter of ansible-playbook, which may have another environment than the console.
    python = console.settings.ansible_bin / "python"
    try:
        return await profiles.check(
            name,
            path,
            text,
            registries,
            python if python.exists() else Path(sys.executable),
            full_environment(console.settings),
            collection_folders(console.settings),
        )
    except ProfileFileError as error:
        raise Problem(500, str(error), fix="Look at the console's log.") from error


def selected(console: Console, checked: Checked) -> dict[str, Selected]:
    needs = capacity.needs(console.fleet.hosts())
    return {
        host: Selected(
            models=list(models),
            missing=list((checked.missing or {}).get(host, ())),
            needs_bytes=sum(needs[model].needs_bytes for model in models if model in needs),
        )
        for host, models in (checked.selects or {}).items()
    }
