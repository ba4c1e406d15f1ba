# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks what the containers need, makes what is missing, and builds the image: `make docker-setup`."""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "containers"))

import compose_stack
from compose_stack import ROOT, StackError, read_env
from magi_container.settings import SettingsError, read_settings

DEFAULTS = {"MODELS": "./models", "PROFILES": "./profiles", "REDIS_PASSWORD_FILE": "./secrets/redis_password"}
GREEN, RED, PLAIN = ("\033[32m", "\033[31m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


@dataclass(frozen=True)
class Check:
    """A line of the result. fix says what to do, and is empty where nothing is to be done."""

    text: str
    fix: str = ""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Prepare this checkout for docker compose up.")
    parser.add_argument("--folder", type=Path, default=ROOT, help="where .env is")
    parser.add_argument("--base", default="", help="as for make images")
    parser.add_argument("--no-build", action="store_true", help="only check")
    given = parser.parse_args(arguments)
    checks = prepare(given.folder)
    if not given.no_build and not any(check.fix for check in checks):
        checks.append(build(given.base))
    for check in checks:
        print(f"{RED}✗{PLAIN} {check.text}: {check.fix}" if check.fix else f"{GREEN}✓{PLAIN} {check.text}")
    if any(check.fix for check in checks):
        print("Correct that, and run make docker-setup again.")
        return 1
    _, command = compose_stack.find_compose()
    print(f"Next: {' '.join(command)} up -d, then make docker-test or http://127.0.0.1:8000 (docs/docker.md)")
    return 0


def prepare(folder: Path) -> list[Check]:
    """Make .env, the folders and the password, and say what is missing."""
    env = folder / ".env"
    if not env.exists():
        shutil.copyfile(ROOT / ".env.example", env)
        env.chmod(0o600)
    found = read_env(env)
    paths = {name: folder / (found.get(name) or default) for name, default in DEFAULTS.items()}
    return [
        engine(),
        variables(found),
        profiles(paths["PROFILES"]),
        models(paths["MODELS"]),
        password(paths["REDIS_PASSWORD_FILE"], found.get("REDIS_PASSWORD", "")),
    ]


def engine() -> Check:
    try:
        name, command = compose_stack.find_compose()
    except StackError as error:
        return Check("Docker or podman", str(error))
    return Check(f"{name}, with {' '.join(command)}")


def variables(found: dict[str, str]) -> Check:
    """The same check as the container's."""
    inside = {name: value for name, value in found.items() if name not in ("REDIS_PASSWORD_FILE",)}
    try:
        read_settings(inside)
    except SettingsError as error:
        return Check(".env", str(error))
    unknown = set(found) - set(read_env(ROOT / ".env.example"))
    return Check(".env", f"{', '.join(sorted(unknown))}: not known, see .env.example" if unknown else "")


def profiles(path: Path) -> Check:
    path.mkdir(parents=True, exist_ok=True)
    return Check(f"profiles: {path}", "" if is_readable(path) else f"chmod a+rx {path}")


def models(path: Path) -> Check:
    """There are GGUF files that the container's user can read."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        found = sorted(path.rglob("*.gguf"))
    except OSError as error:
        return Check(f"models: {path}", f"cannot be read: {error.strerror}")
    if not found:
        return Check(f"models: {path}", "has no *.gguf file: put some there, or set MODELS in .env")
    hidden = [one for one in (path, *found) if not is_readable(one)]
    if hidden:
        return Check(f"models: {path}", f"the container's user cannot read {hidden[0]}: chmod -R a+rX {path}")
    return Check(f"models: {path}, {len(found)} files")


def is_readable(path: Path) -> bool:
    """Whether the containers' user, who is none of this machine's, can read a file or list a folder."""
    mode = path.stat().st_mode
    return bool(mode & stat.S_IROTH and (not path.is_dir() or mode & stat.S_IXOTH))


def password(path: Path, given: str) -> Check:
    """A file with the password of Redis, in a folder that only its owner enters; the containers read it as others."""
    if path.exists() and (not given or path.read_text().strip() == given):
        return Check(f"password of Redis: {path}")
    if given and not re.fullmatch(r"[!#-\[\]-~]+", given):
        return Check("password of Redis", "REDIS_PASSWORD: use printable characters other than quotes and backslashes")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w") as file:
        file.write((given or secrets.token_urlsafe(32)) + "\n")
    path.chmod(0o444)
    return Check(f"password of Redis: {path}")


def build(base: str) -> Check:
    command = [sys.executable, str(ROOT / "tools/images.py"), *(["--base", base] if base else []), "magi"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip()
    return Check("image", lines) if done.returncode else Check(f"image {lines}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
