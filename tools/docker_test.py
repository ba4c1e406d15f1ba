# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts the containers and tests them from outside: `make docker-test`. They are left running where a test fails."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import compose_stack
from compose_stack import ROOT, Stack, StackError

GREEN, RED, YELLOW, PLAIN = ("\033[32m", "\033[31m", "\033[33m", "\033[0m") if sys.stdout.isatty() else ("",) * 4
START_SECONDS, AGAIN_SECONDS = 600.0, 120.0
# What an operator reads, and the status of each answer.
ENDPOINTS = (
    *("/", "/health", "/status", "/docs", "/api/v1/openapi.json", "/api/models/registry", "/api/models/servers"),
    *("/api/models/status", "/api/models/profiles", "/api/models/management/servers", "/api/v1/hosts"),
    *("/api/v1/servers", "/api/v1/models", "/api/v1/capacity", "/api/v1/profiles", "/api/v1/jobs", "/api/v1/plans"),
    *("/api/v1/locks", "/api/v1/keys", "/api/v1/audit", "/api/v1/session"),
)


class Skipped(Exception):
    """A test that does not work on this machine; the text says why."""


def expect(is_so: bool, text: Any) -> None:
    if not is_so:
        raise StackError(str(text))


def health(stack: Stack) -> None:
    """Every service is healthy."""
    stack.wait_until_healthy(START_SECONDS)


def endpoints(stack: Stack) -> None:
    """Every endpoint of the console answers."""
    wrong = {path: found for path in ENDPOINTS if (found := stack.console(path).status) != 200}
    expect(not wrong, f"not answered with 200: {wrong}")


def closed(stack: Stack) -> None:
    """Console and gateway want a token."""
    found = stack.ask(stack.console_port, "/api/v1/servers").status, stack.ask(stack.gateway_port, "/v1/models").status
    expect(found == (401, 401), f"without a token console and gateway answer {found}")


def page(stack: Stack) -> None:
    """The page shows the servers in a browser."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        from support.browser import CHROMIUM, chromium
    except ImportError as error:
        raise Skipped(f"playwright is missing: {error}") from error
    if not CHROMIUM:
        raise Skipped("chromium is missing: apt-get install chromium")
    name = stack.servers()[0]["name"]
    with chromium() as browser:
        shown = browser.new_page()
        shown.goto(f"http://{stack.setting('MAGI_BIND', '127.0.0.1')}:{stack.console_port}/")
        shown.get_by_label("Token").fill(stack.run_in("magi", "cat", "/data/console.token"))
        shown.keyboard.press("Enter")
        shown.get_by_text(name).first.wait_for(timeout=20000)


def redis_password(stack: Stack) -> None:
    """Redis answers with its password, and refuses without."""
    sent = (
        "import socket; s = socket.create_connection(('redis', 6379), 5); s.sendall(b'PING\\r\\n'); print(s.recv(99))"
    )
    expect("NOAUTH" in stack.run_in("magi", "python3", "-c", sent), "Redis answers without a password")
    found = stack.run_in("redis", "magi-container", "health", "redis")
    expect(found == "healthy", f"with the password: {found}")


def completion(stack: Stack) -> None:
    """A completion comes through the gateway."""
    models = [one["id"] for one in stack.gateway("/v1/models").json()["data"]]
    chats = [one["model_id"] for one in stack.servers() if one["model_id"] in models]
    expect(bool(chats), f"the gateway has none of the servers' models: {models}")
    asked = {"model": chats[0], "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    answer = stack.gateway("/v1/chat/completions", asked)
    expect(answer.status == 200 and answer.json()["choices"], f"{answer.status} {answer.body[:300]!r}")


def kill_server(stack: Stack) -> None:
    """A server that is killed is started again."""
    server = stack.servers()[0]
    words = ("/usr/bin/llama-server", f"--port {server['port']}")
    before = stack.kill("magi", words)

    def is_back() -> bool:
        # Its model may be served by another server meanwhile, so the console is asked.
        ready = {one["name"] for one in stack.servers() if one["is_ready"]}
        return server["name"] in ready and stack.find("magi", words) not in ("", before)

    stack.wait(is_back, AGAIN_SECONDS)
    completion(stack)


def kill_console(stack: Stack) -> None:
    """A console that is killed is started again, and no server is touched by that."""
    before = pids(stack)
    stack.kill("magi", ("magi_llama_console.cli",))
    stack.wait(lambda: stack.ask(stack.console_port, "/health").status == 200, AGAIN_SECONDS)
    expect(pids(stack) == before, f"servers were {before} and are {pids(stack)}")


def pids(stack: Stack) -> str:
    return stack.run_in("magi", "python3", "-c", PIDS)


PIDS = """
import os
for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
    try:
        words = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0")
    except OSError:
        continue
    if words[0] == b"/usr/bin/llama-server":
        print(pid)
