# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""probe.sh, run by sh against a server whose answers a test decides."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from ansible_collections.magi.llama.plugins.module_utils._export.probes import PLACE, SCRIPT, alive_command
from ansible_collections.magi.llama.plugins.module_utils._export.workloads import KEY_FILE, workloads_of
from ansible_collections.magi.llama.plugins.module_utils._launch.api_keys import first_key, generate_key_file

from .conftest import SETTINGS, host_plan, server


class Fake(BaseHTTPRequestHandler):
    answers_tokens = True
    busy_looks = 0
    has_slots = True
    decodes = True
    key = ""
    asked: ClassVar[list[tuple[str, str]]] = []
    count = 0

    def _answer(self, text: str) -> None:
        Fake.asked.append((self.path, str(self.headers.get("Authorization"))))
        is_allowed = not Fake.key or self.headers.get("Authorization") == f"Bearer {Fake.key}"
        self.send_response(200 if is_allowed else 401)
        self.end_headers()
        self.wfile.write(text.encode() if is_allowed else b"")

    def do_GET(self) -> None:
        Fake.count += Fake.decodes
        if self.path == "/slots" and not Fake.has_slots:
            self.send_error(501)
            return
        is_busy = self.path in ("/slots", "/metrics") and Fake.busy_looks > 0
        Fake.busy_looks -= is_busy
        if self.path == "/slots":
            self._answer(f'[{{"id":0,"is_processing":{str(is_busy).lower()}}},{{"id":1,"is_processing":false}}]')
            return
        is_metrics = self.path == "/metrics"
        self._answer(
            f"llamacpp:requests_processing {int(is_busy)}\nllamacpp:n_decode_total {Fake.count}\n"
            if is_metrics
            else '{"data":[{"id":"a.b","object":"model"}]}'
        )

    def do_POST(self) -> None:
        if not Fake.answers_tokens:
            threading.Event().wait(1.5)
            return
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer("{}")

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    Fake.answers_tokens, Fake.decodes, Fake.key, Fake.asked = True, True, "", []
    Fake.busy_looks, Fake.has_slots = 0, True
    http = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield http.server_port
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(params=["curl", "wget"], autouse=True)
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which(request.param):
        pytest.skip(f"{request.param} is missing")
    monkeypatch.setattr(f"{__name__}.HIDDEN", request.param == "wget")


HIDDEN = False


def code(folder: Path, *arguments: str) -> int:
    script = SCRIPT.replace(KEY_FILE, str(folder / "key"))
    script = script.replace("sleep 5\n", "\n")
    script = script.replace("command -v curl", "false") if HIDDEN else script
    (folder / "probe.sh").write_text(script)
    done = subprocess.run(["sh", str(folder / "probe.sh"), *arguments], capture_output=True, timeout=60)
    return done.returncode


def alive(folder: Path, port: int) -> int:
    return code(folder, "alive", str(port), "a.b", "/completion", json.dumps({"prompt": "it's"}), "1")


def test_ready_only_where_the_model_is_the_planned_one(tmp_path: Path, port: int) -> None:
    assert code(tmp_path, "ready", str(port), "a.b") == 0
    # A dot matches only itself.
    assert code(tmp_path, "ready", str(port), "aXb") != 0
    assert code(tmp_path, "ready", "1", "a.b") != 0


def test_key_is_sent_and_a_wrong_one_is_not_ready(tmp_path: Path, port: int) -> None:
    Fake.key = "the key's $1"
    assert code(tmp_path, "ready", str(port), "a.b") != 0
    (tmp_path / "key").write_text(f"\n {Fake.key}\nsecond\n")
    assert code(tmp_path, "ready", str(port), "a.b") == 0 and alive(tmp_path, port) == 0
    assert Fake.asked[-1] == ("/completion", f"Bearer {Fake.key}")


def test_key_of_a_generated_file_is_sent_and_not_its_comment(tmp_path: Path, port: int) -> None:
    generate_key_file(str(tmp_path / "key"))
    Fake.key = str(first_key(str(tmp_path / "key")))
    assert code(tmp_path, "ready", str(port), "a.b") == 0
    assert Fake.asked[-1][1] == f"Bearer {Fake.key}"


def test_alive_where_it_answers_or_decodes_and_not_where_it_hangs(tmp_path: Path, port: int) -> None:
    assert alive(tmp_path, port) == 0
    Fake.answers_tokens = False
    assert alive(tmp_path, port) == 0
    Fake.decodes = False
    assert alive(tmp_path, port) != 0


@pytest.mark.parametrize("has_slots", [True, False])
def test_drain_ends_when_the_server_is_idle_and_not_before(tmp_path: Path, port: int, has_slots: bool) -> None:
    Fake.busy_looks, Fake.has_slots = 3, has_slots
    assert drain(tmp_path, port, "60") == 0
    assert Fake.busy_looks == 0 and len(looks()) == 5


def test_drain_ends_after_its_time_and_without_a_server(tmp_path: Path, port: int) -> None:
    Fake.busy_looks = 1000
    assert drain(tmp_path, port, "2") == 0
    assert 1 <= len(looks()) <= 3
    assert drain(tmp_path, 1, "60") == 0


def looks() -> list[str]:
    return [path for path, _key in Fake.asked if path in ("/slots", "/metrics")]


def drain(folder: Path, port: int, seconds: str) -> int:
    return code(folder, "drain", str(port), "a.b", seconds)


def test_alive_asks_each_kind_of_model_for_what_it_does() -> None:
    kinds = {"model": "/completion", "embedding": "/v1/embeddings", "reranker": "/v1/rerank"}
    for kind, path in kinds.items():
        (one,), _warnings = workloads_of([host_plan(server("a", 8080, kind=kind))], SETTINGS)
        command = alive_command(one)
        assert command[:3] == ["sh", f"{PLACE}/probe.sh", "alive"] and command[5] == path and json.loads(command[6])
