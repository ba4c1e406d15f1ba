# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core import processes as processes_module
from ansible_collections.magi.llama.plugins.module_utils._core.processes import Process
from ansible_collections.magi.llama.plugins.module_utils._deployment import record as record_module
from ansible_collections.magi.llama.plugins.module_utils._health import (
    causes,
    machine,
)
from ansible_collections.magi.llama.plugins.module_utils._health import (
    pace as pace_module,
)
from ansible_collections.magi.llama.plugins.module_utils._health import (
    probe as probe_module,
)
from ansible_collections.magi.llama.plugins.module_utils._health import (
    status as status_module,
)
from ansible_collections.magi.llama.plugins.module_utils._health import (
    wait as wait_module,
)
from ansible_collections.magi.llama.plugins.module_utils._health.probe import Probe
from ansible_collections.magi.llama.plugins.module_utils._services.base import ServiceStatus


def server(name="a", port=8080, **changes):
    return {
        "name": name,
        "model_id": name,
        "display_name": name.upper(),
        "tier": "Q4",
        "kind": "model",
        "host": "127.0.0.1",
        "port": port,
        "argv": ["/usr/bin/llama-server", "--model", "/m/a.gguf", "--port", str(port)],
        "api_key_file": None,
        "max_startup_time": 120,
        **changes,
    }


class FakeHost:
    """Servers whose states follow a timetable: (from second, status, probe) by name."""

    def __init__(self, timetable):
        self.timetable, self.now, self.rounds, self.asked = timetable, 0.0, 0, []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def _at(self, name):
        return [entry for entry in self.timetable[name] if entry[0] <= self.now][-1]

    def status(self, names):
        self.rounds += 1
        return {name: self._at(name)[1] for name in names}

    def probe(self, servers, pids):
        self.asked += [server["name"] for server in servers]
        return {server["name"]: self._at(server["name"])[2] for server in servers}

    def uptime(self, pid):
        return self.now + 0.5

    def log_tail(self, name, lines):
        return ["error: invalid argument: --x"]

    def is_readable(self, path):
        return False


def running(name="a", restarts=0):
    return ServiceStatus(name, "running", 42, restarts=restarts)


def wait(host, servers, **options):
    return wait_module.wait(servers, host, clock=host.clock, sleep=host.sleep, **{"interval": 2.0, **options})


@pytest.mark.parametrize("ready_at", [0.0, 0.2, 1.0, 7.0, 60.0])
def test_wait_finds_ready_server_within_a_few_percent(ready_at):
    host = FakeHost({"a": [(0, running(), Probe("loading")), (ready_at, running(), Probe("ready"))]})
    [outcome] = wait(host, [server()])
    assert (outcome.state, outcome.is_ready, outcome.is_settled, outcome.pid) == ("ready", True, True, 42)
    assert ready_at + 0.5 <= outcome.seconds_to_ready <= ready_at * 1.06 + 0.56
    assert host.rounds < 120


def test_wait_reports_dead_server_at_once_and_waits_for_others():
    dead = ServiceStatus("b", "failed", None, 1, "exit code 1")
    host = FakeHost(
        {
            "a": [(0, running(), Probe("loading")), (30, running(), Probe("ready"))],
            "b": [(0, running("b"), Probe("loading")), (1, dead, None)],
        }
    )
    a, b = wait(host, [server(), server("b", 8081)])
    assert a.is_ready
    assert (b.state, b.exit_code, b.detail, b.is_ready, b.is_settled) == ("failed", 1, "exit code 1", False, True)
    assert b.log_tail == ("error: invalid argument: --x",)
    assert "does not know the flag --x" in b.fix
    # Settled servers are not probed again.
    assert host.asked[-1] == "a"
    assert host.asked.count("b") < 25


@pytest.mark.parametrize(
    ("status", "detail"),
    [
        (ServiceStatus("a", "restarting", None, 139, "killed by SIGSEGV"), "killed by SIGSEGV"),
        (ServiceStatus("a", "stopped"), "it is stopped"),
        (ServiceStatus("a", "stopped", None, 0, "exit code 0"), "it is stopped (exit code 0)"),
        (ServiceStatus("a", "absent"), "the service manager does not know it: run site.yml"),
        (ServiceStatus("a", "failed"), "it ended"),
    ],
)
def test_wait_reports_each_kind_of_death(status, detail):
    host = FakeHost({"a": [(0, status, None)]})
    [outcome] = wait(host, [server()])
    assert (outcome.state, outcome.detail, host.now) == ("failed", detail, 0)


