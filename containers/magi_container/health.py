# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a container is healthy: the sentence that says why not, which the engine shows (docker inspect)."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from . import settings as places
from .network import accepts, get
from .settings import Settings

# How the first run of the playbooks ended.
DEPLOYED = places.RUN / "deployed"
# Of a server that is not to run now, this is its state.
AT_REST = ("stopped", "sleeping")


def magi_problem(settings: Settings) -> str:
    """Empty if the playbooks have succeeded, the console answers, every server is ready, and the gateway answers."""
    try:
        code = DEPLOYED.read_text().strip()
    except OSError:
        return "the playbooks have not ended yet"
    if code != "0":
        return f"the playbooks have failed with exit status {code}: see the log of this container"
    try:
        token = places.CONSOLE_TOKEN.read_text().strip()
    except OSError as error:
        return f"the console's token cannot be read: {error}"
    asked = {"Authorization": f"Bearer {token}"}
    status, answer = get("127.0.0.1", settings.console_port, "/api/models/status", asked)
    if status != 200:
        return f"the console answers {status or 'nothing'}"
    if problem := servers_problem(answer):
        return problem
    if settings.gateway and get(settings.gateway, settings.gateway_port, "/health")[0] != 200:
        return "the gateway does not answer"
    return ""


def servers_problem(status: Mapping[str, Any]) -> str:
    """Empty if the servers of a status document are ready, or at rest."""
    servers = status.get("servers") or []
    if not servers:
        return "no server is known yet"
    late = [f"{one['name']} ({one['state']})" for one in servers if not (one["is_ready"] or one["state"] in AT_REST)]
    return f"not ready: {', '.join(late)}" if late else ""


def gateway_problem(settings: Settings, port: int = places.SSH_PORT) -> str:
    """Empty if magi can reach the container.

    Not whether HAProxy answers: until the playbooks of magi have run, which wait for this container to be healthy, it
    has the configuration of the last run, with the port of then, or none. The health of magi says whether it answers.
    """
    return "" if accepts(settings.gateway or "127.0.0.1", port) else "sshd does not accept connections"


def redis_problem(settings: Settings, address: tuple[str, int] = ("127.0.0.1", 6379)) -> str:
    """Empty if the Redis takes the password and answers."""
    password = settings.redis_password.encode()
    command = b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n*1\r\n$4\r\nPING\r\n" % (len(password), password)
    try:
        with socket.create_connection(address, timeout=3) as connection:
            connection.sendall(command)
            answer = b""
            while answer.count(b"\r\n") < 2 and not answer.startswith(b"-"):
                if not (data := connection.recv(1024)):
                    break
                answer += data
    except OSError as error:
        return f"Redis does not answer: {error}"
    return "" if answer == b"+OK\r\n+PONG\r\n" else f"Redis answers {answer[:80].decode(errors='replace').strip()}"


CHECKS = {"magi": magi_problem, "gateway": gateway_problem, "redis": redis_problem}
