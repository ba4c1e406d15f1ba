# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sinks of events: a file that is full, and a real Redis, with and without a password, that stops in a run."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.plugin_utils import event_sinks
from ansible_collections.magi.llama.plugins.plugin_utils.event_sinks import FileSink, RedisSink, SinkError, open_sink
from support.running_redis import RunningRedis, needs_redis, running_redis
from support.runs import BIN, CHECKOUT
from support.schemas import errors


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, because a socket is in it."""
    with tempfile.TemporaryDirectory(prefix="magi-") as path:
        yield Path(path)


def test_event_after_a_part_of_one_begins_on_a_new_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = FileSink(str(tmp_path / "events"))
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, text: write(descriptor, text[:3]))
    with pytest.raises(SinkError, match="took only a part of an event"):
        sink.write(b"first\n")
    monkeypatch.setattr(os, "write", write)
    sink.write(b"second\n")
    assert (tmp_path / "events").read_bytes() == b"fir\nsecond\n"


def test_file_of_others_events_is_appended_to(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("before\n")
    FileSink(str(tmp_path / "events")).write(b"after\n")
    assert (tmp_path / "events").read_text() == "before\nafter\n"


def test_error_of_redis_has_no_password() -> None:
    sink = open_sink("redis://user:s3cret@127.0.0.1:1/0?password=s3cret")
    assert isinstance(sink, RedisSink)
    with pytest.raises(SinkError) as caught:
        sink.write(b"{}\n")
    assert "s3cret" not in str(caught.value) + sink.name


@needs_redis
def test_password_is_read_from_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "password").write_text("s3cret\n")
    with running_redis(folder, "--requirepass", "s3cret") as server:
        sink = RedisSink(server.url)
        with pytest.raises(SinkError, match="authenticated"):
            sink.write(b"{}\n")
        monkeypatch.setenv(event_sinks.PASSWORD_FILE, str(folder / "password"))
        sink.write(b"{}\n")
        assert server.client(password="s3cret").xlen(event_sinks.STREAM) == 1


def events(server: RunningRedis) -> list[dict[str, Any]]:
    found = [json.loads(fields[b"event"]) for _id, fields in server.client().xrange(event_sinks.STREAM)]
    assert [errors("event", event) for event in found] == [[]] * len(found)
    return found


@needs_redis
@pytest.mark.slow
def test_redis_that_stops_in_a_run_is_one_warning(folder: Path) -> None:
    """It is stopped before the second task and started again before the third one, which still leaves it alone."""
    (folder / "play.yml").write_text(
        "- hosts: all\n  gather_facts: false\n  tasks:\n"
        "    - {name: One, magi.llama.report: {step: text, text: one}}\n"
        f"    - {{name: Wait, ansible.builtin.wait_for: {{path: '{folder}/go', sleep: 1}}}}\n"
        "    - {name: Two, magi.llama.report: {step: text, text: two}}\n"
        "    - {name: Three, magi.llama.report: {step: text, text: three}}\n"
    )
    with running_redis(folder) as server:
        own = {"PATH": os.environ["PATH"], "HOME": str(folder), "MAGI_EVENTS": server.url, **CHECKOUT}
        own |= {"ANSIBLE_CALLBACKS_ENABLED": "magi.llama.events"}
        command = [BIN / "ansible-playbook", "-i", "n1,n2,n3", "-c", "local", folder / "play.yml"]
        process = subprocess.Popen(
            command, cwd=folder, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        deadline = time.monotonic() + 60
        while not any(event["data"].get("name") == "Wait" for event in events(server)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        seen = events(server)
        assert [event["data"] for event in seen if event["type"] == "line"] == [{"text": "one"}] * 3
        assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
        server.stop()
        (folder / "go").touch()
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    # Ansible wraps it.
    assert " ".join(output.split()).count("The run continues; some of its events are missing.") == 1
    assert output.count("three") == 3
