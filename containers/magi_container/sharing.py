# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What magi needs to reach the gateway's container by SSH: keys in a volume of both, made by the gateway."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .files import write
from .settings import SSH_PORT, USER


def make_keys(folder: Path) -> None:
    """Make the host key and the client's key, unless they are there."""
    for name in ("host_key", "client_key"):
        path = folder / name
        if not path.exists() or not path.with_suffix(".pub").exists():
            path.unlink(missing_ok=True)
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        os.chmod(path, 0o600)
    write(folder / "authorized_keys", f"restrict {(folder / 'client_key.pub').read_text()}", 0o600)
    kind, key, *_ = (folder / "host_key.pub").read_text().split()
    # Last: with it the gateway is known.
    write(folder / "known_hosts", f"gateway {kind} {key}\n")


def daemon_configuration(folder: Path, address: str = "", port: int = SSH_PORT, user: str = USER) -> str:
    """The configuration of sshd: commands of one user, by key, and nothing else, at one address or all ("")."""
    listen = f"ListenAddress {address}\n" if address else ""
    return (
        f"Port {port}\n{listen}HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"AllowUsers {user}\nAuthenticationMethods publickey\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPidFile none\nDisableForwarding yes\n"
        "PermitTTY no\nPermitUserRC no\nUseDNS no\nMaxStartups 20\nLogLevel ERROR\nSubsystem sftp internal-sftp\n"
    )
