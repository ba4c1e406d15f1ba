# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is under way when the gateway is reloaded is finished by the old process."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.admin_socket import SETTLED_ANSWERS, AdminSocket
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend
from support.fake_server import FakeServer
from support.running_gateway import HAPROXY, rendered, running, server
from support.runs import ROOT

needs_haproxy = pytest.mark.skipif(not os.path.exists(HAPROXY), reason="no HAProxy on this machine")
BODY = b'{"model":"m","prompt":"' + b"x" * 100_000 + b'"}'


@needs_haproxy
def test_answer_and_upload_outlive_a_reload(tmp_path: Path) -> None:
    with FakeServer(seconds=2.0) as fake, ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        gateway = stack.enter_context(running(tmp_path, [Backend("m", "M", "Q4", "model", (server(fake.port),))]))
        answer = pool.submit(gateway.ask, "m")
        with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])), 30) as upload:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            upload.sendall(head % len(BODY) + BODY[:50_000])
            while not fake.seen:
                time.sleep(0.02)
            before = gateway.admin.pid()
            gateway.reload()
            assert gateway.admin.pid() != before
            # The new process serves while the old one still reads and waits.
            assert not answer.done()
            upload.sendall(BODY[50_000:])
            assert answer.result().status_code == 200
            found = b""
            while part := upload.recv(65536):
                found += part
        assert found.startswith(b"HTTP/1.1 200 "), found[:200]
        [body] = [body for _path, _headers, body in fake.seen if len(body) > 1000]
        assert body.encode() == BODY
        assert gateway.ask("m").status_code == 200


def test_reload_is_over_when_the_old_worker_takes_no_more_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under load it may take some for a while, and a change of a map would be lost with it."""
    pids = iter([1, 1, 2, 1, 2, 2, 1, *[2] * 20])
    seen: list[int] = []
    monkeypatch.setattr(AdminSocket, "pid", lambda _self: seen.append(next(pids)) or seen[-1])
    assert AdminSocket("/none").wait_for_worker(1, 10) == 2
    assert seen == [1, 1, 2, 1, 2, 2, 1, *[2] * SETTLED_ANSWERS]
    # One that starts has no other next to it.
    seen.clear()
    assert AdminSocket("/none").wait_for_worker(None, 10) == 2 and len(seen) == 1


def test_documented_bound_of_a_reload_is_that_of_the_configuration() -> None:
    [minutes] = re.findall(r"hard-stop-after (\d+)m", rendered([])["haproxy.cfg"])
    text = (ROOT / "docs/gateway.md").read_text()
    assert f"for at most {minutes} minutes" in text
    assert f"what lasts longer than {minutes} minutes" in " ".join(text.split())
