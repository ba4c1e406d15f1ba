# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts the demo's console in the background, and stops it: `make demo`, `make demo-stop`.

It has no service manager, which nothing else of the console needs: the demo runs without root. Files are in
.cache/demo: console (data), console.token (0600), console.pid, console.log.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from magi_llama_console.jobs.launcher import is_alive
from magi_llama_console.jobs.runner import identity

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(sys.executable).with_name("magi-llama-console")
START_SECONDS = 20.0
STOP_SECONDS = 10.0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Start or stop the demo's console.")
    parser.add_argument("verb", choices=("start", "stop"))
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache/demo")
    parser.add_argument("--inventory", type=Path, default=ROOT / "inventories/local")
    parser.add_argument("--listen", default="127.0.0.1:8000")
    given = parser.parse_args(arguments)
    if given.verb == "stop":
        stop(given.folder)
        return 0
    return start(given.folder, given.inventory, given.listen)


def start(folder: Path, inventory: Path, listen: str) -> int:
    """Start the console unless it runs, and say where it is. Returns the exit status."""
    if running_pid(folder) is None:
        if answers(listen):
            print(f"another program answers at {listen}: stop it, and run this again", file=sys.stderr)
            return 1
        token_file(folder)
        command = [
            PROGRAM,
            "--inventory",
            inventory,
            "--data",
            folder / "console",
            "--checkout",
            ROOT,
            "--listen",
            listen,
        ]
        with (folder / "console.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
            )
        (folder / "console.pid").write_text(json.dumps(identity(process.pid)))
        deadline = time.monotonic() + START_SECONDS
        while not answers(listen):
            if process.poll() is not None or time.monotonic() > deadline:
                print(f"the console does not start at {listen}; its log is {folder}/console.log", file=sys.stderr)
                stop(folder)
                return 1
            time.sleep(0.05)
    print(f"console: http://{listen}, with the token in {shown(folder / 'console.token')} (docs/console.md)")
    return 0


def token_file(folder: Path) -> None:
    """Make a token, unless there is one, in a file that its owner alone can read."""
    path = folder / "console.token"
    tokens = folder / "console/tokens.json"
    if path.exists() and tokens.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [PROGRAM, "token", "demo", "--role", "operate", "--tokens", tokens]
    token = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)


def stop(folder: Path) -> None:
    """Stop the console; its jobs are not its children, and end by themselves."""
    if (pid := running_pid(folder)) is not None:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while running_pid(folder) is not None:
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.05)
    (folder / "console.pid").unlink(missing_ok=True)


def running_pid(folder: Path) -> int | None:
    """The pid of the console that was started for the folder, if that very process still runs."""
    try:
        noted = json.loads((folder / "console.pid").read_text())
        return int(noted["pid"]) if is_alive(noted) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def answers(listen: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{listen}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
