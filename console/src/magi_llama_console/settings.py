# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of one console."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """Where a console finds things. Paths are absolute."""

    # A folder or file, as for ansible-playbook -i.
    inventory: Path
    # Everything that the console writes, 0700: console.db, jobs/<id>/, tokens.json. Never a secret in clear.
    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    # A checkout's root. Without it the playbooks are those of the installed collection (magi.llama.site).
    checkout: Path | None = None
    # The folder of ansible-playbook and ansible-inventory.
    ansible_bin: Path = Path(sys.executable).parent
    # Names and roles of tokens with their sha256; by default tokens.json in the data folder.
    tokens: Path | None = None
    # Read by Ansible, never by the console.
    vault_password_file: Path | None = None
    private_key_file: Path | None = None
    # redis://…, rediss://… or unix://…, without a password: events, sessions, used keys of requests and cached status
    # are kept there instead of in console.db, for several consoles.
    redis: str = ""
    # A file whose first line is the password for it.
    redis_password_file: Path | None = None
    # Names of environment variables that jobs are given besides those of jobs/runner.py.
    pass_environment: tuple[str, ...] = ()
    # A template unit of systemd for jobs, such as magi-llama-console-job@.service; without it they are sessions.
    job_unit: str = ""
    # Jobs on different hosts that run side by side; each is an ansible-playbook.
    jobs_at_once: int = 8
    # Jobs that have ended are kept with their events and files up to this number.
    jobs_kept: int = 500
    # Whether it looks at the servers between runs: their /health, the gateways, and status jobs of its own.
    is_watching: bool = True
    # The certificate (with its chain) and its key, in PEM, for https.
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    # Behind a proxy on this host that ends TLS: it says for whom a request is.
    is_behind_proxy: bool = False

    @property
    def is_https(self) -> bool:
        """Whether browsers reach the console by https: the cookie of a session is then marked Secure."""
        return self.is_behind_proxy or self.tls_certificate is not None

    @property
    def database(self) -> Path:
        return self.data / "console.db"

    @property
    def jobs(self) -> Path:
        return self.data / "jobs"

    @property
    def token_file(self) -> Path:
        return self.tokens or self.data / "tokens.json"