def test_restart_count_rising_is_a_crash():
    host = FakeHost({"a": [(0, running(), Probe("loading")), (1, running(restarts=1), Probe("ready"))]})
    [outcome] = wait(host, [server()])
    assert (outcome.state, outcome.detail) == ("failed", "crashed (restarts: 1)")
    assert host.now < 1.2


def test_restart_before_wait_is_ignored_but_between_slices_is_a_crash():
    host = FakeHost({"a": [(0, running(restarts=3), Probe("ready"))]})
    assert wait(host, [server()])[0].is_ready
    assert not wait(host, [server()], baseline={"a": 2})[0].is_ready


@pytest.mark.parametrize(("opened", "stopped"), [([], []), (["a", "b"], ["a"])])
def test_newly_opened_server_that_is_not_ready_is_stopped(opened, stopped):
    host = FakeHost({"a": [(0, running(), Probe("loading"))], "b": [(0, running("b"), Probe("ready"))]})
    outcomes = wait(host, [server(), server("b", 8081)], timeout=10)
    statuses = {"a": running(), "b": running("b")}
    assert wait_module.to_be_stopped(outcomes, statuses, opened) == stopped
    [first, second] = wait_module.with_stops(outcomes, stopped)
    assert first.detail == "not ready after 10 s" + "; stopped, as this deployment opened it to other machines" * len(
        stopped
    )
    assert second.detail is None
    # While it is waited for, it continues.
    outcomes = wait(host, [server()], timeout=1000, slice_seconds=1)
    assert wait_module.to_be_stopped(outcomes, statuses, ["a"]) == []


def test_timeout_is_reported_with_last_state():
    host = FakeHost({"a": [(0, running(), Probe("hung", "no answer within 2 s"))]})
    [outcome] = wait(host, [server(max_startup_time=10)])
    assert (outcome.state, outcome.is_settled, outcome.is_ready) == ("hung", True, False)
    assert outcome.detail == "not ready after 10 s: no answer within 2 s"
    assert 10 <= host.now < 10.6
    assert outcome.log_tail
    host.now = 0
    assert wait(host, [server()], timeout=5, elapsed=3)[0].detail.startswith("not ready after 5 s")
    assert 2 <= host.now < 2.5


def test_slice_ends_when_all_are_settled_or_time_is_up():
    host = FakeHost({"a": [(0, running(), Probe("loading")), (5, running(), Probe("ready"))]})
    [outcome] = wait(host, [server()], slice_seconds=2.0)
    assert (outcome.is_settled, outcome.state) == (False, "loading")
    assert host.now == pytest.approx(2.0)
    [outcome] = wait(host, [server()], slice_seconds=60.0, elapsed=2.0)
    assert outcome.is_ready
    assert host.now < 5.4


def test_foreign_process_on_port_gets_a_grace_period():
    foreign = Probe("wrong_identity", "port 8080 is held by pid 7 (nginx)")
    host = FakeHost({"a": [(0, running(), foreign), (1, running(), Probe("ready"))]})
    assert wait(host, [server()])[0].is_ready
    host = FakeHost({"a": [(0, running(), foreign)]})
    [outcome] = wait(host, [server()])
    assert (outcome.state, outcome.detail) == ("wrong_identity", "port 8080 is held by pid 7 (nginx)")
    assert "servers_move_on_conflict" in outcome.fix
    assert 2 <= host.now < 2.5


def test_server_ready_for_long_has_no_seconds():
    host = FakeHost({"a": [(0, running(), Probe("ready"))]})
    host.uptime = lambda pid: 6.0
    assert wait(host, [server()])[0].seconds_to_ready is None


