# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An isolated host for a test: real servers of tiny real models under supervisor on this machine, in one folder."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from ansible_collections.magi.llama.plugins.module_utils._core.processes import Process, all_processes
from support import checkout, reaper
from support.runs import CHECKOUT

PROJECT = Path(__file__).parents[2]
BINARIES = Path(os.environ.get("MAGI_LLAMA_BIN_DIR", PROJECT / ".cache/bin"))
MODELS = PROJECT / ".cache/models"
# Names all servers for start, stop and restart.
ALL = ("-e", "servers=all")
PARAMETERS = {"ctx_size": 1024, "parallel": 1, "threads": 1}

PROFILES: dict[str, dict[str, Any]] = {
    "pair": {"enabled_models": [{"tier": "Q4"}, {"tier": "Q3"}], "parameters": PARAMETERS},
    # Compared with pair, one server is removed, one added, and one restarted.
    "other": {
        "enabled_models": [
            {"model": "tiny-llama-q3_k_m", "parameters": {"ctx_size": 2048}},
            "tiny-llama-q2_k",
        ],
        "parameters": PARAMETERS,
    },
}


@dataclass(frozen=True)
class Outcome:
    """The exit code of a run, and its output."""

    code: int
    output: str

    def expect(self, *texts: str) -> None:
        """Fail if the output lacks one of these; Ansible wraps lines, also after dashes."""
        seen = "".join(self.output.split())
        missing = [text for text in texts if "".join(text.split()) not in seen]
        assert not missing, f"missing: {missing} in:\n{self.output}"

    @property
    def changed(self) -> int:
        return sum(int(number) for number in re.findall(r"\bchanged=(\d+)", self.output))


_claimed: list[BinaryIO] = []  # open files, locked while this process runs


def free_ports(count: int) -> int:
    """The first of `count` (at most 10) consecutive ports that have no listener and no claim of another process."""
    assert count <= checkout.BED_PORTS
    folder = PROJECT / ".cache/ports"
    folder.mkdir(parents=True, exist_ok=True)
    for first in checkout.ports("beds")[:: checkout.BED_PORTS]:
        claim = open(folder / str(first), "wb")  # noqa: SIM115 - the claim is the open file
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        _claimed.append(claim)
        return first
    raise RuntimeError("no free ports")


class Bed:
    """A state directory, models and an inventory in one folder."""

    def __init__(self, root: Path) -> None:
        reaper.watch(root)
        self.root = root
        self.state = root / "s"
        self.models = root / "models"
        self.inventory = root / "inventory"
        self.registry = self.state / "registry.json"
        self.port = free_ports(6)
        # A run that takes longer fails.
        self.run_seconds = 120
        self.models.mkdir(parents=True)
        for kind in ("Q2_K", "Q3_K_M", "Q4_K_M"):
            shutil.copy(MODELS / f"tiny-llama-{kind}.gguf", self.models)
        self.variables: dict[str, Any] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "profile": "pair",
            "registry_scan_paths": [str(self.models)],
            "registry_path": str(self.registry),
            "runtime_install_method": "existing",
            "runtime_binary_path": str(BINARIES / "llama-server"),
            "runtime_cache_path": str(root / "runtime.json"),
            "servers_state_dir": str(self.state),
            "servers_service_manager": "supervisor",
            "servers_supervisord_path": str(Path(sys.executable).parent / "supervisord"),
            "servers_user": subprocess.check_output(["id", "-un"], text=True).strip(),
            "servers_allow_root": True,
            "servers_port_range_start": self.port,
            "servers_port_range_end": self.port + 5,
            "servers_keep_runtime": True,
            "servers_lock_wait": 0,
            "servers_stop_timeout": 3,
        }
        (self.inventory / "profiles").mkdir(parents=True)
        for name, content in PROFILES.items():
            (self.inventory / "profiles" / f"{name}.yml").write_text(json.dumps(content))
        self.write_inventory()

    def write_inventory(self) -> None:
        text = yaml.safe_dump({"all": {"hosts": {"bed": self.variables}}})
        (self.inventory / "hosts.yml").write_text(text)

    def command(self, playbook: str, *arguments: str) -> list[str]:
        name = f"{PROJECT}/playbooks/{playbook}.yml"
        program = str(Path(sys.executable).parent / "ansible-playbook")
        return [program, "-i", str(self.inventory), name, *arguments]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {
            **os.environ,
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            **CHECKOUT,
            "ANSIBLE_NOCOLOR": "1",
            **(more or {}),
        }

    def start(self, playbook: str, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a run in its own session, so that it can be killed together with its child processes."""
        return subprocess.Popen(
            self.command(playbook, *arguments),
            cwd=PROJECT,
            env=self.environment(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, playbook: str, *arguments: str, env: Mapping[str, str] | None = None, code: int = 0) -> Outcome:
        """Run a playbook to its end; fail if its exit code is not `code`."""
        process = self.start(playbook, *arguments, env=env)
        output, _ = process.communicate(timeout=self.run_seconds)
        outcome = Outcome(process.returncode, output)
        assert (outcome.code == 0) == (code == 0), outcome.output
        return outcome

    def module(self, name: str, /, *, env: Mapping[str, str] | None = None, **arguments: Any) -> dict[str, Any]:
        """The result of a module on the host, called as Ansible calls it."""
        done = subprocess.run(
            [sys.executable, "-m", f"ansible_collections.magi.llama.plugins.modules.{name}"],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            env={**os.environ, "PYTHONPATH": str(PROJECT / "collections"), **(env or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.strip(), done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return answer

    def status(self) -> dict[str, dict[str, Any]]:
        """The status of every server by name."""
        answer = self.module("server_info", state_dir=str(self.state))
        return {server["name"]: server for server in answer["status"]["servers"]}

    def processes(self) -> dict[str, Process]:
        return {process.name: process for process in all_processes(str(self.state))}

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self.processes().items()}

    def supervisord(self) -> int:
        return int((self.state / "supervisor/supervisord.pid").read_text())

    def wait_ready(self, count: int = 2, seconds: float = 20.0) -> dict[str, dict[str, Any]]:
        """Wait until `count` servers are ready; returns the status."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status()
            if sum(server["is_ready"] for server in status.values()) == count:
                return status
            assert time.monotonic() < deadline, status
            time.sleep(0.2)

    def remove(self) -> None:
        """Stop all processes, in any state that a test has left them in."""
        pids = [process.pid for process in all_processes(str(self.state))]
        daemon = self.state / "supervisor/supervisord.pid"
        if daemon.exists() and Path(f"/proc/{daemon.read_text().strip()}").exists():
            pids.insert(0, int(daemon.read_text()))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
