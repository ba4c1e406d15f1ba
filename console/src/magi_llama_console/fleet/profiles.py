# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Profiles: the collection's own and those next to the inventory, and how one is checked and saved."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_BYTES = 256 << 10
# To compare more lines than that could take minutes: they are shown as replaced.
MAX_LINES = 2000
CHECK_SECONDS = 30
GIT_SECONDS = 20
HIDDEN = ".magi-llama"
PROFILES = "profiles"
CHECK = Path(__file__).with_name("profile_check.py")


class ProfileFileError(Exception):
    """A profile's file cannot be read or written: the text names it."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile's file; sha256 is that of its text."""

    name: str
    path: Path
    text: str
    is_builtin: bool
    # The file has more than MAX_BYTES, and text none of it: saved again, the rest would be lost.
    is_too_long: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def description(self) -> str:
        """What the file says of itself; empty where it is not valid YAML."""
        if self.is_too_long:
            return f"The file has more than {MAX_BYTES >> 10} KiB, so it is not shown, and cannot be saved here."
        return description_of(self.text)


@lru_cache(maxsize=256)
def description_of(text: str) -> str:
    """Takes about a second for a text of the greatest size, the first time."""
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return ""
    found = content.get("description") if isinstance(content, dict) else None
    # Anything else may be aliases of aliases, which as text have no end.
    return found if isinstance(found, str) else ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What the collection says of a profile: errors, warnings, and by host what it selects and what is missing."""

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    selects: Mapping[str, Sequence[str]] | None = None
    missing: Mapping[str, Sequence[str]] | None = None


def folders(inventory: Path, builtin: Path | None) -> list[Path]:
    """Where profiles are looked for, in the order in which the collection does: servers_profile_paths."""
    near = inventory if inventory.is_dir() else inventory.parent
    return [near / HIDDEN / PROFILES, near / PROFILES, *([builtin] if builtin else [])]


def builtin_folder(collections: Sequence[str]) -> Path | None:
    """The collection's own profiles, in the first of these folders that has it."""
    paths = (Path(one, "ansible_collections/magi/llama/roles/servers/profiles") for one in collections)
    return next((path for path in paths if path.is_dir()), None)


def list_profiles(inventory: Path, builtin: Path | None) -> dict[str, Profile]:
    """Every profile by name: the first file of a name counts, as for a run."""
    found: dict[str, Profile] = {}
    for folder in folders(inventory, builtin):
        for path in sorted(folder.glob("*.yml")) if folder.is_dir() else []:
            if path.stem not in found and path.is_file() and NAME.fullmatch(path.stem):
                text = _read(path)
                found[path.stem] = Profile(path.stem, path, text or "", folder == builtin, text is None)
    return dict(sorted(found.items()))


