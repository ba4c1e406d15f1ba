# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role redis: its configuration in a real Redis, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from ansible_collections.magi.llama.plugins.plugin_utils.event_sinks import STREAM, RedisSink
from magi_llama_console.store.base import CachedStatus, Job
from magi_llama_console.store.redis import RedisStore
from support.bed import free_ports
from support.running_redis import RunningRedis, needs_redis
from support.runs import BIN, CHECKOUT, ROOT, execute

PASSWORDS = {"console": "c" * 24, "ci": "i" * 24}
USERS = [
    {"name": "console", "password": PASSWORDS["console"]},
    {"name": "ci", "password": PASSWORDS["ci"], "access": "events"},
]
ROLE = ROOT / "roles/redis"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, because a socket is in it."""
    with tempfile.TemporaryDirectory(prefix="magi-") as path:
        (Path(path) / "data").mkdir()
        yield Path(path)


def play(folder: Path, tasks: list[dict[str, Any]], **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run tasks on this machine with the role's defaults and variables."""
    book = {"hosts": "localhost", "gather_facts": False, "tasks": tasks}
    book["vars_files"] = [str(ROLE / "defaults/main.yml"), str(ROLE / "vars/main.yml")]
    (folder / "play.yml").write_text(json.dumps([book]))
    (folder / "vars.json").write_text(json.dumps({"redis_state_dir": str(folder), **variables}))
    command = [BIN / "ansible-playbook", "-i", "localhost,", "-c", "local", "play.yml", "-e", "@vars.json"]
    return execute(command, folder, **CHECKOUT)


