# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role redis on a node: TLS, users, a console that uses it, and what is there after it was away."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import yaml
from support.bed import PROJECT, Outcome
from support.console import RunningConsole
from support.nodes import one_node

BED = "redis"
PASSWORDS = {"console": "c" * 24, "ci": "i" * 24}


class Node:
    """A node with a certificate for its address, whose playbook redis.yml is run from here."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.inventory, self.certificate = folder, folder / "nodes.yml", folder / "redis.pem"
        found = yaml.safe_load(subprocess.check_output(["ansible-inventory", "-i", self.inventory, "--list", "--yaml"]))
        (host,) = _hosts(found["all"]).values()
        self.address = str(host["ansible_host"])
        request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        request += ["-subj", "/CN=redis", "-addext", f"subjectAltName=IP:{self.address}"]
        subprocess.run(["openssl", *request, "-keyout", "key.pem", "-out", "redis.pem"], cwd=folder, check=True)
        both = folder / "both.pem"
        both.write_text(self.certificate.read_text() + (folder / "key.pem").read_text())
        self.ansible("ansible.builtin.copy", f"src={both} dest=/etc/ssl/private/redis.pem mode=0600")
        users = [{"name": name, "password": password} for name, password in PASSWORDS.items()]
        users[1]["access"] = "events"
        self.variables = folder / "vars.yml"
        self.variables.write_text(
            yaml.safe_dump(
                {
                    **{"target": "all", "redis_users": users, "redis_host": self.address},
                    "redis_tls_certificate": "/etc/ssl/private/redis.pem",
                }
            )
        )

    def ansible(self, module: str, arguments: str) -> None:
        command = ["ansible", "-i", str(self.inventory), "all", "-m", module, "-a", arguments]
        subprocess.run(command, check=True, cwd=PROJECT, stdout=subprocess.DEVNULL)

    def play(self, *arguments: str) -> Outcome:
        command = ["ansible-playbook", "-i", str(self.inventory), "playbooks/redis.yml", "-e", f"@{self.variables}"]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, cwd=PROJECT)
        assert done.returncode == 0, done.stdout + done.stderr
        return Outcome(done.returncode, done.stdout)

    def url(self, user: str) -> str:
        return f"rediss://{user}@{self.address}:6379/0?ssl_ca_certs={self.certificate}"

    def user(self, name: str) -> redis.Redis:
        return redis.Redis.from_url(self.url(name), password=PASSWORDS[name])


def _hosts(group: dict[str, object]) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = dict(group.get("hosts") or {})  # type: ignore[call-overload]
    for child in (group.get("children") or {}).values():  # type: ignore[attr-defined]
        found |= {name: one for name, one in _hosts(child).items() if one}
    return found


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with one_node(BED, tmp_path / "nodes.yml"):
        yield Node(tmp_path)


def test_redis_of_the_role_serves_a_console_and_keeps_what_it_has(node: Node, tmp_path: Path) -> None:
    assert node.play().changed > 0
    assert node.play().changed == 0
    with pytest.raises(redis.AuthenticationError):
        redis.Redis.from_url(node.url("").replace("@", "")).ping()
    with pytest.raises(redis.exceptions.NoPermissionError):
        node.user("ci").xrange("magi:events")

    (tmp_path / "redis.password").write_text(f"{PASSWORDS['console']}\n")
    arguments = ("--redis", node.url("console"), "--redis-password-file", str(tmp_path / "redis.password"))
    with RunningConsole(node.inventory, tmp_path / "console", arguments=(*arguments, "--no-watch")) as console:
        job = console.submit("status")["id"]
        assert console.wait(job)["state"] == "finished"
        kept = [event["seq"] for event in console.events(job)]
        assert kept == list(range(1, len(kept) + 1)) and node.user("console").xlen("magi:events") == len(kept)
        # Away during a job: that ends, and there is no live view. Its own data is there when it comes back.
        node.ansible("ansible.builtin.systemd_service", "name=magi-llama-redis state=stopped")
        later = console.submit("status")["id"]
        assert console.wait(later, seconds=120)["state"] == "finished"
        away = console.read.get("/api/v1/events", params={"after": 0, "follow": False})
        assert (away.status_code, away.json()["detail"][:21]) == (503, "There is no live view")
        node.ansible("ansible.builtin.systemd_service", "name=magi-llama-redis state=started")
        deadline = time.monotonic() + 120
        while console.read.get("/api/v1/events", params={"after": 0, "follow": False}).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert [event["seq"] for event in console.events(job)] == kept
        assert console.events(later)[-1]["type"] == "run_ended"

    node.play("-e", "redis_remove=true")
    node.ansible(
        "ansible.builtin.shell", "! test -e /var/lib/magi-llama-redis && ! systemctl is-active magi-llama-redis"
    )
