# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs that are real runs of the collection's playbooks, with real servers of tiny real models on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from support import reaper
from support.bed import Bed
from support.console import RunningConsole
from support.schemas import errors

SECRET_OF_VAULT = "vaulted-4f2c9e71"
SECRET_OF_ENVIRONMENT = "environment-8b1d03aa"
SECRET_OF_VAULT_FILE = "vault-password-77e0c5"
SECRET_OF_KEY_FILE = "private-key-19ab44"


@pytest.fixture
def bed() -> Iterator[Bed]:
    # A short path, because a socket is in it.
    with reaper.temporary_folder("magi-console-") as folder:
        bed = Bed(folder / "bed")
        try:
            yield bed
        finally:
            bed.remove()


@pytest.fixture
def console(bed: Bed) -> Iterator[RunningConsole]:
    """A console of the bed's inventory, which has a vaulted variable."""
    vault, key = bed.root / "vault-password", bed.root / "key"
    vault.write_text(f"{SECRET_OF_VAULT_FILE}\n")
    key.write_text(f"{SECRET_OF_KEY_FILE}\n")
    group_vars = bed.inventory / "group_vars"
    group_vars.mkdir()
    secret = group_vars / "all.yml"
    secret.write_text(f"verify_api_key: {SECRET_OF_VAULT}\n")
    program = Path(sys.executable).with_name("ansible-vault")
    subprocess.run([program, "encrypt", "--vault-password-file", vault, secret], check=True, capture_output=True)
    arguments = ("--no-watch", "--vault-password-file", str(vault), "--private-key-file", str(key))
    # The home is the data folder, as where a role has made the user.
    environment = {"CLOUD_TOKEN": SECRET_OF_ENVIRONMENT, "HOME": str(bed.root / "console")}
    with RunningConsole(bed.inventory, bed.root / "console", arguments=arguments, environment=environment) as running:
        yield running


def check_complete(events: list[dict[str, Any]]) -> None:
    """The events of a run: each once, in order, as in their schema, from run_started to run_ended."""
    exact = [{key: value for key, value in event.items() if key != "sequence"} for event in events]
    assert [errors("event", event) for event in exact if errors("event", event)] == []
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert (events[0]["type"], events[-1]["type"]) == ("run_started", "run_ended")


@pytest.mark.slow
def test_console_killed_in_a_run_loses_nothing(bed: Bed, console: RunningConsole) -> None:
    job = console.submit("site", profile="pair")["id"]
    while "plan" not in {event["type"] for event in console.events_so_far(job)}:
        time.sleep(0.05)
    console.stop(signal.SIGKILL)
    while not (console.data / "jobs" / job / "rc").exists():
        time.sleep(0.05)
    console.start()
    ended = console.wait(job)
    assert (ended["state"], ended["rc"]) == ("finished", 0), console.read.get(f"/api/v1/jobs/{job}/output").text
    assert ended["result"]["hosts"]["bed"]["ready_servers"] == 2
    events = console.events(job)
    check_complete(events)
    assert {event["run"] for event in events} == {job}
    assert sum(event["type"] == "server_ready" for event in events) == 2
    # On disk as often as in the store.
    lines = (console.data / "jobs" / job / "events.jsonl").read_text().splitlines()
    assert len(lines) == len(events)
    check_no_secret(console.data)


def check_no_secret(folder: Path) -> None:
    secrets = (SECRET_OF_VAULT, SECRET_OF_ENVIRONMENT, SECRET_OF_VAULT_FILE, SECRET_OF_KEY_FILE)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 8
    found = {str(path) for path in files for secret in secrets if secret.encode() in path.read_bytes()}
    assert found == set()


@pytest.mark.slow
def test_cancelled_run_frees_its_host_for_the_next_one(bed: Bed, console: RunningConsole) -> None:
    job = console.submit("site", profile="pair")["id"]
    while "plan" not in {event["type"] for event in console.events_so_far(job)}:
        time.sleep(0.05)
    following = console.submit("site", profile="pair")
    assert following["waits_for"] == {"host": "bed", "job": job}
    console.operate.post(f"/api/v1/jobs/{job}/cancel")
    cancelled = console.wait(job)
    # INT ends it, and TERM 20 s later where Ansible has lost that.
    assert (cancelled["state"], cancelled["result"]) == ("cancelled", None) and cancelled["rc"] in (99, 143)
    ended = console.wait(following["id"])
    assert (ended["state"], ended["result"]["hosts"]["bed"]["ready_servers"]) == ("finished", 2)
    # It did not wait for the lock that the cancelled run has left.
    assert "lock_waited" not in {event["type"] for event in console.events(following["id"])}
    assert seconds_between(cancelled["ended_at"], ended["started_at"]) < 5
    check_no_secret(console.data)
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and job in command_line(pid)]


def seconds_between(first: str, second: str) -> float:
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


def command_line(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
