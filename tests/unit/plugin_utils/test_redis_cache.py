# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cache plugin redis with a real Redis: what others have written there is never used."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible.utils.display import Display
from ansible_collections.magi.llama.plugins.cache.redis import DOCUMENTATION, CacheModule, read_key
from support.running_redis import RunningRedis, needs_redis, running_redis
from support.runs import BIN, CHECKOUT, execute

PLUGIN = "magi.llama.redis"
KEY = "k" * 64
UNSIGNED = "have no valid signature, and are not used"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, because a socket is in it."""
    with tempfile.TemporaryDirectory(prefix="magi-") as path:
        (Path(path) / "key").write_text(f"{KEY}\n")
        (Path(path) / "key").chmod(0o600)
        yield Path(path)


@pytest.fixture
def server(folder: Path) -> Iterator[RunningRedis]:
    with running_redis(folder) as running:
        yield running


class Caches:
    """The cache as separate runs have it, and what they warned of."""

    def __init__(self, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.warnings: list[str] = []
        documented = yaml.safe_load(DOCUMENTATION)["options"]
        self._options = {name: option.get("default") for name, option in documented.items()}
        self._options |= {"_uri": url, "_key_file": str(folder / "key")}
        monkeypatch.setattr(CacheModule, "set_options", lambda _self, **_options: None)
        monkeypatch.setattr(CacheModule, "get_option", lambda _self, name, **_options: self._options[name])

    def __call__(self, **options: Any) -> CacheModule:
        self._options |= options
        return CacheModule()


@pytest.fixture
def cache(folder: Path, server: RunningRedis, monkeypatch: pytest.MonkeyPatch) -> Caches:
    caches = Caches(folder, server.url, monkeypatch)
    monkeypatch.setattr(
        Display, "warning", lambda _self, text, *_args, **_options: caches.warnings.append(" ".join(text.split()))
    )
    return caches


def entries(server: RunningRedis) -> dict[bytes, bytes]:
    client = server.client()
    return {name: client.get(name) for name in client.keys("*")}


def signed(name: str, text: bytes, key: str = KEY) -> bytes:
    now = b"%d" % time.time()
    covered = b"magi.llama.redis\0001\0%d\0%s\0%s\0%s" % (len(name), name.encode(), now, text)
    return b"1.%s.%s.%s" % (now, hmac.new(key.encode(), covered, hashlib.sha256).hexdigest().encode(), text)


@needs_redis
def test_facts_of_one_run_are_there_for_the_next(cache: Caches, server: RunningRedis) -> None:
    first = cache()
    first.set("n1", {"a": 1})
    first.set("n2", {"b": [2]})
    second = cache()
    assert (second.get("n1"), second.contains("n2"), second.contains("n3"), second.keys()) == (
        *({"a": 1}, True, False, ["n1", "n2"]),
    )
    [(name, entry)] = [(name, entry) for name, entry in entries(server).items() if name.endswith(b"n1")]
    assert (name, entry.split(b".", 3)[3]) == (b"magi:cache:n1", json.dumps({"a": 1}).encode())
    assert 0 < server.client().ttl("magi:cache:n1") <= 86400
    second.delete("n1")
    assert cache().keys() == ["n2"]
    server.client().set("other", "1")
    cache().flush()
    assert (list(entries(server)), cache.warnings) == ([b"other"], [])
    with pytest.raises(KeyError):
        cache().get("n1")


@needs_redis
@pytest.mark.parametrize("change", ["text", "time", "host", "key", "nothing signed", "empty"])
def test_entry_with_another_signature_is_a_miss_with_a_warning(
    cache: Caches, server: RunningRedis, change: str
) -> None:
    cache().set("n1", {"a": 1})
    client = server.client()
    entry = client.get("magi:cache:n1")
    planted = {
        "text": entry.replace(b"1}", b"2}"),
        "time": b"1.9999999999." + entry.split(b".", 2)[2],
        "host": signed("magi:cache:n2", b'{"a": 1}'),
        "key": signed("magi:cache:n1", b'{"a": 1}', "l" * 64),
        "nothing signed": b'{"a": 1}',
        "empty": b"",
    }
    client.set("magi:cache:n1", planted[change])
    read = cache()
    assert (read.contains("n1"), read.keys()) == (False, [])
    with pytest.raises(KeyError):
        read.get("n1")
    [warning] = cache.warnings
    assert UNSIGNED in warning and "n1" in warning
    # The next gathering repairs it.
    read.set("n1", {"a": 3})
    assert cache().get("n1") == {"a": 3}


@needs_redis
def test_former_entry_that_is_put_back_is_not_used(cache: Caches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    cache(_timeout=60).set("n1", {"a": 1})
    assert cache(_timeout=60).contains("n1")
    monkeypatch.setattr(time, "time", lambda: 1061.0)
    assert not cache(_timeout=60).contains("n1")
    assert cache(_timeout=0).contains("n1")
    assert cache.warnings == []


@needs_redis
def test_redis_that_is_stopped_is_one_warning(cache: Caches, server: RunningRedis) -> None:
    used = cache()
    server.stop()
    used.set("n1", {"a": 1})
    used.set("n2", {"a": 2})
    # Within a run they are known.
    assert (used.get("n1"), used.contains("n3"), used.keys()) == ({"a": 1}, False, ["n1", "n2"])
    assert len(cache.warnings) == 1 and cache.warnings[0].startswith("The cache of facts is not used: unix://")


@pytest.mark.parametrize(
    ("mode", "content", "text"),
    [
        (0o640, KEY, r"not for its owner alone \(mode 0640"),
        (0o604, KEY, r"not for its owner alone \(mode 0604"),
        (0o600, "short", "shorter than 32 characters"),
        (None, "", r"cannot be read: No such file.* openssl rand -hex 32"),
    ],
)
def test_key_file_that_others_may_know_is_refused(tmp_path: Path, mode: int | None, content: str, text: str) -> None:
    path = tmp_path / "key"
    if mode is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(AnsibleError, match=text):
        read_key(str(path))


PLAY = """\
- hosts: n1
  gather_facts: false
  tasks:
    - ansible.builtin.set_fact: {mark: fresh, cacheable: true}
      when: ansible_facts.mark is not defined
    - ansible.builtin.debug: {msg: "mark {{ ansible_facts.mark }}"}