"""


def kill_redis(stack: Stack) -> None:
    """A Redis that is killed is started again, with the events it had."""
    count = 'REDISCLI_AUTH="$(cat /run/secrets/redis_password)" redis-cli xlen magi:events'
    before = int(stack.run_in("redis", "sh", "-c", count))
    started = stack.started("redis")
    with contextlib.suppress(StackError):
        # The container ends with its program, and this call with the container.
        stack.kill("redis", ("redis-server",))
    # What was healthy before says nothing of this start.
    stack.wait(lambda: stack.started("redis") != started, AGAIN_SECONDS)
    stack.wait_until_healthy(AGAIN_SECONDS, ("redis",))
    after = int(stack.run_in("redis", "sh", "-c", count))
    expect(after >= before > 0, f"{before} events before, {after} after")
    stack.wait(lambda: stack.console("/api/models/status").status == 200, AGAIN_SECONDS)


def logs(stack: Stack) -> None:
    """The servers' logs are those of the container."""
    found = stack.call("logs", "--no-color", "magi")
    names = [one["name"] for one in stack.servers()]
    missing = [name for name in names if not re.search(rf"\b{re.escape(name)} \| ", found)]
    expect(not missing, f"no log of {missing}")


STEPS: tuple[Callable[[Stack], None], ...] = (
    *(health, endpoints, closed, completion, redis_password, logs, page, kill_server, kill_console, kill_redis),
    health,
)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Start the containers and test them.")
    parser.add_argument("--env", type=Path, help="another file of variables than .env")
    parser.add_argument("--project", default="", help="another name of the project than Compose finds")
    given = parser.parse_args(arguments)
    try:
        engine, compose = compose_stack.find_compose()
        stack = Stack(compose, engine, given.env, given.project)
        print(f"{' '.join(compose)} up")
        was_running = stack.up()
    except StackError as error:
        print(f"{RED}✗{PLAIN} {error}")
        return 1
    if failed := sum(not passes(step, stack) for step in STEPS):
        print(f"{RED}{failed} of {len(STEPS)} have failed.{PLAIN} Everything is left running: {' '.join(compose)} logs")
        return 1
    print(f"{GREEN}All of it works.{PLAIN}")
    try:
        if not was_running:
            stack.call("down")
    except StackError as error:
        print(f"{RED}✗{PLAIN} {error}")
        return 1
    return 0


def passes(step: Callable[[Stack], None], stack: Stack) -> bool:
    began = time.monotonic()
    try:
        step(stack)
    except Skipped as reason:
        print(f"{YELLOW}-{PLAIN} {step.__doc__} Skipped: {reason}")
        return True
    except Exception as error:  # anything that a broken answer raises is the test's result
        print(f"{RED}✗{PLAIN} {step.__doc__} {type(error).__name__}: {error}")
        return False
    print(f"{GREEN}✓{PLAIN} {step.__doc__} {time.monotonic() - began:.0f} s")
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