@pytest.mark.parametrize(
    ("lines", "code", "expected"),
    [
        (["E srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8991"], 1, "its port is taken"),
        (["error: invalid argument: --no-such-flag"], 1, "does not know the flag --no-such-flag:"),
        (['error while handling argument "--ctx-size": stoi', "", "usage:"], 1, "the value of --ctx-size"),
        (["E llama_init_from_model: failed to initialize the context: std::bad_alloc"], 1, "not enough memory"),
        (
            ["ggml_backend_cuda_buffer_type_alloc_buffer: allocating 1 MiB: cudaMalloc failed: out of memory"],
            1,
            "memory",
        ),
        (
            [
                "E gguf_init_from_file: failed to open GGUF file '/m/a b '.gguf' (Permission denied)",
                "E failed to load model",
            ],
            1,
            "may not read /m/a b '.gguf:",
        ),
        (
            ["gguf_init_from_file: failed to open GGUF file '/m/a.gguf' (No such file or directory)"],
            1,
            "/m/a.gguf is missing",
        ),
        (["E gguf_init_from_reader: invalid magic characters: 'hell', expected 'GGUF'"], 1, "damaged or incomplete"),
        (
            ["tensor 'x' data is not within the file bounds, model is corrupted or incomplete"],
            1,
            "damaged or incomplete",
        ),
        (["read: string length 6 exceeds remaining file size 2 bytes"], 1, "damaged or incomplete"),
        (["error loading model architecture: unknown model architecture: 'qwen9'"], 1, "architecture qwen9"),
        (["supervisor: couldn't setuid to 65534: Can't drop privilege as nonroot user"], 127, "run with --become"),
        (["couldn't bind HTTP server socket", "error: invalid argument: --x"], 1, "the flag --x"),
        (["all slots are idle"], 137, "lack of memory"),
        (["all slots are idle"], 139, None),
        ([], 1, None),
    ],
)
def test_causes_known_are_explained(lines, code, expected):
    found = causes.explain(lines, code)
    assert found == expected if expected is None else expected in found


HIDDEN_FILE = "E gguf_init_from_file: failed to open GGUF file '/home/me/a.gguf' ({})"


@pytest.mark.parametrize(
    ("lines", "code", "expected"),
    [
        ([HIDDEN_FILE.format("No such file or directory")], 1, "/home/me/a.gguf, but the sandbox of the unit hides it"),
        ([HIDDEN_FILE.format("Permission denied")], 1, "/home/me/a.gguf, but the sandbox of the unit hides it"),
        ([], 203, "/home/me/llama-server, but the sandbox of the unit hides it"),
        (
            ["/x: error while loading shared libraries: libllama.so.0: cannot open shared object file"],
            127,
            "the sandbox of the unit hides the library",
        ),
        ([HIDDEN_FILE.format("No such file or directory").replace("/home/me", "/m")], 1, "/m/a.gguf is missing"),
        (["error: invalid argument: --x"], 1, "the flag --x"),
    ],
)
def test_sandbox_is_named_if_the_file_is_readable_outside(lines, code, expected):
    assert expected in causes.explain(lines, code, "/home/me/llama-server", lambda path: path.startswith("/home/"))


def test_file_is_asked_for_outside_a_sandbox_only():
    assert not machine.Machine(None, "/s").is_readable("/")
    assert machine.Machine(None, "/s", unreadable=lambda paths: []).is_readable("/a")
    assert not machine.Machine(None, "/s", unreadable=lambda paths: paths).is_readable("/a")


def test_failure_text_names_each_server():
    host = FakeHost(
        {
            "a": [(0, ServiceStatus("a", "failed", None, 1, "exit code 1"), None)],
            "b": [(0, running("b"), Probe("ready"))],
            "c": [(0, ServiceStatus("c", "stopped"), None)],
        }
    )
    outcomes = wait(host, [server(), server("b", 8081), server("c", 8082)])
    found = wait_module.summary([outcome.as_dict() for outcome in outcomes])
    assert (found["complete"], found["ready"], found["failed_servers"]) == (True, 1, ["a", "c"])
    text = found["msg"]
    assert text.startswith(
        "1 of 3 servers are ready\na (port 8080): exit code 1; this llama-server does not know the flag --x"
    )
    assert "\n  its last lines:\n    error: invalid argument: --x" in text
    assert "\nc (port 8082): it is stopped" in text
    assert "8081" not in text


