# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Compose of this machine: how it is called, and what runs in the containers of compose.yml."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Each with the engine that it drives, best first. podman-compose does not wait for a container to be healthy.
WAYS = (("docker", ("docker", "compose")), ("docker", ("docker-compose",)), ("podman", ("podman-compose",)))
SERVICES = ("redis", "gateway", "magi")
IMAGE = "magi-llama/magi:latest"
VARIABLE = re.compile(r"\s*(?:export\s+)?(?P<name>[A-Za-z_]\w*)\s*=(?P<value>.*)")
QUOTED = re.compile(r"""(?P<quote>["'])(?P<value>.*?)(?P=quote)\s*(#.*)?""")
NAMED = re.compile(r"\$(?:\{(?P<braced>\w+)(?::?-(?P<default>[^}]*))?\}|(?P<plain>[A-Za-z_]\w*))")


class StackError(Exception):
    """What is wrong, and what to do about it."""


def find_compose() -> tuple[str, list[str]]:
    """The engine and the command of Compose. Raises StackError with what to install."""
    for engine, command in WAYS:
        if shutil.which(command[0]) and answers([*command, "version"]) and answers([engine, "info"]):
            return engine, list(command)
    raise StackError(
        "neither Docker with Compose nor podman with podman-compose works here: install docker.io and docker-compose, "
        "or podman and podman-compose; start Docker's daemon, and be a user who may use it"
    )


