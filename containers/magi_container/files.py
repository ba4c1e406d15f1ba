# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that the containers write: whole or not at all, secrets for their owner alone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.unlink(missing_ok=True)
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as stream:
        os.fchmod(stream.fileno(), mode)
        stream.write(text)
    staged.replace(path)


def ensure_secret(path: Path) -> None:
    """Write a random secret, unless there is one."""
    if not path.exists():
        write(path, secrets.token_urlsafe(32) + "\n", 0o600)