def _read(path: Path) -> str | None:
    """None for a file that is too long."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        return None if len(content) > MAX_BYTES else content.decode("utf-8", "replace")
    except OSError as error:
        raise ProfileFileError(f"{path} cannot be read: {error.strerror}.") from error


def place(name: str, inventory: Path, known: Mapping[str, Profile]) -> Path:
    """The file that a profile is saved to: its own, or a new one next to the inventory. A built-in one is kept."""
    if name in known and not known[name].is_builtin:
        return known[name].path
    hidden, plain = folders(inventory, None)
    # Ansible would read a plain folder inside an inventory that is a folder.
    folder = hidden if hidden.is_dir() or inventory.is_dir() else plain
    return folder / f"{name}.yml"


def diff(old: str, new: str, path: Path) -> str:
    """A unified diff; empty where nothing changes."""
    if old == new:
        return ""
    before, after = old.splitlines(keepends=True), new.splitlines(keepends=True)
    names = (f"a/{path.name}", f"b/{path.name}")
    if max(len(before), len(after)) > MAX_LINES:
        head = f"--- {names[0]}\n+++ {names[1]}\n@@ -1,{len(before)} +1,{len(after)} @@\n"
        lines: Iterable[str] = [head, *(f"-{line}" for line in before), *(f"+{line}" for line in after)]
    else:
        lines = difflib.unified_diff(before, after, *names)
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


async def check(
    name: str,
    path: Path,
    text: str,
    registries: Mapping[str, Sequence[Mapping[str, Any]]],
    python: Path,
    environment: Mapping[str, str],
    collections: Sequence[str],
) -> Checked:
    """Have the collection's loader validate a profile. python is one that has ansible-core."""
    models = {
        host: [{key: model.get(key) for key in ("id", "kind", "tier", "architecture")} for model in found]
        for host, found in registries.items()
    }
    request = {
        "name": name,
        "path": str(path),
        "text": text,
        "registries": models,
        "collections": list(collections),
    }
    code, output, errors = await _run([str(python), str(CHECK)], CHECK_SECONDS, environment, json.dumps(request))
    if code:
        last = (errors.strip().splitlines() or ["no output"])[-1]
        raise ProfileFileError(f"The profile could not be checked: {last[:300]}")
    answer = json.loads(output)
    return Checked(tuple(answer["errors"]), tuple(answer["warnings"]), dict(answer["selects"]), dict(answer["missing"]))


def save(path: Path, text: str) -> None:
    """Replace a profile's file in one step. Raises ProfileFileError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        descriptor, staged = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            os.replace(staged, path)
        except BaseException:
            os.unlink(staged)
            raise
    except OSError as error:
        raise ProfileFileError(f"{path} cannot be written: {error.strerror}.") from error


async def commit(path: Path, name: str, by: str, environment: Mapping[str, str]) -> str | None:
    """Commit this one file where it is in a git repository; the commit's id, None without one or without a change.

    Raises ProfileFileError where it is in one, and cannot be committed.
    """
    git = ["git", "-C", str(path.parent)]
    environment = {**environment, "LC_ALL": "C"}
    code, _output, errors = await _run([*git, "rev-parse", "--is-inside-work-tree"], GIT_SECONDS, environment)
    if code == 127 or "not a git repository" in errors:
        return None
    if code:
        raise not_committed(path, errors)
    if not (await _run([*git, "check-ignore", "-q", path.name], GIT_SECONDS, environment))[0]:
        return None
    identity = ["-c", f"user.name={by} (console)", "-c", "user.email=console@localhost"]
    for command in (
        ["add", "--", path.name],
        # 1 where there is something to commit.
        ["diff", "--cached", "--quiet", "--", path.name],
        ["commit", "-q", "--only", "-m", f"Change the profile {name} in the console", "--", path.name],
    ):
        code, output, errors = await _run([*git, *identity, *command], GIT_SECONDS, environment)
        if command[0] == "diff" and not code:
            return None
        if code and (command[0], code) != ("diff", 1):
            raise not_committed(path, errors or output)
    return (await _run([*git, "rev-parse", "HEAD"], GIT_SECONDS, environment))[1].strip() or None


def not_committed(path: Path, text: str) -> ProfileFileError:
    last = (text.strip().splitlines() or ["no output"])[-1]
    return ProfileFileError(f"{path} is saved, but not committed: {last[:300]}")


async def _run(
    command: Sequence[str], seconds: float, environment: Mapping[str, str], stdin: str = ""
) -> tuple[int, str, str]:
    """Exit status, standard output and standard error; 127 where the program is missing, 124 where it took too long."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=dict(environment),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        return 127, "", f"{command[0]}: {error.strerror}"
    try:
        output, errors = await asyncio.wait_for(process.communicate(stdin.encode()), seconds)
    except TimeoutError:
        process.kill()
        await process.wait()
        return 124, "", f"{command[0]} did not end within {seconds} s"
    return process.returncode or 0, output.decode(errors="replace"), errors.decode(errors="replace")