def test_status_json_has_exactly_the_documented_keys():
    status = status_module.status_json(
        [
            server(api_key_file="/k", memory={"slot_context": 4096}, build=11669),
            *(server("b", 8081), server("c", 8082)),
            server("d", 8083, on_demand={"idle_stop": 900, "pinned": False}),
        ],
        {
            "a": running(restarts=2),
            "b": ServiceStatus("b", "failed", None, 1, "exit code 1"),
            "c": running("c"),
            "d": running("d"),
        },
        {"a": Probe("ready"), "c": Probe("not_listening"), "d": Probe("loading")},
        {"a": Process(42, 1, "a", (), {}, 0, 0.0, 61.7, 4096)},
        {
            "a": {"pid": 42, "tokens_per_second": 26.5, "memory": {"planned_bytes": 5, "loaded_bytes": 6, "rows": []}},
            "b": {"stuck_stop": {"signal": "SIGKILL", "seconds": 30.1}},
            "c": {"pid": 41, "tokens_per_second": 26.5, "memory": {"planned_bytes": 5, "loaded_bytes": 6, "rows": []}},
        },
        ["a"],
        profile="production",
    )
    assert list(status) == ["schema_version", "collection_version", "total_servers", "ready_servers", "servers"]
    assert (status["total_servers"], status["ready_servers"]) == (4, 1)
    assert status["servers"][0] == {
        "name": "a",
        "model_id": "a",
        "display_name": "A",
        "port": 8080,
        "pid": 42,
        "is_ready": True,
        "tier": "Q4",
        "state": "ready",
        "uptime_seconds": 61,
        "rss_bytes": 4096,
        "restart_pending": True,
        "restarts": 2,
        "threads": None,
        "tokens_per_second": 26.5,
        "memory": {"planned_bytes": 5, "loaded_bytes": 6, "rows": []},
        "kind": "model",
        "bind_address": "127.0.0.1",
        "context_size": 4096,
        "needs_api_key": True,
        "has_tls": False,
        "profile": "production",
        "build": 11669,
    }
    assert [entry["state"] for entry in status["servers"]] == ["ready", "failed", "starting", "loading"]
    assert [entry.get("on_demand") for entry in status["servers"]] == [None, None, None, True]
    assert "memory" not in status["servers"][2]
    assert status["servers"][2]["tokens_per_second"] is None
    assert status["servers"][1]["stuck_stop"] == {"signal": "SIGKILL", "seconds": 30.1}
    empty = status_module.status_json([], {}, {}, {}, {})
    assert (empty["total_servers"], empty["ready_servers"], empty["servers"]) == (0, 0, [])


@pytest.mark.parametrize(
    ("host", "asked"),
    [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("[::]", "::1"), ("10.0.0.1", "10.0.0.1"), ("", "127.0.0.1")],
)
def test_servers_on_all_addresses_are_probed_on_loopback(host, asked):
    assert probe_module.asked_address(host) == asked


class Answers:
    """A server in this process with given answers: path → (status, JSON), seconds to hang, or a barrier."""

    def __init__(self, answers):
        outer = self
        self.answers, self.headers = answers, []

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                outer.headers.append((self.path, self.headers.get("Authorization")))
                answer = outer.answers.get(self.path, (404, {}))
                if isinstance(answer, float):
                    time.sleep(answer)
                    answer = (200, {})
                if isinstance(answer, threading.Barrier):
                    answer.wait(10)
                    answer = (200, {})
                body = json.dumps(answer[1]).encode()
                self.send_response(answer[0])
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = answer

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


class Guarded(Answers):
    """Refuses every path but /health without a bearer key, as llama-server does with a key file."""

    def __init__(self, answers, without_key=401):
        super().__init__(answers)
        handler = self.http.RequestHandlerClass
        answer = handler.do_GET

        def guarded(request):
            if request.path == "/health" or request.headers.get("Authorization"):
                return answer(request)
            self.headers.append((request.path, None))
            request.send_response(without_key)
            request.send_header("Content-Length", "0")
            return request.end_headers()

        handler.do_GET = handler.do_POST = guarded


OK = {"/health": (200, {"status": "ok"}), "/props": (200, {"model_path": "/m/a.gguf"})}


