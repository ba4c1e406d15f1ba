# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process of one job: python -I runner.py FOLDER, in a session or unit of its own, so it outlives the console.

It reads request.json, runs the command with a clean environment, and leaves there pid (itself), output.log, rc.
SIGINT or SIGTERM cancel the job: the command gets INT, 20 s later TERM, 5 s later KILL. Standard library only, and no
import of this package, so that it starts in some hundredths of a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# What a run is given of the console's environment. Anything else may be a secret, which a run could write somewhere.
PASSED = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "XDG_RUNTIME_DIR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "SSH_AUTH_SOCK",
        "ANSIBLE_CONFIG",
        "ANSIBLE_COLLECTIONS_PATH",
        "ANSIBLE_ROLES_PATH",
        "ANSIBLE_HOME",
        "ANSIBLE_LOCAL_TEMP",
        "ANSIBLE_REMOTE_USER",
        "ANSIBLE_VAULT_PASSWORD_FILE",
        "ANSIBLE_PRIVATE_KEY_FILE",
        "ANSIBLE_FORKS",
        "ANSIBLE_SSH_ARGS",
        "ANSIBLE_HOST_KEY_CHECKING",
        "CREDENTIALS_DIRECTORY",
        "MAGI_EVENTS_PASSWORD_FILE",
        "MAGI_PROFILE",
        "MODEL_SCAN_PATH",
        "REGISTRY_PATH",
        "LLAMA_SERVER_PATH",
        "MODEL_PORT_RANGE_START",
        "MODEL_PORT_RANGE_END",
        "MODEL_MAX_STARTUP_TIME",
        "MODEL_CONCURRENT_STARTS",
    ]
)
# Each signal, and how long it is waited for its effect.
STEPS = ((signal.SIGINT, 20.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, None))
CANNOT_START = 127


def clean_environment(environment: Mapping[str, str], more: Sequence[str] = ()) -> dict[str, str]:
    """What a job is given of an environment: names that are known not to be secrets, and those in more."""
    return {
        name: value for name, value in environment.items() if name in PASSED or name in more or name.startswith("LC_")
    }


def main(folder: Path) -> int:
    # The handlers do nothing; the wake-up descriptor says that a signal has come.
    wake, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(write)
    os.umask(0o077)
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    if not claim(folder):
        return 75
    with (folder / "output.log").open("ab", buffering=0) as output:
        try:
            command = subprocess.Popen(
                request["argv"],
                cwd=request["cwd"],
                env=clean_environment(os.environ, request["pass_environment"]) | request["environment"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        except OSError as error:
            output.write(f"{request['argv'][0]} cannot be started: {error.strerror}\n".encode())
            finish(folder, CANNOT_START, is_cancelled=False)
            return CANNOT_START
    rc, is_cancelled = wait(command, wake)
    finish(folder, rc, is_cancelled=is_cancelled)
    return rc


def wait(command: subprocess.Popen[bytes], wake: int) -> tuple[int, bool]:
    """Wait for the command's end; its exit status (128 + the signal's number), and whether it was cancelled."""
    ended = os.pidfd_open(command.pid)
    steps = iter(STEPS)
    timeout: float | None = None
    is_cancelled = False
    while True:
        ready = select.select([ended] if is_cancelled else [ended, wake], [], [], timeout)[0]
        if ended in ready:
            break
        # The first signal cancels, later ones change nothing; then each step follows when its time is over.
        is_cancelled = True
        number, timeout = next(steps)
        if number == signal.SIGKILL:
            kill_tree(command.pid)
        else:
            # Ansible passes it on to its workers, which have sessions of their own. One that has just been forked would
            # take it for the whole run's if the group had it.
            command.send_signal(number)
    rc = command.wait()
    return (128 - rc if rc < 0 else rc), is_cancelled


def kill_tree(pid: int) -> None:
    """Kill a process and all below it: Ansible cannot pass this signal on to its workers."""
    below: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{name}/stat").read_text(encoding="utf-8", errors="replace")
                below.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(name))
    found = [pid]
    for one in found:
        found += below.get(one, [])
    for one in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def claim(folder: Path) -> bool:
    """Write the file pid; False where another process has done it: a job runs once."""
    return write_once(folder / "pid", identity(os.getpid()))


def identity(pid: int) -> dict[str, Any]:
    """{"pid", "started", "boot_id"}: a process that no later one can be taken for. Raises OSError if it is gone."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    fields = stat.rpartition(")")[2].split()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return {"pid": pid, "started": int(fields[19]), "boot_id": boot}


def finish(folder: Path, rc: int, *, is_cancelled: bool) -> None:
    ended = time.time()
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ended)) + f".{int(ended % 1 * 1000):03d}Z"
    write_once(folder / "rc", {"rc": rc, "cancelled": is_cancelled, "ended_at": at})


def write_once(path: Path, content: Mapping[str, Any]) -> bool:
    """Write a file that appears complete; False if there is one already."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with staged.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(staged, path)
    except FileExistsError:
        return False
    finally:
        staged.unlink()
    return True


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
