# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""magi-llama-console: run the console in the foreground, or add a token."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import uvicorn

from .app import create_app
from .settings import Settings
from .store.base import StoreUnavailable
from .tokens import ROLES, TokenFileError, add_token, import_tokens

# Options that name what has to be there.
FILES = (
    *("inventory", "tls_certificate", "tls_key", "checkout"),
    *("vault_password_file", "private_key_file", "redis_password_file"),
)
# At once, of all clients.
CONNECTIONS = 512


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 2 for an argument that cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return add(arguments[1:]) if arguments[:1] == ["token"] else serve(arguments)


def serve(arguments: Sequence[str]) -> int:
    parser = make_parser()
    settings = make_settings(parser, parser.parse_args(arguments))
    if settings.redis:
        check_redis(parser, settings)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        server_header=False,
        access_log=False,
        log_level="warning",
        # Only from a proxy on this host. Without one a client could name any address as its own.
        proxy_headers=settings.is_behind_proxy,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        # More than that many connections at once are answered 503.
        limit_concurrency=CONNECTIONS,
        # Streams of events never end by themselves.
        timeout_graceful_shutdown=2,
    )
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="magi-llama-console",
        description="An API and a page for the servers of an inventory.",
        epilog="magi-llama-console token --help: add a token for it.",
    )
    add = parser.add_argument
    add("--inventory", type=Path, required=True, help="as for ansible-playbook -i")
    add("--data", type=Path, required=True, help="folder for jobs, events and tokens (0700)")
    add("--listen", default="127.0.0.1:8000", help="address and port (default: %(default)s)")
    add("--tls-certificate", type=Path, help="certificate with its chain, in PEM, for https")
    add("--tls-key", type=Path, help="its key, unless it is in the same file")
    add("--allow-plain", action="store_true", help="listen on any address without TLS, which something else protects")
    add("--behind-proxy", action="store_true", help="a proxy on this host ends TLS, and names the clients' addresses")
    add("--tokens", type=Path, help="file of tokens (default: tokens.json in the data folder)")
    add("--redis", default="", help="redis://, rediss:// or unix:// URL that several consoles share, without password")
    add("--redis-password-file", type=Path, help="file with its password (default: the credential redis_password)")
    add("--checkout", type=Path, help="checkout with the playbooks, instead of the installed collection")
    add("--ansible-bin", type=Path, help="folder of ansible-playbook (default: that of this Python)")
    add("--vault-password-file", type=Path, help="given to Ansible")
    add("--private-key-file", type=Path, help="SSH key, given to Ansible")
    add("--no-watch", action="store_true", help="do not look at the servers between runs")
    add("--pass-environment", action="append", default=[], metavar="NAME", help="variable that jobs get; repeatable")
    add("--job-unit", default="", help="template unit of systemd that runs a job, by its id")
    return parser


def make_settings(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Settings:
    """The settings of these options; ends the program where they cannot be used."""
    host, separator, port = options.listen.rpartition(":")
    host = host.strip("[]")
    if not separator or not port.isdigit() or not host:
        parser.error(f"--listen {options.listen}: use ADDRESS:PORT, for example 127.0.0.1:8000")
    for name in FILES:
        path = getattr(options, name)
        if path is not None and not path.exists():
            parser.error(f"--{name.replace('_', '-')} {path}: does not exist")
    if has_password(options.redis):
        parser.error("--redis: every user of this host sees a command line; give the password in --redis-password-file")
    if options.tls_key and not options.tls_certificate:
        parser.error("--tls-key needs --tls-certificate")
    # Behind a proxy too: anyone could reach the address past it, and name any address as the client's.
    if not (is_loopback(host) or options.tls_certificate or options.allow_plain):
        parser.error(
            f"--listen {options.listen}: tokens would be sent in clear; give --tls-certificate, or listen"
            " on 127.0.0.1 and have a proxy end TLS (--behind-proxy); where something else protects the address, such"
            " as a container's port that is published on 127.0.0.1 only, give --allow-plain"
        )
    return Settings(
        inventory=options.inventory.resolve(),
        data=options.data.resolve(),
        host=host,
        port=int(port),
        tls_certificate=resolved(options.tls_certificate),
        tls_key=resolved(options.tls_key),
        is_behind_proxy=options.behind_proxy,
        tokens=resolved(options.tokens),
        redis=options.redis,
        redis_password_file=resolved(options.redis_password_file or credential("redis_password")),
        checkout=resolved(options.checkout),
        # Not resolved: the folder of a virtual environment may be reached by a link.
        ansible_bin=(options.ansible_bin or Path(sys.executable).parent).absolute(),
        vault_password_file=resolved(options.vault_password_file),
        private_key_file=resolved(options.private_key_file),
        pass_environment=tuple(options.pass_environment),
        job_unit=options.job_unit,
        is_watching=not options.no_watch,
    )


def has_password(url: str) -> bool:
    """Whether the URL of a Redis has a password, in either place that clients know."""
    try:
        parts = urlsplit(url)
        return bool(parts.password) or "password" in parse_qs(parts.query)
    except ValueError:
        return False


def credential(name: str) -> Path | None:
    """The file of a credential that systemd gives to the unit; None without it."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(folder, name) if folder else None
    return path if path is not None and path.is_file() else None


def check_redis(parser: argparse.ArgumentParser, settings: Settings) -> None:
    """End the program where the Redis cannot be used."""
    try:
        from .store.redis import check
    except ImportError:
        parser.error("--redis needs the Python package redis: pip install 'magi-llama-console[redis]'")
    try:
        asyncio.run(check(settings.redis, settings.redis_password_file))
    except StoreUnavailable as error:
        parser.error(f"--redis {error}")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def resolved(path: Path | None) -> Path | None:
    return None if path is None else path.resolve()


def add(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["import"]:
        return import_from_input(arguments[1:])
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


def import_from_input(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="magi-llama-console token import",
        description='Read the inventory\'s tokens from standard input: [{"name", "role", "sha256"}]. Those of an'
        " earlier import that are not among them are removed.",
    )
    parser.add_argument("--tokens", type=Path, required=True, help="for example tokens.json in the data folder")
    options = parser.parse_args(arguments)
    try:
        print("changed" if import_tokens(options.tokens, json.load(sys.stdin)) else "unchanged")
    except (ValueError, AttributeError, TokenFileError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
