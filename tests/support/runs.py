# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs playbooks as a user does, without this checkout's environment, and parses their output."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import reaper
from .pythons import ROOT, search_path

BIN = Path(sys.executable).parent
# A run of this checkout. The callbacks there that need not be enabled keep the payloads of modules across runs.
CHECKOUT = {
    "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
    "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests/support/callbacks"),
}
# Variables that may have been set for other runs.
NOT_PASSED_ON = re.compile(r"(ANSIBLE|MAGI|MODEL|LLAMA)_|REGISTRY_PATH$|VIRTUAL_ENV$|PYTHONPATH$")
# Ansible's warning about the Python that it chose on a host.
ABOUT_PYTHON = "using the discovered Python interpreter"
# What a run says that starts servers under supervisor.
AFTER_REBOOT = (
    "supervisor does not start the servers after a reboot of the host: run {start} -e servers=all then. Until then "
    "{status} shows them as stopped, and fails with -e fail_on=degraded."
)


@dataclass(frozen=True)
class Run:
    """The result of a run of ansible-playbook: the recap's numbers by host, the warnings, the output.

    Each warning is there once: some versions of ansible-core print those of modules themselves, after our report.
    """

    recap: dict[str, dict[str, int]]
    warnings: list[str]
    output: str

    def changed(self) -> int:
        return sum(numbers["changed"] for numbers in self.recap.values())


def execute(command: Sequence[str | Path], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program with its own home and without our settings, except those that are given."""
    kept = {name: value for name, value in os.environ.items() if not NOT_PASSED_ON.match(name)}
    kept |= {"HOME": str(cwd), "PATH": search_path(), "NO_COLOR": "1", **environment}
    return subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=300, check=False)


def play(arguments: Sequence[str | Path], cwd: Path, bin_dir: Path = BIN, **environment: str) -> Run:
    """Run ansible-playbook to its end; fail if it fails."""
    done = execute([bin_dir / "ansible-playbook", *arguments], cwd, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^(\S+)\s+: (ok=.*)$", done.stdout, re.MULTILINE)
    recap = {host: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", row)} for host, row in rows}
    assert recap, done.stdout + done.stderr
    reported = re.findall(r"^(?:\S+ \| )? +warning  (.+)$", done.stdout, re.MULTILINE)
    printed = [line.removeprefix("[WARNING]: ") for line in done.stderr.splitlines() if line]
    warnings = dict.fromkeys(text for text in [*reported, *printed] if ABOUT_PYTHON not in text)
    return Run(recap, list(warnings), done.stdout)


def host_variables(folder: Path, first_port: int, last_port: int) -> dict[str, object]:
    """Variables of a host on this machine that keep all files of a run in one folder."""
    reaper.watch(folder)
    return {
        "registry_scan_paths": [str(ROOT / ".cache/models")],
        "registry_path": f"{folder}/state/registry.json",
        "runtime_install_method": "existing",
        "runtime_binary_path": str(server_path()),
        "runtime_prefix": f"{folder}/runtime",
        "runtime_cache_path": f"{folder}/runtime.json",
        "servers_state_dir": f"{folder}/state",
        "servers_service_manager": "supervisor",
        "servers_supervisord_path": str(BIN / "supervisord"),
        "servers_user": subprocess.check_output(["id", "-un"], text=True).strip(),
        "servers_allow_root": True,
        "servers_port_range_start": first_port,
        "servers_port_range_end": last_port,
    }


def write_inventory(path: Path, hosts: dict[str, dict[str, object]]) -> None:
    """An inventory of hosts that are all this machine. JSON is YAML."""
    local = {name: {"ansible_connection": "local", **variables} for name, variables in hosts.items()}
    path.write_text(json.dumps({"all": {"hosts": local}}), encoding="utf-8")


def server_path() -> Path:
    return Path(os.environ.get("MAGI_LLAMA_BIN_DIR", ROOT / ".cache/bin"), "llama-server")


def no_registry(folder: Path) -> str:
    """The warning of a first scan."""
    return f"There is no registry at {folder}/state/registry.json yet: every file is read."


def after_reboot(by_name: bool = False) -> str:
    """The warning about reboots under supervisor; by_name in a run of an installed collection."""
    call = "magi.llama.{}" if by_name else "{}.yml"
    return AFTER_REBOOT.format(start=call.format("start"), status=call.format("status"))


def first_start(folder: Path, by_name: bool = False) -> list[str]:
    """The warnings of a first run of site.yml, under supervisor."""
    return [no_registry(folder), after_reboot(by_name)]
