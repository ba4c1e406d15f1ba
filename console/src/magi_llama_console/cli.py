# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""magi-llama-console: run the console in the foreground, or add a token."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from .app import create_app
from .settings import Settings
from .tokens import ROLES, TokenFileError, add_token


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 2 for an argument that cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return add(arguments[1:]) if arguments[:1] == ["token"] else serve(arguments)


def serve(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="magi-llama-console",
        description="An API and a page for the servers of an inventory.",
        epilog="magi-llama-console token --help: add a token for it.",
    )
    parser.add_argument("--inventory", type=Path, required=True, help="as for ansible-playbook -i")
    parser.add_argument("--data", type=Path, required=True, help="folder for jobs, events and tokens (0700)")
    parser.add_argument("--listen", default="127.0.0.1:8000", help="address and port (default: %(default)s)")
    parser.add_argument(
        "--checkout", type=Path, help="checkout with the playbooks, instead of the installed collection"
    )
    parser.add_argument("--tokens", type=Path, help="file of tokens (default: tokens.json in the data folder)")
    parser.add_argument("--vault-password-file", type=Path, help="given to Ansible")
    parser.add_argument("--private-key-file", type=Path, help="SSH key, given to Ansible")
    parser.add_argument("--redis", default="", help="redis:// or rediss:// URL that several consoles share")
    parser.add_argument("--https", action="store_true", help="browsers reach it by https: mark the cookie as Secure")
    parser.add_argument(
        "--pass-environment", action="append", default=[], metavar="NAME", help="variable that jobs get too; repeatable"
    )
    parser.add_argument("--ansible-bin", type=Path, help="folder of ansible-playbook (default: that of this Python)")
    parser.add_argument("--job-unit", default="", help="template unit of systemd that runs a job, by its id")
    parser.add_argument("--no-watch", action="store_true", help="do not look at the servers between runs")
    options = parser.parse_args(arguments)
    host, separator, port = options.listen.rpartition(":")
    if not separator or not port.isdigit() or not host:
        parser.error(f"--listen {options.listen}: use ADDRESS:PORT, for example 127.0.0.1:8000")
    if not options.inventory.exists():
        parser.error(f"--inventory {options.inventory}: does not exist")
    settings = Settings(
        inventory=options.inventory.resolve(),
        data=options.data.resolve(),
        host=host.strip("[]"),
        port=int(port),
        checkout=resolved(options.checkout),
        # Not resolved: the folder of a virtual environment may be reached by a link.
        ansible_bin=(options.ansible_bin or Path(sys.executable).parent).absolute(),
        tokens=resolved(options.tokens),
        vault_password_file=resolved(options.vault_password_file),
        private_key_file=resolved(options.private_key_file),
        redis=options.redis,
        is_https=options.https,
        pass_environment=tuple(options.pass_environment),
        job_unit=options.job_unit,
        is_watching=not options.no_watch,
    )
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        server_header=False,
        access_log=False,
        log_level="warning",
        # Streams of events never end by themselves.
        timeout_graceful_shutdown=2,
    )
    return 0


def resolved(path: Path | None) -> Path | None:
    return None if path is None else path.resolve()


def add(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="magi-llama-console token", description="Add a token, or replace that of the same name, and print it."
    )
    parser.add_argument("name", help="for whom it is; shown in the audit log")
    parser.add_argument("--role", choices=ROLES, default="read", help="default: %(default)s")
    parser.add_argument("--tokens", type=Path, required=True, help="for example tokens.json in the data folder")
    options = parser.parse_args(arguments)
    try:
        options.tokens.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        print(add_token(options.tokens, options.name, options.role))
    except (ValueError, TokenFileError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
