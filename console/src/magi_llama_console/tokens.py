# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file of tokens: names and roles, and of each token only its sha256.

    {"schema_version": 1, "tokens": [{"name": "ci", "role": "operate", "sha256": "…", "created_at": "…", "origin": ""}]}

The origin inventory is that of imported tokens: the next import removes those that it does not have.
A token has 256 bits of randomness, so a plain sha256 of it cannot be reversed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .store.base import now

ROLES = ("read", "operate")
SHA256 = re.compile(r"[0-9a-f]{64}")
INVENTORY = "inventory"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class TokenFileError(Exception):
    """The file cannot be used. The text names it and the fix."""


@dataclass(frozen=True, slots=True)
class Token:
    name: str
    role: str
    sha256: str
    created_at: str
    origin: str = ""


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def read_tokens(path: Path) -> list[Token]:
    """The tokens; none if there is no file. Raises TokenFileError."""
    try:
        document = json.loads(path.read_text())
        tokens = [Token(**{key: str(value) for key, value in one.items()}) for one in document["tokens"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TokenFileError(f"{path}: not a file of tokens ({error}); remove it and add the tokens again") from error
    if wrong := [one.name for one in tokens if one.role not in ROLES]:
        raise TokenFileError(f"{path}: role of {', '.join(wrong)}: use {' or '.join(ROLES)}")
    return tokens


class TokenReader:
    """Reads the file again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, ...] = ()
        self._tokens: list[Token] = []

    def read(self) -> list[Token]:
        """The tokens as the file has them now. Raises TokenFileError."""
        try:
            status = self._path.stat()
            stamp: tuple[int, ...] = (status.st_ino, status.st_size, status.st_mtime_ns)
        except OSError:
            stamp = ()
        if stamp != self._stamp or not stamp:
            self._tokens = read_tokens(self._path)
            self._stamp = stamp
        return self._tokens


@contextlib.contextmanager
def changing(path: Path) -> Iterator[None]:
    """Keeps others from changing the file as long as the block runs: the console, and programs at a command line."""
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_tokens(path: Path, tokens: Sequence[Token]) -> None:
    """Replace the file, 0600."""
    text = json.dumps({"schema_version": 1, "tokens": [asdict(one) for one in tokens]}, indent=2) + "\n"
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    staged.replace(path)


def add_token(path: Path, name: str, role: str) -> str:
    """Add a token, or replace that of the same name, and return it: it is not kept anywhere."""
    check_name_and_role(name, role)
    token = secrets.token_urlsafe(32)
    with changing(path):
        kept = [one for one in read_tokens(path) if one.name != name]
        write_tokens(path, [*kept, Token(name, role, digest(token), now())])
    return token


def import_tokens(path: Path, given: Sequence[Mapping[str, str]]) -> bool:
    """Have the inventory's tokens be these, each {"name", "role", "sha256"}; whether that changed the file.

    One of the same name is replaced, and one that an earlier import has added and these do not have is removed; those
    that were added otherwise are kept. Raises ValueError for what cannot be a token.
    """
    wanted: dict[str, tuple[str, str]] = {}
    for one in given:
        name, role, sha256 = one.get("name", ""), one.get("role", "read"), one.get("sha256", "").lower()
        check_name_and_role(name, role)
        if not SHA256.fullmatch(sha256):
            raise ValueError(f"the sha256 of {name}: use 64 hexadecimal digits")
        wanted[name] = role, sha256
    with changing(path):
        before = read_tokens(path)
        tokens = {one.name: one for one in before if one.origin != INVENTORY or one.name in wanted}
        for name, (role, sha256) in wanted.items():
            old = tokens.get(name)
            if old is None or (old.role, old.sha256) != (role, sha256):
                tokens[name] = Token(name, role, sha256, now(), INVENTORY)
            elif old.origin != INVENTORY:
                # The same token, so its sessions continue.
                tokens[name] = replace(old, origin=INVENTORY)
        after = list(tokens.values())
        if after != before:
            write_tokens(path, after)
    return after != before


def check_name_and_role(name: str, role: str) -> None:
    """Raises ValueError."""
    if not NAME.fullmatch(name):
        raise ValueError(f"the name {name!r}: use letters, digits, '.', '_', '@' and '-', at most 64")
    if role not in ROLES:
        raise ValueError(f"the role {role!r}: use {' or '.join(ROLES)}")


def remove_token(path: Path, name: str) -> bool:
    """Whether there was one."""
    with changing(path):
        tokens = read_tokens(path)
        kept = [one for one in tokens if one.name != name]
        if len(kept) == len(tokens):
            return False
        write_tokens(path, kept)
    return True
