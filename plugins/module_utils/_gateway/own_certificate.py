# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""A certificate that a gateway makes for itself, with gateway_tls_certificate: auto, where there is no authority."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence

from .._core.commands import run_command
from .._core.files import write_atomic
from .._core.ownership import open_trusted
from .._core.values import ANY_ADDRESS
from .files import Places
from .fleet import GatewayError

AUTO = "auto"
DAYS = 825  # Apple's clients take no certificate that is valid for longer.
RENEWED_DAYS = 30
_DAY = 86400
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")
_COMMENT = "# Ansible managed (magi.llama): until {until}, for {names}\n"
_KNOWN = re.compile(re.escape(_COMMENT.strip()).replace(r"\{until\}", r"(\d+)").replace(r"\{names\}", r"(\S+)"))
# It signs nothing but itself, so a stolen one makes no others that clients would take.
_CONFIG = """[req]
distinguished_name = subject
x509_extensions = own
prompt = no
[subject]
CN = {common_name}
[own]
subjectAltName = {names}
basicConstraints = critical,CA:FALSE
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
"""


def own_certificate(places: Places, host: str, name: str, warnings: list[str], *, dry_run: bool) -> str:
    """The certificate with its key, in PEM; made where it is missing, ends soon or lacks a name. Raises GatewayError.

    host is what the gateway listens on, name the gateway's in the inventory. A dry run makes none, and returns nothing
    where one would be made. Without its key it is in places.certificate, for clients.
    """
    wanted = alternative_names([host, name, socket.gethostname()])
    kept = _read(places)
    why = _why_new(kept, wanted)
    if not why or dry_run:
        return "" if why else kept
    content = _make(places, [*wanted, *(one for one in _further_names(host) if one not in wanted)])
    if kept:
        warnings.append(
            f"The gateway has a new certificate, as the previous one {why}: give {places.certificate} to its clients."
        )
    write_atomic(places.own_certificate, content.encode(), 0o600)
    write_atomic(places.certificate, content.partition("-----BEGIN PRIVATE KEY")[0].encode(), 0o644)
    return content


def alternative_names(hosts: Sequence[str]) -> list[str]:
    """Names and addresses as a certificate has them; without those that none can have, and addresses of all hosts."""
    found = []
    for host in hosts:
        try:
            found.append(f"IP:{ipaddress.ip_address(host)}")
        except ValueError:
            if _NAME.fullmatch(host):
                found.append(f"DNS:{host.lower()}")
    return list(dict.fromkeys(one for one in found if one not in [f"IP:{address}" for address in ANY_ADDRESS]))


def _further_names(host: str) -> list[str]:
    """What else this host is called now. It may change, so a certificate is not renewed for it."""
    found = ["localhost", "127.0.0.1", socket.getfqdn()]
    if host in ANY_ADDRESS:
        # The address by which other hosts are reached; nothing is sent.
        for family, other in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
            try:
                with socket.socket(family, socket.SOCK_DGRAM) as probe:
                    probe.connect((other, 9))
                    found.append(probe.getsockname()[0])
            except OSError:
                continue
    return alternative_names(found)


def _read(places: Places) -> str:
    try:
        with open_trusted(places.own_certificate) as stream:
            return stream.read().decode("ascii")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise GatewayError(
            f"{places.own_certificate} cannot be read: {error}. Remove it: a new one is made."
        ) from error


def _why_new(kept: str, wanted: Sequence[str]) -> str:
    """Why a new certificate is needed; empty where it is not."""
    known = _KNOWN.match(kept)
    if not known:
        return "is missing"
    if int(known[1]) < time.time() + RENEWED_DAYS * _DAY:
        return f"ends within {RENEWED_DAYS} days"
    missing = sorted(set(wanted) - set(known[2].split(",")))
    return f"is not for {', '.join(one.partition(':')[2] for one in missing)}" if missing else ""


def _make(places: Places, names: Sequence[str]) -> str:
    openssl = shutil.which("openssl", path=_PATH)
    if not openssl:
        raise GatewayError(
            "gateway_tls_certificate is auto, and this host has no openssl that could make a certificate: install the "
            "package openssl, or name a file with certificate and key."
        )
    until = int(time.time()) + DAYS * _DAY
    with tempfile.TemporaryDirectory(prefix=".certificate-", dir=places.state_dir) as folder:
        config, key, out = (os.path.join(folder, name) for name in ("config", "key", "out"))
        # The name is at most 64 characters long there, and no client looks at it.
        common = names[0].partition(":")[2][:64]
        write_atomic(config, _CONFIG.format(common_name=common, names=",".join(names)).encode(), 0o600)
        new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key)
        command = [openssl, "req", "-x509", *new_key, "-sha256", "-days", str(DAYS), "-config", config, "-out", out]
        done = run_command(command, {"PATH": _PATH}, 60)
        if done.code != 0:
            raise GatewayError(f"openssl made no certificate for the gateway: {done.stderr.strip()[-500:]}")
        with open(out, encoding="ascii") as certificate, open(key, encoding="ascii") as secret:
            return _COMMENT.format(until=until, names=",".join(names)) + certificate.read() + secret.read()
