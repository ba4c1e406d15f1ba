# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes a container unhealthy."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from magi_container import health
from magi_container.children import FIRST_DELAY, LONGEST_DELAY, STEADY_SECONDS, next_delay
from magi_container.settings import read_settings
from magi_container.sharing import daemon_configuration

SERVER = {"name": "tiny", "state": "ready", "is_ready": True}


def test_servers_are_ready_or_at_rest() -> None:
    assert health.servers_problem({"servers": [SERVER, {**SERVER, "state": "stopped", "is_ready": False}]}) == ""
    loading = {**SERVER, "state": "loading", "is_ready": False}
    assert health.servers_problem({"servers": [SERVER, loading]}) == "not ready: tiny (loading)"
    assert health.servers_problem({"servers": []}) == "no server is known yet"


def test_a_failed_run_of_the_playbooks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "DEPLOYED", tmp_path / "deployed")
    assert health.magi_problem(read_settings({})) == "the playbooks have not ended yet"
    (tmp_path / "deployed").write_text("2\n")
    assert "exit status 2" in health.magi_problem(read_settings({}))


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"+OK\r\n+PONG\r\n", ""),
        (b"-WRONGPASS invalid\r\n", "Redis answers -WRONGPASS invalid"),
        (b"", "Redis answers "),
    ],
)
def test_redis_is_asked_with_its_password(answer: bytes, problem: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        received: list[bytes] = []

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                received.append(connection.recv(1024))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        found = health.redis_problem(read_settings({"REDIS_PASSWORD": "pässword"}), server.getsockname())
        thread.join()
    assert found.strip() == problem.strip()
    assert b"$9\r\np\xc3\xa4ssword\r\n" in received[0]


def test_a_gateway_is_healthy_while_its_haproxy_has_the_port_of_the_last_run() -> None:
    # The playbooks that give it the new one wait for this container to be healthy.
    with socket.create_server(("127.0.0.1", 0)) as sshd:
        port = sshd.getsockname()[1]
        changed = read_settings({"MAGI_GATEWAY_PORT": "1", "MAGI_GATEWAY": "localhost"})
        assert health.gateway_problem(changed, port) == ""
    assert health.gateway_problem(changed, port) == "sshd does not accept connections"


def test_a_program_that_ends_again_and_again_is_started_ever_later() -> None:
    assert next_delay(FIRST_DELAY, 0.1) == 2 * FIRST_DELAY
    assert next_delay(LONGEST_DELAY, 0.1) == LONGEST_DELAY
    assert next_delay(LONGEST_DELAY, STEADY_SECONDS) == FIRST_DELAY


def test_sshd_takes_one_user_by_key_alone() -> None:
    lines = daemon_configuration(Path("/control")).splitlines()
    assert {"AllowUsers magi", "AuthenticationMethods publickey", "PasswordAuthentication no"} <= set(lines)
    assert {"DisableForwarding yes", "PermitTTY no", "KbdInteractiveAuthentication no"} <= set(lines)
    assert not [line for line in lines if line.startswith("ListenAddress")]


def test_sshd_listens_in_the_network_of_magi_alone() -> None:
    assert "ListenAddress 172.18.0.2" in daemon_configuration(Path("/control"), "172.18.0.2").splitlines()
