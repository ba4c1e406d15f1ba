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
        is_metrics = self.path == "/metrics"
        self._answer(
            f"llamacpp:n_decode_total {Fake.count}\n" if is_metrics else '{"data":[{"id":"a.b","object":"model"}]}'
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


def test_alive_asks_each_kind_of_model_for_what_it_does() -> None:
    kinds = {"model": "/completion", "embedding": "/v1/embeddings", "reranker": "/v1/rerank"}
    for kind, path in kinds.items():
        (one,), _warnings = workloads_of([host_plan(server("a", 8080, kind=kind))], SETTINGS)
        command = alive_command(one)
        assert command[:3] == ["sh", f"{PLACE}/probe.sh", "alive"] and command[5] == path and json.loads(command[6])