@pytest.mark.parametrize(
    ("answers", "options", "state", "detail"),
    [
        (OK, {}, "ready", None),
        ({"/health": (503, {"error": {"message": "Loading model"}})}, {}, "loading", None),
        ({"/health": (500, {})}, {}, "unhealthy", "/health answered 500"),
        (
            {**OK, "/props": (200, {"model_path": "/m/b.gguf"})},
            {},
            "wrong_identity",
            "serves /m/b.gguf, planned is /m/a.gguf",
        ),
        ({**OK, "/props": (401, {})}, {}, "ready", None),
        ({**OK, "/props": (200, [])}, {}, "ready", None),
        ({"/health": 0.5}, {"timeout": 0.1}, "hung", "no answer within 0.1 s"),
        ({**OK, "/props": 0.5}, {"timeout": 0.1}, "hung", "a further request failed"),
        ({**OK, "/completion": (200, {"content": "x"})}, {"deep": True}, "ready", None),
        (
            {**OK, "/completion": (500, {"error": "CUDA"})},
            {"deep": True},
            "unhealthy",
            '/completion answered 500: {"error": "CUDA"}',
        ),
    ],
)
def test_probe_returns_state_and_detail(answers, options, state, detail):
    answering = Answers(answers)
    try:
        found = probe_module.probe(server(port=answering.http.server_port), os.getpid(), **options)
    finally:
        answering.close()
    assert found.state == state
    assert found.detail is None if detail is None else detail in found.detail


# Of build 11669.
TIMINGS = {"prompt_n": 7, "predicted_n": 8, "predicted_ms": 32.4, "predicted_per_second": 246.9}


@pytest.mark.parametrize(
    ("timings", "expected"),
    [
        (TIMINGS, 216.0),
        ({**TIMINGS, "predicted_n": 1}, None),
        ({**TIMINGS, "predicted_ms": 0}, None),
        ({**TIMINGS, "predicted_ms": 1e-300}, None),
        ({**TIMINGS, "predicted_ms": float("nan")}, None),
        ({**TIMINGS, "predicted_n": 10**400}, None),
        ({**TIMINGS, "predicted_ms": "fast"}, None),
        ([], None),
        (None, None),
    ],
)
def test_deep_check_measures_the_speed_of_generation(timings, expected):
    answering = Answers({**OK, "/completion": (200, {"content": "x", "timings": timings})})
    try:
        found = probe_module.probe(server(port=answering.http.server_port), os.getpid(), deep=True)
    finally:
        answering.close()
    assert (found.state, found.tokens_per_second) == ("ready", expected)


@pytest.mark.parametrize(
    ("kind", "path", "answer"),
    [
        ("embedding", "/v1/embeddings", {"data": []}),
        ("reranker", "/v1/rerank", {"results": []}),
        ("decision", "/v1/systemone", {"answers": {"greeting": {"noul": 0.9}}}),
    ],
)
def test_deep_check_uses_endpoint_of_kind(kind, path, answer):
    answering = Answers({**OK, path: (200, answer)})
    try:
        found = probe_module.probe(server(port=answering.http.server_port, kind=kind), os.getpid(), deep=True)
    finally:
        answering.close()
    assert (found.state, found.detail) == ("ready", None)
    assert isinstance(found.seconds, float)


@pytest.mark.parametrize(("given", "patience"), [(300.0, 300.0), (2.0, 2.0), (None, probe_module.DEEP_TIMEOUT)])
def test_deep_check_timeout_is_the_callers(monkeypatch, given, patience):
    seen = {}
    monkeypatch.setattr(machine, "probe_all", lambda servers, pids, **options: seen.update(options))
    machine.Machine(None, "/s", True, given).probe([], {})
    assert seen == {"deep": True, "deep_timeout": patience}


@pytest.mark.parametrize(
    ("answer", "pauses"),
    [(OK["/health"], 0), ((503, {}), 13)],
    ids=["ready at once", "still loading"],
)
def test_next_start_waits_until_ready_or_pause(answer, pauses):
    http, clock = Answers({"/health": answer}), FakeHost({})
    slept = []
    pace = pace_module.Pace(clock.clock, lambda seconds: (slept.append(seconds), clock.sleep(seconds)))
    try:
        first, second = (server(name, port=http.http.server_address[1]) for name in "ab")
        pace.on_started(first, False)
        assert len(slept) == pauses
        assert sum(slept) <= pace_module.LOAD_PATIENCE + pace_module.LOAD_POLL
        # It is ready at the next probe, and reported with the time since its own start.
        http.answers["/health"] = OK["/health"]
        clock.sleep(1.0)
        pace.on_started(second, False)
        assert pace.ready == {"a": 0.0 if pauses == 0 else round(sum(slept) + 1.0, 2), "b": 0.0}
        # After the last start there is nothing to wait for.
        pace.on_started(server("c", port=1), True)
        assert len(slept) == pauses
    finally:
        http.close()


