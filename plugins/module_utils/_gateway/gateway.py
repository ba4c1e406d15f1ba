# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The gateway on its host: its files, the process that uses them, and the change from one configuration to the next."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._core.commands import run_command
from .._core.files import make_folders, write_atomic
from .._core.ownership import open_trusted
from .._services.base import ServiceDriver
from .admin_socket import AdminSocket, AdminSocketError, parse_map
from .config import FOLDER
from .fleet import FLEET, GatewayError
from .members import change_servers

# The name of its unit or program.
SERVICE = "gateway"
OLDEST_VERSION = (2, 6)
START_SECONDS = 20.0
_VERSION = re.compile(r"version (\d+)\.(\d+)(\S*)")


@dataclass(frozen=True)
class Places:
    """Where a gateway's files are: all of them in its state directory."""

    state_dir: str

    @property
    def fleet(self) -> str:
        return os.path.join(self.state_dir, "fleet.json")

    @property
    def gateway(self) -> str:
        """What is kept of settings and clients."""
        return os.path.join(self.state_dir, "gateway.json")

    @property
    def keys(self) -> str:
        return os.path.join(self.state_dir, "keys.json")

    @property
    def config(self) -> str:
        """A link to the folder of the configuration in use."""
        return os.path.join(self.state_dir, "config")

    @property
    def run(self) -> str:
        return os.path.join(self.state_dir, "run")

    @property
    def socket(self) -> str:
        return os.path.join(self.run, "admin.sock")

    @property
    def states(self) -> str:
        """The states of servers, from one process to the next."""
        return os.path.join(self.run, "servers.state")

    def all(self) -> list[str]:
        """Everything that the gateway has in its state directory, besides the service manager's files."""
        folders = [os.path.join(self.state_dir, name) for name in ("config.a", "config.b")]
        return [self.fleet, self.gateway, self.keys, self.config, self.run, *folders]

    def environment(self, config: str) -> dict[str, str]:
        """The variables that the configuration in this folder names."""
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", FOLDER: config, f"{FOLDER}_RUN": self.run}


@dataclass
class Change:
    """What was done, or would be: how it was applied, and what is to be shown."""

    how: str = "nothing"  # or "maps", "servers", "reload", "start"
    files: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)


def haproxy_version(program: str) -> tuple[int, int]:
    """The version of a HAProxy. Raises GatewayError where it has none, or is too old."""
    try:
        done = run_command([program, "-v"], {"PATH": "/usr/sbin:/usr/bin"}, 10)
    except OSError as error:
        raise GatewayError(f"{program} cannot be started: {error.strerror}.") from error
    found = _VERSION.search(done.stdout)
    if not found:
        raise GatewayError(f"{program} -v names no version: {(done.stdout + done.stderr).strip():.200}")
    version = (int(found[1]), int(found[2]))
    if version < OLDEST_VERSION:
        raise GatewayError(
            f"{program} is HAProxy {found[1]}.{found[2]}{found[3]}, and the gateway needs 2.6 or newer (Debian 12, "
            "Ubuntu 24.04): take another host for it, or a newer package."
        )
    return version


def read_fleet(places: Places) -> dict[str, Any]:
    """The hosts that the gateway knows, by name; empty for a new gateway. Raises GatewayError for a damaged file."""
    return dict(FLEET.load(read_json(places.fleet) or FLEET.stamp({"hosts": {}}))["hosts"])


def read_keys(places: Places) -> dict[str, str]:
    """The API key of each host's servers."""
    return {str(host): str(key) for host, key in (read_json(places.keys) or {}).items()}


def read_json(path: str) -> Any:
    """A file of the gateway's; None where it is missing. Raises GatewayError where it is damaged."""
    try:
        with open_trusted(path) as stream:
            return json.load(stream)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise GatewayError(f"{path} cannot be read: {error}. Remove it and run gateway.yml over all hosts.") from error


def merged(known: Mapping[str, Any], changes: Mapping[str, Any], inventory: Sequence[str] | None) -> dict[str, Any]:
    """What is known of each host after a run: null removes one, and hosts that the inventory lacks are removed."""
    found = {**known, **changes}
    return {
        host: entry
        for host, entry in sorted(found.items())
        if entry is not None and (inventory is None or host in inventory)
    }


def current_files(places: Places) -> dict[str, str]:
    """The configuration in use, by file name."""
    found = {}
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(places.config)):
            with open(os.path.join(places.config, name), encoding="utf-8") as stream:
                found[name] = stream.read()
    return found


def compare(before: Mapping[str, str], after: Mapping[str, str]) -> Change:
    """How to get from one configuration to the next; the diff has no keys."""
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    change = Change(files=changed)
    for name in changed:
        shown = (before.get(name, ""), after.get(name, ""))
        if name in ("secrets.map", "keys.map"):
            shown = tuple(_without_values(text) for text in shown)  # type: ignore[assignment]
        header = f"{name} of the gateway"
        texts = [_without_keys(text) for text in shown]
        change.diff.append({"before": texts[0], "after": texts[1], "before_header": header, "after_header": header})
    if not before:
        change.how = "start"
    elif any(not name.endswith((".map", ".cfg")) for name in changed) or _frame(before) != _frame(after):
        change.how = "reload"
    elif "haproxy.cfg" in changed:
        change.how = "servers"
    elif changed:
        change.how = "maps"
    return change


def _frame(files: Mapping[str, str]) -> list[str]:
    """The configuration without the servers, which change without a reload."""
    return [line for line in files.get("haproxy.cfg", "").splitlines() if not line.startswith("  server ")]


