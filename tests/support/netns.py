# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Network namespaces with links of a given speed: hosts of a test that are limited by their links alone. Needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

from support import checkout

NETWORK = "10.213.7"
# A namespace's names of links are its own.
LINK = "eth0"


def missing() -> str:
    """Why there can be no namespaces here; empty if there can."""
    if os.geteuid() != 0:
        return "needs root"
    tools = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if tools:
        return f"needs {' and '.join(tools)} (apt-get install iproute2)"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return "" if probe.returncode == 0 else "network namespaces are not allowed here"


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def address(number: int) -> str:
    """The address of a host, from 0."""
    return f"{NETWORK}.{number + 1}"


def inside(namespace: str, *argv: str) -> list[str]:
    """A command in a namespace."""
    return ["ip", "netns", "exec", namespace, *argv]


@contextlib.contextmanager
def hosts(count: int, mbit: int) -> Iterator[list[str]]:
    """Namespaces of hosts on one switch, each with a link of so many Mbit/s in both directions."""
    prefix = f"{checkout.name()}-net"
    hub, names = f"{prefix}-hub", [f"{prefix}-{number}" for number in range(count)]
    _remove([hub, *names])
    try:
        for name in (hub, *names):
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", hub, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", hub, "link", "set", "switch", "up")
        for number, name in enumerate(names):
            port = f"port{number}"
            _run("ip", "-n", hub, "link", "add", port, "type", "veth", "peer", "name", LINK, "netns", name)
            _run("ip", "-n", hub, "link", "set", port, "master", "switch", "up")
            _run("ip", "-n", name, "address", "add", f"{address(number)}/24", "dev", LINK)
            _run("ip", "-n", name, "link", "set", LINK, "up")
            for namespace, link in ((hub, port), (name, LINK)):
                shape = ["root", "tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "50ms"]
                _run("tc", "-n", namespace, "qdisc", "add", "dev", link, *shape)
        yield names
    finally:
        _remove([hub, *names])


def _remove(names: list[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