"""


def planted(text: bytes, command: str) -> bytes:
    """The entry's JSON with the fact as a template that Ansible trusts, as the user who attacks would write it."""
    template = {
        "__ansible_type": "_AnsibleTaggedStr",
        "value": "{{ lookup('ansible.builtin.pipe', '%s') }}" % command,  # noqa: UP031 - braces
        "tags": [{"__ansible_type": "TrustedAsTemplate"}],
    }
    outer = json.loads(text)
    [payload] = outer.values()
    facts = json.loads(payload)
    facts["mark"] = template
    return json.dumps(dict.fromkeys(outer, json.dumps(facts))).encode()


@needs_redis
@pytest.mark.slow
def test_planted_template_is_never_executed(folder: Path, server: RunningRedis) -> None:
    (folder / "play.yml").write_text(PLAY)
    own = {
        **CHECKOUT,
        **{"ANSIBLE_CACHE_PLUGIN": PLUGIN, "ANSIBLE_CACHE_PLUGIN_CONNECTION": server.url},
        **{"MAGI_CACHE_KEY_FILE": str(folder / "key"), "ANSIBLE_INJECT_FACT_VARS": "false"},
    }

    def run() -> str:
        done = execute([BIN / "ansible-playbook", "-i", "n1,", "-c", "local", folder / "play.yml"], folder, **own)
        assert done.returncode == 0, done.stdout + done.stderr
        return " ".join((done.stdout + done.stderr).split())

    assert "mark fresh" in run()
    client = server.client()
    [name] = client.keys("*")
    text = client.get(name).split(b".", 3)[3]
    # The attack works for the user who has the key: otherwise this test would show nothing.
    client.set(name, signed(name.decode(), planted(text, f"touch {folder}/executed; echo bad")))
    output = run()
    assert "mark bad" in output and (folder / "executed").exists()
    (folder / "executed").unlink()

    attack = planted(text, f"touch {folder}/executed; echo bad")
    for entry in (attack, b"1.%d.%s.%s" % (time.time(), b"0" * 64, attack), signed(name.decode(), attack, "l" * 64)):
        client.set(name, entry)
        output = run()
        assert "mark fresh" in output and UNSIGNED in output, output
        assert not (folder / "executed").exists()

    # Without a key that is secret there is no cache at all.
    os.chmod(folder / "key", 0o644)
    client.set(name, attack)
    output = run()
    assert "mark fresh" in output and "not for its owner alone" in output
    assert not (folder / "executed").exists()