def answers(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def read_env(path: Path) -> dict[str, str]:
    """The variables of a .env file, as Compose reads them; {} without one."""
    found: dict[str, str] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        if match := VARIABLE.fullmatch(line):
            found[match["name"]] = value_of(match["value"].strip(), found)
    return found


def value_of(text: str, known: Mapping[str, str]) -> str:
    """A value without quotes and comment, and with the variables that it names: those of before, and this shell's."""
    if quoted := QUOTED.fullmatch(text):
        text = quoted["value"]
        if quoted["quote"] == "'":
            return text
    else:
        text = re.sub(r"(^|\s)#.*", "", text).strip()

    def named(match: re.Match[str]) -> str:
        name = match["braced"] or match["plain"]
        return os.environ.get(name) or known.get(name) or match["default"] or ""

    return NAMED.sub(named, text)


@dataclass
class Answer:
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Stack:
    """The containers of compose.yml: those that Compose finds in the checkout, where nothing else is given.

    Then .env, compose.override.yml, COMPOSE_FILE and COMPOSE_PROJECT_NAME count as for the user's own calls.
    """

    compose: Sequence[str]
    engine: str
    env: Path | None = None
    project: str = ""
    files: Sequence[Path] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    def setting(self, name: str, default: str) -> str:
        given = {**read_env(self.env or ROOT / ".env"), **os.environ, **self.variables}
        return given.get(name) or default

    @property
    def gateway_port(self) -> int:
        return int(self.setting("MAGI_GATEWAY_PORT", "8070"))

    @property
    def console_port(self) -> int:
        return int(self.setting("MAGI_CONSOLE_PORT", "8000"))

    def call(self, *arguments: str, timeout: float = 300) -> str:
        """Call Compose and return what it printed. Raises StackError with its last lines."""
        command = [*self.compose, *(["-p", self.project] if self.project else [])]
        command += ["--env-file", str(self.env)] if self.env else []
        command += [word for path in self.files for word in ("-f", str(path))]
        environment = {**os.environ, **self.variables}
        try:
            done = subprocess.run(
                [*command, *arguments],
                cwd=ROOT,
                env=environment,
                timeout=timeout,
                capture_output=True,
                text=True,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            said = f"{' '.join(self.compose)} {' '.join(arguments)} has not ended after {timeout:g} s"
            raise StackError(said) from error
        if done.returncode:
            lines = (done.stdout + done.stderr).strip().splitlines()[-12:]
            raise StackError(f"{' '.join(self.compose)} {' '.join(arguments)} has failed:\n" + "\n".join(lines))
        return done.stdout

    def up(self) -> bool:
        """Start what does not run, and change nothing of what does. Return whether a container ran before."""
        if self.call("ps", "-q").split():
            self.call("up", "-d", "--no-build", "--no-recreate", timeout=1800)
            return True
        image = self.setting("MAGI_IMAGE", IMAGE)
        known = subprocess.run([self.engine, "image", "inspect", image], capture_output=True, check=False)
        if known.returncode:
            # The other services have no build of their own, and wait for none.
            self.call("build", "magi", timeout=1800)
        self.call("up", "-d", "--no-build", timeout=1800)
        return False

    def run_in(self, service: str, *command: str) -> str:
        return self.call("exec", "-T", service, *command, timeout=60).strip()

    def container(self, service: str) -> dict[str, Any]:
        """What the engine says of a container; {} without one."""
        found = self.call("ps", "-a", "-q", service).split()
        if not found:
            return {}
        done = subprocess.run([self.engine, "inspect", found[0]], capture_output=True, text=True, check=True)
        [inspected] = json.loads(done.stdout)
        return dict(inspected)

    def started(self, service: str) -> str:
        """When a container was started last; empty without one."""
        return str(self.container(service).get("State", {}).get("StartedAt", ""))

    def health(self, service: str) -> str:
        """healthy, or what the last check of its health has found."""
        state = self.container(service).get("State", {})
        health = state.get("Health") or state.get("Healthcheck") or {}
        if health.get("Status") == "healthy" and state.get("Status") == "running":
            return "healthy"
        log = health.get("Log") or [{}]
        return (
            f"{state.get('Status', 'missing')}, {health.get('Status', 'no check')}: {log[-1].get('Output', '').strip()}"
        )

    def wait_until_healthy(self, seconds: float, services: Sequence[str] = SERVICES) -> None:
        """Raises StackError with the reason of each container that is not healthy after so many seconds."""
        self.wait(lambda: all(self.health(one) == "healthy" for one in services), seconds, services)

    def wait(self, is_so: Any, seconds: float, services: Sequence[str] = SERVICES) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline:
                found = "; ".join(f"{one}: {self.health(one)}" for one in services)
                raise StackError(f"not so after {seconds:g} s: {found}")
            time.sleep(0.5)

    def ask(self, port: int, path: str, token: str = "", body: Any = None, timeout: float = 60) -> Answer:
        """Send a request to a published port; status 0 without an answer."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        address = self.setting("MAGI_BIND", "127.0.0.1")
        request = urllib.request.Request(f"http://{address}:{port}{path}", data, headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout) as answer:
                return Answer(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read())
        except OSError:
            return Answer(0, b"")

    def console(self, path: str, body: Any = None, timeout: float = 60) -> Answer:
        return self.ask(self.console_port, path, self.run_in("magi", "cat", "/data/console.token"), body, timeout)

    def gateway(self, path: str, body: Any = None) -> Answer:
        return self.ask(self.gateway_port, path, self.run_in("magi", "cat", "/data/gateway.key"), body)

    def servers(self) -> list[dict[str, Any]]:
        """The servers as the console knows them."""
        return list(self.console("/api/models/status").json()["servers"])

    def kill(self, service: str, words: Sequence[str]) -> str:
        """Send KILL to the first process of a container whose command line has all these words; return its pid."""
        if pid := self.find(service, words):
            self.run_in(service, "python3", "-c", f"import os; os.kill({int(pid)}, 9)")
            return pid
        raise StackError(f"{service} has no process with {' '.join(words)}")

    def find(self, service: str, words: Sequence[str]) -> str:
        """The pid, within the container, of the first such process; empty without one."""
        return self.run_in(service, "python3", "-c", FIND, *words)


FIND = """
import os, sys
for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
    try:
        line = open(f"/proc/{pid}/cmdline", "rb").read().replace(b"\\0", b" ").decode()
    except OSError:
        continue
    if pid not in (1, os.getpid()) and all(word in line for word in sys.argv[1:]):
        print(pid)
        break
"""