def test_probe_of_foreign_process_is_not_healthy():
    answering = Answers(OK)
    planned = subprocess.Popen(["sleep", "60"])
    try:
        found = probe_module.probe(server(port=answering.http.server_port), planned.pid)
    finally:
        answering.close()
        planned.kill()
        planned.wait()
    assert found.state == "wrong_identity"
    assert f"is held by pid {os.getpid()} (" in found.detail
    # It is looked at before anything is sent.
    assert answering.headers == []


def test_listener_of_another_user_that_only_root_sees_is_foreign(monkeypatch):
    hidden = processes_module.Listener(8080, ("127.0.0.1",), None, None, (), (4711,))
    monkeypatch.setattr(probe_module, "listeners", lambda ports, first: {8080: hidden})
    found = probe_module.probe(server(port=8080), os.getpid())
    assert (found.state, found.detail) == (
        "wrong_identity",
        "port 8080 is held by a process of another user (uid 4711)",
    )


@pytest.mark.parametrize(
    ("without_key", "state"), [(401, "ready"), (403, "ready"), (200, "unprotected"), (404, "unprotected")]
)
def test_probe_wants_request_without_key_refused(tmp_path, without_key, state):
    key = tmp_path / "keys"
    key.write_text("# first a comment\n\nsecret-1\nsecret-2\n")
    answering = Guarded(OK, without_key)
    try:
        found = probe_module.probe(server(port=answering.http.server_port, api_key_file=str(key)), os.getpid())
    finally:
        answering.close()
    assert found.state == state
    assert answering.headers[1:] == [("/props", "Bearer secret-1"), ("/props", None)]


@pytest.mark.parametrize("pids", [{}, {"a": None}])
def test_server_without_known_process_gets_no_request(tmp_path, pids):
    key = tmp_path / "keys"
    key.write_text("secret\n")
    listening = Guarded(OK, 401)
    try:
        found = probe_module.probe_all([server(port=listening.http.server_port, api_key_file=str(key))], pids)
    finally:
        listening.close()
    assert (found["a"].state, found["a"].detail) == ("not_listening", probe_module.NO_PROCESS)
    assert listening.headers == []


def test_ended_process_with_unseen_listener_on_its_port_gets_no_request(monkeypatch):
    monkeypatch.setattr(probe_module, "owner_of", lambda _pid: None)
    unseen = processes_module.Listener(8080, ("127.0.0.1",), None, None, (), (os.getuid(),))
    monkeypatch.setattr(probe_module, "listeners", lambda *_ports, **_more: {8080: unseen})
    monkeypatch.setattr(probe_module, "ask_health", None)
    assert probe_module.probe(server(port=8080), 4711).state == "not_listening"


def test_unprotected_server_fails_at_once_and_is_stopped():
    found = Probe("unprotected", "it has an API key file, but answered a request without a key with 200")
    host = FakeHost({"a": [(0, running(), found)], "b": [(0, running("b"), Probe("ready"))]})
    outcomes = wait(host, [server(), server("b", 8081)])
    assert [(outcome.state, outcome.is_settled) for outcome in outcomes] == [("unprotected", True), ("ready", True)]
    assert host.now == 0
    assert wait_module.to_be_stopped(outcomes, {"a": running(), "b": running("b")}) == ["a"]
    found = wait_module.summary([outcome.as_dict() for outcome in outcomes])
    assert found["unprotected_servers"] == ["a"]
    assert "answered a request without a key with 200" in found["msg"]


def test_probes_run_in_parallel():
    # Each answers once all have a request.
    all_asked = threading.Barrier(4)
    answering = [Answers({**OK, "/health": all_asked}) for _ in range(4)]
    servers = [server(str(number), entry.http.server_port) for number, entry in enumerate(answering)]
    servers.append(server("none", 1))
    try:
        pids = {entry["name"]: os.getpid() for entry in servers}
        found = probe_module.probe_all(servers, pids, timeout=20)
    finally:
        for entry in answering:
            entry.close()
    assert [found[name].state for name in "0123"] == ["ready"] * 4
    assert found["none"].state == "not_listening"


def test_unknown_server_names_are_refused():
    record = {"servers": [server("a"), server("b")]}
    assert [entry["name"] for entry in record_module.chosen(record, ["b"])] == ["b"]
    assert len(record_module.chosen(record, [])) == 2
    with pytest.raises(record_module.UnknownServerError, match="No server x is deployed here; there are: a, b"):
        record_module.chosen(record, ["x", "a"])
