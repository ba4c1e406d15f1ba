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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "containers"))

import compose_stack
import images
from compose_stack import ROOT, StackError, read_env
from magi_container.settings import SettingsError, read_settings

DEFAULTS = {"MODELS": "./models", "PROFILES": "./profiles", "REDIS_PASSWORD_FILE": "./secrets/redis_password"}
COLOURS = ("\033[32m", "\033[31m", "\033[33m", "\033[0m")
GREEN, RED, YELLOW, PLAIN = COLOURS if sys.stdout.isatty() else ("",) * 4
# Compose's own variables in .env.
OF_COMPOSE = ("COMPOSE_", "DOCKER_")
# What Docker waits besides MAGI_STOP_SECONDS: compose.yml.
STOP_SPARE_SECONDS = 60


@dataclass(frozen=True)
class Check:
    """A line of the result. fix says what to do, and is empty where nothing is to be done; a note may be meant so."""

    text: str
    fix: str = ""
    note: str = ""

    def __str__(self) -> str:
        if self.fix:
            return f"{RED}✗{PLAIN} {self.text}: {self.fix}"
        return f"{YELLOW}!{PLAIN} {self.text}: {self.note}" if self.note else f"{GREEN}✓{PLAIN} {self.text}"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Prepare this checkout for docker compose up.")
    parser.add_argument("--folder", type=Path, default=ROOT, help="where .env is")
    parser.add_argument("--base", default="", help="as for make images; by default MAGI_BASE of .env")
    parser.add_argument("--update", action="store_true", help="as for make images")
    parser.add_argument("--no-build", action="store_true", help="only check")
    given = parser.parse_args(arguments)
    checks = prepare(given.folder)
    if not given.no_build and not any(check.fix for check in checks):
        checks.append(build(read_env(given.folder / ".env"), given.base, given.update))
    for check in checks:
        print(check)
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
    paths = {name: folder / Path(found.get(name) or default).expanduser() for name, default in DEFAULTS.items()}
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
    if problem := stop_problem(found):
        return Check(".env", problem)
    known = read_env(ROOT / ".env.example")
    unknown = sorted(name for name in found if name not in known and not name.startswith(OF_COMPOSE))
    note = f"compose.yml has no {', '.join(unknown)}; see .env.example, unless a Compose file of yours has it"
    return Check(".env", note=note if unknown else "")


def stop_problem(found: Mapping[str, str]) -> str:
    """Empty if Docker waits long enough for requests when it stops a container."""
    seconds, grace = int(found.get("MAGI_STOP_SECONDS") or 30), found.get("MAGI_STOP_GRACE") or "90s"
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", grace)
    if not match or not any(match.groups()):
        return f"MAGI_STOP_GRACE={grace:.40}: set it to a duration such as 90s or 2m30s."
    hours, minutes, rest = (int(part or 0) for part in match.groups())
    if hours * 3600 + minutes * 60 + rest < seconds + STOP_SPARE_SECONDS:
        return f"MAGI_STOP_GRACE={grace} is too short for MAGI_STOP_SECONDS={seconds}: {seconds + STOP_SPARE_SECONDS}s."
    return ""


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
    if lost := next((one for one in found if leads_out(one, path)), None):
        return Check(
            f"models: {path}",
            f"{lost} is a link to {os.readlink(lost)}, which the container does not have: put the file there, or make "
            "it a relative link within the folder",
        )
    hidden = [one for one in (path, *found) if not is_readable(one)]
    if hidden:
        return Check(f"models: {path}", f"the container's user cannot read {hidden[0]}: chmod -R a+rX {path}")
    return Check(f"models: {path}, {len(found)} files")


def leads_out(file: Path, folder: Path) -> bool:
    """Whether a file is a link that leads nowhere where its folder has another path."""
    if not file.is_symlink():
        return False
    is_within = file.resolve().is_relative_to(folder.resolve())
    return os.path.isabs(os.readlink(file)) or not is_within or not file.exists()


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


def build(found: Mapping[str, str], base: str, update: bool) -> Check:
    """Build the image under the name that Compose uses."""
    options = ["--base", base or found.get("MAGI_BASE") or images.DEFAULT_BASE]
    options += ["--name", found.get("MAGI_IMAGE") or compose_stack.IMAGE, *(["--update"] if update else [])]
    command = [sys.executable, str(ROOT / "tools/images.py"), *options, "magi"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip()
    return Check("image", lines) if done.returncode else Check(f"image {lines}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