def configuration(folder: Path, **variables: Any) -> Path:
    template = {"src": str(ROLE / "templates/redis.conf.j2"), "dest": str(folder / "redis.conf")}
    done = play(folder, [{"ansible.builtin.template": template}], redis_users=USERS, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "redis.conf"


class Server(RunningRedis):
    """A Redis with the role's configuration."""

    def user(self, name: str) -> redis.Redis:
        return self.client(username=name, password=PASSWORDS[name])


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    running = Server(folder, str(configuration(folder)))
    running.start()
    yield running
    running.stop()


@needs_redis
def test_users_have_what_they_need_and_nothing_else(server: Server, folder: Path, monkeypatch: Any) -> None:
    assert not any(password in (folder / "redis.conf").read_text() for password in PASSWORDS.values())
    with pytest.raises(redis.AuthenticationError):
        server.client().get("magi:a")
    console, ci = server.user("console"), server.user("ci")
    console.set("magi:a", "1", ex=60)
    console.eval("return redis.call('INCR', KEYS[1])", 1, "magi:a")
    assert (console.get("magi:a"), list(console.scan_iter("magi:*"))) == (b"2", [b"magi:a"])
    console.publish("magi:news", "1")
    refused = [
        lambda: console.get("other"),
        lambda: console.set("other", 1),
        lambda: console.eval("return redis.call('SET', KEYS[1], 1)", 1, "other"),
        lambda: console.config_get("*"),
        lambda: console.flushall(),
        lambda: console.acl_list(),
        lambda: console.publish("other", "1"),
        lambda: ci.get("magi:a"),
        lambda: ci.xrange(STREAM),
        lambda: ci.xadd("magi:other", {"a": 1}),
        lambda: ci.delete(STREAM),
        lambda: list(ci.scan_iter()),
    ]
    for command in refused:
        with pytest.raises(redis.exceptions.NoPermissionError):
            command()
    (folder / "password").write_text(PASSWORDS["ci"])
    monkeypatch.setenv("MAGI_EVENTS_PASSWORD_FILE", str(folder / "password"))
    RedisSink(server.url.replace("unix://", "unix://ci@")).write(b"{}\n")
    assert console.xlen(STREAM) == 1


@needs_redis
def test_nobody_is_the_default_user(server: Server) -> None:
    for password in ("", "x", PASSWORDS["console"]):
        with pytest.raises(redis.AuthenticationError):
            server.client(username="default", password=password).execute_command("AUTH", "default", password)
    anonymous = [("GET", "magi:a"), ("EVAL", "return 1", 0), ("PUBLISH", "magi:a", 1), ("ACL", "WHOAMI"), ("MULTI",)]
    for command in [*anonymous, ("SUBSCRIBE", "magi:a"), ("PING",)]:
        with pytest.raises(redis.AuthenticationError):
            server.client().execute_command(*command)


@needs_redis
def test_data_is_there_after_a_restart(server: Server, folder: Path) -> None:
    """Also what the scripts of consoles write, which is in the file as transactions."""
    (folder / "password").write_text(PASSWORDS["console"])
    url = server.url.replace("unix://", "unix://console@")
    event = {"run": "j", "type": "line", "at": "t", "seq": 1, "host": "a", "data": {"text": "x"}}
    job = Job(id="j", verb="site", variables={}, hosts=("a",), by="me", created_at="t")

    def store() -> RedisStore:
        return RedisStore(folder / "console.db", url, folder / "password")

    async def write() -> None:
        writing = store()
        await writing.add_job(job, key="k", fingerprint="f")
        await writing.add_events("j", [event, {**event, "seq": 2}], 20)
        await writing.put_status([CachedStatus(host, "status", "t", "events", {"of": host}) for host in "ab"])
        await writing.close()

    async def read() -> list[object]:
        reading = store()
        of_job, of_all = await reading.events(job="j"), await reading.events()
        kept = [await reading.offset("j"), [one.event["seq"] for one in of_job], of_all == of_job]
        kept += [await reading.job_of_key("k", "f") == job, [one.document for one in await reading.statuses()]]
        await reading.close()
        return kept

    server.user("console").set("magi:plain", "1")
    asyncio.run(write())
    # KILL: what it had written is in the file.
    server.stop()
    server.start()
    assert asyncio.run(read()) == [20, [1, 2], True, True, [{"of": "a"}, {"of": "b"}]]
    assert server.user("console").get("magi:plain") == b"1"


@needs_redis
def test_memory_that_is_used_up_costs_entries_with_a_time_to_live(folder: Path) -> None:
    running = Server(folder, str(configuration(folder, redis_max_memory="4mb")))
    running.start()
    try:
        console = running.user("console")
        console.xadd(STREAM, {"event": "{}"})
        for number in range(100):
            console.set(f"magi:cache:{number}", "x" * 100_000, ex=3600)
        assert console.xlen(STREAM) == 1
        assert len(list(console.scan_iter("magi:cache:*"))) < 50
    finally:
        running.stop()


@needs_redis
def test_configuration_with_tls(folder: Path) -> None:
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    command = [*made.split(), "-keyout", str(folder / "key.pem"), "-out", str(folder / "authority.pem")]
    subprocess.run(command, check=True, capture_output=True)
    both = (folder / "authority.pem").read_text() + (folder / "key.pem").read_text()
    (folder / "certificate.pem").write_text(both)
    path = configuration(folder, redis_tls_certificate="/etc/x.pem", redis_host="0.0.0.0")
    assert "\nport 0\n" in path.read_text() and "/etc/x.pem" not in path.read_text()
    # RunningRedis turns the port off, and not the one with TLS.
    port = free_ports(1)
    path.write_text(path.read_text().replace("tls-port 6379", f"tls-port {port}"))
    running = Server(folder, str(path))
    running.start()
    try:
        url = f"rediss://console:{PASSWORDS['console']}@127.0.0.1:{port}?ssl_ca_certs={folder}/authority.pem"
        RedisSink(url).write(b"{}\n")
        assert redis.Redis.from_url(url).xlen(STREAM) == 1
    finally:
        running.stop()


WRONG = [
    ({"redis_users": []}, "redis_users is empty"),
    ({"redis_users": [{"name": "a b", "password": "p" * 16}]}, "needs a name of its own"),
    ({"redis_users": [{"name": "default", "password": "p" * 16}]}, "and not default"),
    ({"redis_users": [USERS[0], USERS[0]]}, "needs a name of its own"),
    ({"redis_users": [{"name": "a", "password": "short-s3cret"}]}, "at least 16 characters"),
    ({"redis_users": [{"name": "a", "sha256": "0" * 63}]}, "64 digits of hex"),
    ({"redis_users": [{**USERS[0], "access": "admin"}]}, "access is one of all, events"),
    ({"redis_host": "0.0.0.0"}, "redis_host is 0.0.0.0: for any but a loopback address set redis_tls_certificate"),
    ({"redis_max_memory": "1 GB"}, "redis_max_memory is 1 GB: give a number with kb, mb or gb"),
]


def check_of_role() -> dict[str, Any]:
    tasks = yaml.safe_load((ROLE / "tasks/main.yml").read_text())
    [check] = [task for task in tasks if task["name"] == "Check the users and addresses"]
    return dict(check)


def test_good_values_are_accepted(folder: Path) -> None:
    by_digest = [{"name": "a", "sha256": "0" * 64}, *USERS]
    variables = {"redis_users": by_digest, "redis_host": "0.0.0.0", "redis_tls_certificate": "/etc/x.pem"}
    done = play(folder, [check_of_role()], **variables)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("variables", "text"), WRONG, ids=[text for _variables, text in WRONG])
def test_wrong_value_is_refused_with_the_fix(folder: Path, variables: dict[str, Any], text: str) -> None:
    done = play(folder, [check_of_role()], **{"redis_users": USERS, **variables})
    output = " ".join((done.stdout + done.stderr).split())
    assert (done.returncode, text in output, "Nothing was changed." in output) == (2, True, True), output
    assert not any(password in output for password in (*PASSWORDS.values(), "s3cret"))
