# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The gateway's files on its host: documents, the configuration in use, and the next one next to it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pwd
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._core.commands import ids_of, run_command
from .._core.files import make_folders, write_atomic
from .._core.ownership import MANIFEST, MARK, open_trusted, require_own_folder, require_trusted
from .._launch.config_files import current_text
from .fleet import FLEET, GatewayError
from .server_keys import HostKeys, read_host_keys, written_keys
from .words import FOLDER

OLDEST_VERSION = (2, 6)
LOCK_SECONDS = 60.0
# For how long a host that was removed is known as changed: a run that has listed it before must not bring it back.
REMOVED_SECONDS = 3600.0
MAX_CERTIFICATE_BYTES = 1024 * 1024
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
    def mark(self) -> str:
        return os.path.join(self.state_dir, MANIFEST)

    @property
    def lock(self) -> str:
        return os.path.join(self.state_dir, "lock")

    @property
    def applied(self) -> str:
        """The digest of the configuration that HAProxy has taken."""
        return os.path.join(self.state_dir, "applied")

    @property
    def own_certificate(self) -> str:
        """The certificate that the gateway has made for itself, with its key."""
        return os.path.join(self.state_dir, "own-certificate.pem")

    @property
    def certificate(self) -> str:
        """The same without the key, for clients."""
        return os.path.join(self.state_dir, "certificate.pem")

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
        # Not in the folder of the process, whose user could make root write elsewhere.
        return os.path.join(self.state_dir, "servers.state")

    def all(self) -> list[str]:
        """Everything that the gateway has in its state directory, besides the service manager's files."""
        folders = [os.path.join(self.state_dir, name) for name in ("config.a", "config.b")]
        documents = [self.fleet, self.gateway, self.keys, self.applied, self.states, self.lock]
        documents += [self.own_certificate, self.certificate]
        # The mark is last: an interrupted removal can be repeated.
        return [*documents, self.config, self.run, *folders, self.mark]

    def environment(self, config: str) -> dict[str, str]:
        """The variables that the configuration in this folder names."""
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", FOLDER: config, f"{FOLDER}_RUN": self.run}


@dataclass
class Change:
    """What was done, or would be: how it was applied, and what is to be shown."""

    how: str = "nothing"  # or "maps", "servers", "reload", "start"
    files: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)


def haproxy_version(program: str, user: str | None) -> tuple[int, int]:
    """The version of a HAProxy. Raises GatewayError where it has none, or is too old."""
    require_trusted(program)
    try:
        done = run_command([program, "-v"], {"PATH": "/usr/sbin:/usr/bin"}, 10, user=ids_of(user))
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


def read_changed(places: Places) -> dict[str, float]:
    """When each host's part was changed by a run that had locked it, in seconds since the epoch."""
    return dict(FLEET.load(read_json(places.fleet) or FLEET.stamp({"hosts": {}})).get("changed", {}))


def read_keys(places: Places) -> dict[str, HostKeys]:
    """The API keys that each host's servers take."""
    return read_host_keys(read_json(places.keys) or {})


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
        header = f"{name} of the gateway"
        texts = [_to_show(name, files.get(name, "")) for files in (before, after)]
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


def _to_show(name: str, text: str) -> str:
    """A file's text without secrets."""
    if name == "certificate.pem":
        return f"certificate and key, {len(text)} bytes\n" if text else ""
    if name in ("secrets.map", "keys.map"):
        return "".join(f"{line.partition(' ')[0][:12]} …\n" for line in text.splitlines())
    return re.sub(r"(Authorization 'Bearer )[^\n]*", r"\1…'", text)


def check_config(program: str, places: Places, config: str, user: str | None) -> None:
    """Raise GatewayError if HAProxy refuses the configuration in this folder, as the user that it will run as."""
    command = [program, "-c", "-f", f"{config}/haproxy.cfg"]
    done = run_command(command, places.environment(config), 60, user=ids_of(user))
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


def write_documents(
    places: Places, hosts: Mapping[str, Any], keys: Mapping[str, HostKeys], changed: Mapping[str, float]
) -> None:
    oldest = time.time() - REMOVED_SECONDS
    kept = {host: seconds for host, seconds in sorted(changed.items()) if host in hosts or seconds > oldest}
    fleet = FLEET.stamp({"hosts": hosts, "changed": kept})
    write_atomic(places.fleet, (json.dumps(fleet, indent=1) + "\n").encode(), 0o640)
    write_atomic(places.keys, json.dumps(written_keys(keys)).encode(), 0o600)


def prepare(places: Places, user: str | None, *, dry_run: bool = False) -> int | None:
    """Make the folders of the state and of the running process; returns the gateway's group, None without root or user.

    Raises OwnershipError for a folder that was not made by this collection.
    """
    require_own_folder(places.state_dir, "gateway_state_dir")
    if dry_run:
        return None
    make_folders(places.state_dir)
    if not os.path.exists(places.mark):
        write_atomic(places.mark, (json.dumps(MARK) + "\n").encode(), 0o644)
    if os.geteuid() != 0 or user is None:
        os.makedirs(places.run, mode=0o750, exist_ok=True)
        return None
    entry = pwd.getpwnam(user)
    if not os.path.isdir(places.run):
        os.mkdir(places.run, 0o750)
    os.chown(places.run, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
    return entry.pw_gid


def require_launch_config(places: Places, path: str) -> None:
    """Raise GatewayError if the launch config at path is there and is not that of this state directory's gateway."""
    if os.path.lexists(path) and f"{places.config}/haproxy.cfg" not in current_text(path):
        raise GatewayError(
            f"{path} exists, and does not run the gateway of {places.state_dir}. Nothing was changed. A host has one "
            "gateway: remove the other one, or rename the server that is called so."
        )


@contextlib.contextmanager
def locked(places: Places, *, dry_run: bool) -> Iterator[None]:
    """Hold the gateway's lock: two runs over different hosts would each write what it knows. Raises GatewayError."""
    if dry_run or not os.path.isdir(places.state_dir):
        yield
        return
    deadline = time.monotonic() + LOCK_SECONDS
    descriptor = os.open(places.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise GatewayError(f"Another run has been changing this gateway for {LOCK_SECONDS:g} s.") from None
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def read_certificate(path: str, used: str | None, warnings: list[str]) -> str:
    """The certificate and its key. The one in use, with a warning, where the file cannot be read. Raises GatewayError.

    It is copied, as the gateway's user need not be able to read it where it is.
    """
    try:
        with open(path, encoding="ascii") as stream:
            return stream.read(MAX_CERTIFICATE_BYTES)
    except (OSError, ValueError) as error:
        why = (
            f"gateway_tls_certificate {path} cannot be read on the gateway: {getattr(error, 'strerror', None) or error}"
        )
        if not used:
            raise GatewayError(f"{why}. Write certificate chain and private key to it, in PEM.") from error
        warnings.append(f"{why}; the certificate in use is kept.")
        return used


def is_applied(places: Places, files: Mapping[str, str]) -> bool:
    """Whether HAProxy has taken this configuration: a run may have ended between writing and applying it."""
    with contextlib.suppress(OSError), open(places.applied, encoding="ascii") as stream:
        return stream.read() == _digest(files)
    return False


def note_applied(places: Places, files: Mapping[str, str]) -> None:
    write_atomic(places.applied, _digest(files).encode(), 0o644)


def _digest(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()