def _without_values(text: str) -> str:
    return "".join(f"{line.partition(' ')[0][:12]} …\n" for line in text.splitlines())


def _without_keys(text: str) -> str:
    return re.sub(r"(Authorization 'Bearer )[^%\n]*'", r"\1…'", text)


def check_config(program: str, places: Places, config: str) -> None:
    """Raise GatewayError if HAProxy refuses the configuration in this folder."""
    os.makedirs(places.run, mode=0o750, exist_ok=True)
    done = run_command([program, "-c", "-f", f"{config}/haproxy.cfg"], places.environment(config), 60)
    if done.code != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "ALERT" in line]
        raise GatewayError(f"HAProxy refuses the configuration; the one in use is unchanged: {' '.join(lines)[:1000]}")


def stage(places: Places, files: Mapping[str, str], group: int | None) -> str:
    """Write the configuration next to the one in use; returns its folder. Readable by the gateway's group only."""
    used = os.path.basename(os.path.realpath(places.config)) if os.path.islink(places.config) else ""
    folder = os.path.join(places.state_dir, "config.b" if used == "config.a" else "config.a")
    shutil.rmtree(folder, ignore_errors=True)
    owner = None if group is None else (os.geteuid(), group)
    os.makedirs(folder, mode=0o750)
    if owner:
        os.chown(folder, *owner)
    for name, text in files.items():
        write_atomic(os.path.join(folder, name), text.encode(), 0o640, owner)
    return folder


def activate(places: Places, folder: str) -> None:
    """Make this folder the one in use."""
    temporary = f"{places.config}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    os.symlink(os.path.basename(folder), temporary)
    os.replace(temporary, places.config)


def write_documents(places: Places, hosts: Mapping[str, Any], keys: Mapping[str, str]) -> None:
    write_atomic(places.fleet, (json.dumps(FLEET.stamp({"hosts": hosts}), indent=1) + "\n").encode(), 0o640)
    write_atomic(places.keys, json.dumps(dict(keys)).encode(), 0o600)


def refuse_foreign(places: Places) -> None:
    """Raise GatewayError if the state directory has files with the names of a gateway's that are not a gateway's.

    The first file that a run writes is fleet.json.
    """
    found = [path for path in places.all() if os.path.lexists(path)]
    if found and not os.path.exists(places.fleet):
        raise GatewayError(
            f"{found[0]} exists, and {places.fleet} does not: it is not a gateway's. Nothing was changed. Set "
            "gateway_state_dir to a folder of its own."
        )


def prepare_folders(places: Places, user: str | None) -> int | None:
    """Create the folders of the state and of the running process; returns the gateway's group, None without root."""
    refuse_foreign(places)
    make_folders(places.state_dir)
    if not os.path.exists(places.fleet):
        write_documents(places, {}, {})
    os.makedirs(places.run, mode=0o750, exist_ok=True)
    if os.geteuid() != 0 or user is None:
        return None
    entry = pwd.getpwnam(user)
    os.chown(places.run, entry.pw_uid, entry.pw_gid)
    return entry.pw_gid


def group_of(user: str) -> str:
    """The name of a user's primary group."""
    return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name


def apply(
    driver: ServiceDriver, places: Places, change: Change, before: Mapping[str, str], after: Mapping[str, str]
) -> str:
    """Bring the running process to the configuration in use; returns how. Raises GatewayError.

    What cannot be changed while it runs is done by a reload, which lets the old process finish its requests.
    """
    status = driver.status([SERVICE])[SERVICE]
    admin = AdminSocket(places.socket)
    if status.state != "running" or status.pid is None:
        return _start(driver, places, admin)
    if change.how in ("maps", "servers"):
        try:
            _change_maps(admin, places, change.files, after)
            if change.how == "servers":
                change_servers(admin, before["haproxy.cfg"], after["haproxy.cfg"])
            return change.how
        except AdminSocketError:
            # It is done by a reload, which needs nothing of the running process.
            pass
    if change.how == "nothing":
        return "nothing"
    return _reload(status.pid, places, admin)


def _start(driver: ServiceDriver, places: Places, admin: AdminSocket) -> str:
    with contextlib.suppress(FileNotFoundError):
        # After a stop its states would be those of another time.
        os.unlink(places.states)
    driver.reload([SERVICE])
    faults = driver.start([SERVICE])
    if SERVICE not in faults and admin.wait_for_worker(None, START_SECONDS) is not None:
        return "start"
    log = " | ".join(driver.log_tail(SERVICE, 5))
    raise GatewayError(f"HAProxy did not start: {faults.get(SERVICE, '')} {log}".strip())


def _reload(pid: int, places: Places, admin: AdminSocket) -> str:
    before = admin.pid()
    if before is not None:
        admin.save_states(places.states)
    os.kill(pid, signal.SIGUSR2)
    if admin.wait_for_worker(before, START_SECONDS) is None:
        raise GatewayError(
            f"HAProxy (PID {pid}) did not take the new configuration within {START_SECONDS:g} s and continues with the "
            "old one: see its log."
        )
    with contextlib.suppress(FileNotFoundError):
        os.unlink(places.states)
    return "reload"


def _change_maps(admin: AdminSocket, places: Places, names: Sequence[str], after: Mapping[str, str]) -> None:
    for name in names:
        if name.endswith(".map"):
            admin.replace_map(f"{places.config}/{name}", parse_map(after.get(name, "")))
