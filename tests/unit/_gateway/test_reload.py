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
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from pathlib import Path
from typing import Any, cast

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway import apply
from ansible_collections.magi.llama.plugins.module_utils._gateway.admin_socket import SETTLED_ANSWERS, AdminSocket
from ansible_collections.magi.llama.plugins.module_utils._gateway.files import Change, Places
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend, GatewayError
from ansible_collections.magi.llama.plugins.module_utils._services.base import ServiceStatus
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


class Driver:
    """A service manager whose HAProxy runs, which notes the signals to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pids: Iterable[int | None]) -> None:
        self.signals: list[int] = []
        answers = iter(pids)
        monkeypatch.setattr(AdminSocket, "pid", lambda _self: next(answers, None))
        monkeypatch.setattr(AdminSocket, "ask", lambda *_: "1\n# be_id srv_name\n")
        monkeypatch.setattr(os, "kill", lambda pid, _signal: self.signals.append(pid))
        monkeypatch.setattr(apply, "START_SECONDS", 0.5)
        monkeypatch.setattr(time, "sleep", lambda _seconds: None)

    def status(self, names: list[str]) -> dict[str, ServiceStatus]:
        return {name: ServiceStatus(name, "running", 7) for name in names}


def reload(driver: Driver, folder: Path) -> apply.Applied:
    change = Change(files=["haproxy.cfg"], how="reload")
    old, new = {"haproxy.cfg": ""}, {"haproxy.cfg": "global\n"}
    return apply.apply(cast(Any, driver), Places(str(folder)), change, old, new, 0.0)


def test_old_worker_does_not_pass_for_the_new_one_where_it_answers_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HAProxy has refused the configuration, and its old worker, which was busy before, answers afterwards."""
    driver = Driver(monkeypatch, chain([None, None], repeat(1)))
    with pytest.raises(GatewayError, match=r"HAProxy \(PID 7\) did not take the new configuration"):
        reload(driver, tmp_path)
    driver = Driver(monkeypatch, [None, 1, 1, *[2] * SETTLED_ANSWERS])
    assert reload(driver, tmp_path).how == "reload" and driver.signals == [7]


def test_haproxy_that_never_answers_is_not_reloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, [])
    with pytest.raises(GatewayError, match=r"has not answered on .*/run/admin\.sock within 0\.5 s, .* restart it"):
        reload(driver, tmp_path)
    assert driver.signals == []


def test_documented_bound_of_a_reload_is_that_of_the_configuration() -> None:
    [minutes] = re.findall(r"hard-stop-after (\d+)m", rendered([])["haproxy.cfg"])
    text = (ROOT / "docs/gateway.md").read_text()
    assert f"for at most {minutes} minutes" in text
    assert f"what lasts longer than {minutes} minutes" in " ".join(text.split())
