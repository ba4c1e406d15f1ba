# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gateway with real servers and a real HAProxy: names, bodies, errors, keys, and changes under load."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.gateway import CLIENTS, KEY, OTHER_KEY, Q2, Q3, Q4, SERVER_KEY, Gateway
from support.load import under_load

SECRET_PATHS = ("/slots", "/props", "/metrics", "/tools", "/models/load", "/cors-proxy", "/v1/models/../slots", "/")


def error_of(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert body.keys() == {"error"}, body
    assert body["error"].keys() == {"message", "type", "param", "code"}
    return answer.status_code, body["error"]["code"]


@pytest.mark.parametrize(("name", "model"), [(Q3, Q3), ("Q2", Q2), ("tiny-llama", Q4), ("best", Q4)])
def test_request_reaches_model_of_its_name(gateway: Gateway, name: str, model: str) -> None:
    answer = gateway.complete(name)
    assert (answer.status_code, answer.headers["x-magi-model"]) == (200, model)
    assert answer.json()["model"] == model


def test_split_name_is_shared_by_its_models(gateway: Gateway) -> None:
    assert set(Counter(gateway.served_by("mix") for _ in range(24))) == {Q2, Q4}


def test_list_has_models_that_are_ready(gateway: Gateway) -> None:
    with gateway.client() as client:
        listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == [Q2, Q3, Q4]
    assert listed["data"][0]["meta"] == {"display_name": "Tiny Llama (Q2_K)", "tier": "Q2", "kind": "model"}


BODIES = {
    "model last": b'{"prompt": "a", "max_tokens": 1, "model": "Q2"}',
    "nested": b'{"metadata": {"model": "Q4"}, "prompt": "a", "max_tokens": 1, "model": "Q2"}',
    "in a text": b'{"prompt": "\\"model\\": \\"Q4\\"", "max_tokens": 1, "model": "Q2"}',
    "escaped": b'{"prompt": "a", "max_tokens": 1, "model": "\\u0051\\u0032"}',
    "spaces": b'\n{ "prompt" :"a",\t"max_tokens": 1 , "model"  :  "Q2" }',
    "10 MB before model": b'{"prompt": "a", "max_tokens": 1, "unknown": "' + b"x" * 10_000_000 + b'", "model": "Q2"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_model_is_found_in_body(gateway: Gateway, body: bytes) -> None:
    with gateway.client() as client:
        answer = client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers.get("x-magi-model")) == (200, Q2), answer.text


def test_model_is_found_in_chunked_body(gateway: Gateway) -> None:
    def parts() -> Iterator[bytes]:
        for part in (b'{"prompt": "a", "max_to', b'kens": 1, "mod', b'el": "Q2"}'):
            yield part
            time.sleep(0.05)

    with gateway.client() as client:
        answer = client.post("/v1/completions", content=parts(), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers.get("x-magi-model")) == (200, Q2), answer.text


def test_model_is_found_in_form_and_header(gateway: Gateway) -> None:
    with gateway.client() as client:
        form = client.post("/v1/audio/transcriptions", data={"model": "Q2"}, files={"file": ("a.wav", b"RIFF" * 9)})
        header = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers={"X-Model": Q3})
    # The tiny models hear nothing; the answer is their server's.
    assert form.headers["x-magi-model"] == Q2
    assert (header.status_code, header.headers["x-magi-model"]) == (200, Q3)


def test_errors_have_the_form_of_openai(gateway: Gateway) -> None:
    with gateway.client() as client:
        assert error_of(client.post("/v1/completions", json={"prompt": "a"})) == (400, "missing_model")
        unknown = client.post("/v1/completions", json={"model": 'no "such"\n', "prompt": "a"})
        assert error_of(unknown) == (404, "model_not_found")
        assert all(name in unknown.json()["error"]["message"] for name in (Q2, Q3, Q4, "best", 'no "such"'))
        assert error_of(client.get("/v1/completions")) == (405, "method_not_allowed")
        assert error_of(client.post("/v1/models", json={})) == (405, "method_not_allowed")
        gzip = client.post("/v1/completions", content=b"x", headers={"Content-Encoding": "gzip"})
        assert error_of(gzip) == (415, "unsupported_encoding")
        # HAProxy answers as soon as it knows, so that a client may see its connection end while it still sends.
        large = client.post("/v1/completions", content=b'{"prompt": "' + b"x" * 17_000_000 + b'", "model": "Q2"}')
        assert error_of(large) == (413, "request_too_large")


@pytest.mark.parametrize("path", SECRET_PATHS)
def test_other_paths_of_servers_are_unreachable(gateway: Gateway, path: str) -> None:
    with gateway.client() as client:
        for method in ("GET", "POST"):
            assert error_of(client.request(method, path)) == (404, "not_found")


def test_key_decides_who_may_ask_what(gateway: Gateway) -> None:
    with gateway.client(None) as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert error_of(client.get("/v1/models")) == (401, "invalid_api_key")
        assert client.get("/v1/models", headers={"X-Api-Key": KEY}).status_code == 200
    assert error_of(gateway.complete(Q2, key="wrong")) == (401, "invalid_api_key")
    # The servers' own key opens nothing here, and no client sees it.
    assert error_of(gateway.complete(Q2, key=SERVER_KEY)) == (401, "invalid_api_key")
    assert error_of(gateway.complete(Q4, key=OTHER_KEY)) == (403, "model_not_allowed")
    codes = [gateway.complete(Q2, key=OTHER_KEY).status_code for _ in range(8)]
    assert codes[0] == 200
    assert codes[-1] == 429
    assert gateway.complete(Q2).status_code == 200


def test_keys_change_without_reload(gateway: Gateway) -> None:
    worker = gateway.admin.pid()
    gateway.set(gateway_api_keys=[CLIENTS[0], {"name": "carol", "key": "gateway-key-of-carol"}])
    gateway.bed.run("gateway").expect("changed while running")
    assert gateway.complete(Q2, key=OTHER_KEY).status_code == 401
    assert gateway.complete(Q2, key="gateway-key-of-carol").status_code == 200
    assert gateway.admin.pid() == worker
    assert gateway.bed.run("gateway").changed == 0


def test_no_key_is_in_readable_files_or_output(gateway: Gateway) -> None:
    gateway.set(gateway_max_queue=63)
    shown = gateway.bed.run("gateway", "--diff", "-vvv").output
    gateway.set(gateway_max_queue=64)
    shown += gateway.bed.run("gateway", "--diff", "-vvv").output
    files = [path for path in gateway.state.rglob("*") if path.is_file()]
    readable = [path for path in files if path.stat().st_mode & 0o007 and path.parent.stat().st_mode & 0o007]
    texts = [shown, *(path.read_text(errors="replace") for path in readable)]
    for key in (KEY, OTHER_KEY, SERVER_KEY):
        assert not any(key in text for text in texts)
    # Clients' keys are nowhere, not even in files that only the gateway reads.
    assert not any(key in path.read_text(errors="replace") for path in files for key in (KEY, OTHER_KEY))


def test_gateway_that_would_be_open_is_refused(gateway: Gateway) -> None:
    gateway.bed.run("gateway")
    worker = gateway.admin.pid()
    gateway.set(gateway_host="0.0.0.0", gateway_api_keys=[])
    gateway.bed.run("gateway", code=2).expect("gateway_api_keys is empty")
    gateway.set(gateway_api_keys=CLIENTS)
    gateway.bed.run("gateway", code=2).expect("gateway_tls_certificate is not set")
    gateway.set(gateway_tls_certificate="/none.pem")
    gateway.bed.run("gateway", code=2).expect("gateway_tls_certificate /none.pem cannot be read on the gateway")
    broken = gateway.bed.root / "broken.pem"
    broken.write_text("not a certificate\n")
    gateway.set(gateway_tls_certificate=str(broken))
    refused = gateway.bed.run("gateway", code=2)
    refused.expect("HAProxy refuses the configuration; the one in use is unchanged", "certificate.pem")
    gateway.set(gateway_host="127.0.0.1", gateway_tls_certificate="")
    assert gateway.admin.pid() == worker
    run = gateway.bed.run("gateway", "--diff")
    assert run.changed == 0, run.output
    assert gateway.served_by(Q2) == Q2


def test_best_model_that_is_ready_answers(gateway: Gateway) -> None:
    gateway.bed.run("stop", "-e", f"servers={Q4},{Q4}-2")
    deadline = time.monotonic() + 2
    while (answer := gateway.complete("tiny-llama")).status_code != 200:
        assert time.monotonic() < deadline, answer.text
    assert answer.headers["x-magi-model"] == Q3
    away = gateway.complete(Q4)
    assert error_of(away) == (503, "model_not_ready")
    assert away.headers["retry-after"] == "2"
    with gateway.client() as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [Q2, Q3]
    gateway.bed.run("start", "-e", "servers=all")
    gateway.wait_up(4)


def test_killed_server_costs_no_other_request(gateway: Gateway) -> None:
    os.kill(gateway.bed.pids()[Q4], signal.SIGKILL)
    assert [gateway.complete(Q4).status_code for _ in range(20)] == [200] * 20
    gateway.wait_up(4)


def test_killed_server_cuts_its_stream_and_the_next_request_goes_elsewhere(gateway: Gateway) -> None:
    def sessions() -> dict[str, int]:
        rows = gateway.admin.statistics()
        return {name: int(rows[gateway.server(name)]["stot"]) for name in (Q4, f"{Q4}-2")}

    def has_request(name: str) -> bool:
        return int(gateway.admin.statistics()[gateway.server(name)]["scur"]) > 0

    with gateway.client() as client, gateway.stream(Q4) as stream:
        [killed] = [name for name in (Q4, f"{Q4}-2") if has_request(name)]
        [other] = {Q4, f"{Q4}-2"} - {killed}
        # Its connection is there.
        client.get("/v1/models")
        before, pid = sessions(), gateway.bed.pids()[killed]
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        stream.slow.stop()
        answer = client.post("/v1/completions", json={"model": Q4, "prompt": "a", "max_tokens": 2})
        assert answer.status_code == 200, answer.text
        assert time.monotonic() - began < 1
        assert sessions()[other] == before[other] + 1
        # Not as if it were complete.
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
            assert "data: [DONE]" not in list(stream.lines)
    gateway.wait_up(4)


def test_killed_gateway_comes_back(gateway: Gateway) -> None:
    worker = gateway.admin.pid()
    assert worker
    os.kill(worker, signal.SIGKILL)
    assert gateway.admin.wait_for_worker(worker, 10)
    gateway.wait_up(4)
    assert gateway.served_by(Q2) == Q2


def test_stream_outlives_reload(gateway: Gateway) -> None:
    gateway.set(gateway_max_queue=63)
    with gateway.stream(Q4) as stream:
        gateway.bed.run("gateway").expect("reloaded")
        assert stream.ends_whole()
    gateway.set(gateway_max_queue=64)


def test_changes_under_load_lose_no_request(gateway: Gateway, tmp_path: Path) -> None:
    """An instance leaves and comes back, settings are reloaded, and every request gets its model's answer."""
    with under_load(gateway.url, (Q2, Q3, Q4), KEY, tmp_path / "stop") as answers:
        gateway.set(gateway_max_queue=62)
        gateway.bed.run("gateway").expect("reloaded")
        gateway.admin.do(f"set server {Q4}/bed_{gateway.bed.port} state maint")
        gateway.admin.do(f"set server {Q4}/bed_{gateway.bed.port} state ready")
        gateway.set(gateway_max_queue=64)
        gateway.bed.run("gateway").expect("reloaded")
    assert answers.outcomes.keys() == {"ok"}, answers.outcomes
    assert answers.outcomes["ok"] > 50


def test_configuration_that_was_not_taken_is_reloaded_whole(gateway: Gateway) -> None:
    """A run that ended between writing and applying leaves a configuration that HAProxy does not have."""
    gateway.bed.run("gateway")
    (gateway.state / "applied").unlink()
    # By itself this would be a change of maps.
    gateway.set(gateway_api_keys=CLIENTS[:1])
    gateway.bed.run("gateway").expect("reloaded")
    assert gateway.bed.run("gateway").changed == 0


def test_server_that_joins_needs_no_reload(gateway: Gateway) -> None:
    gateway.set(profile="three")
    gateway.bed.run("site").expect("changed while running, 3 servers of 3 models")
    worker = gateway.admin.pid()
    gateway.set(profile="four")
    gateway.bed.run("site").expect("changed while running, 4 servers of 3 models")
    assert gateway.admin.pid() == worker
    gateway.wait_up(4)


def test_model_that_leaves_is_unknown(gateway: Gateway) -> None:
    gateway.set(profile="two")
    gateway.bed.run("site").expect("reloaded, 2 servers of 2 models")
    assert gateway.complete(Q4).status_code == 404
    assert gateway.served_by("tiny-llama") == Q3


def test_check_mode_shows_change_and_changes_nothing(gateway: Gateway) -> None:
    before = {path: path.read_bytes() for path in sorted(gateway.state.glob("config/*"))}
    gateway.set(gateway_max_queue=61)
    run = gateway.bed.run("gateway", "--check", "--diff")
    gateway.set(gateway_max_queue=64)
    run.expect("ge 61", "ge 64")
    assert {path: path.read_bytes() for path in sorted(gateway.state.glob("config/*"))} == before
    assert gateway.bed.run("gateway").changed == 0


def test_metrics_are_per_model(gateway: Gateway) -> None:
    gateway.complete(Q2)
    text = httpx.get(f"{gateway.metrics}/metrics", trust_env=False).text
    assert f'haproxy_backend_http_responses_total{{proxy="{Q2}",code="2xx"}}' in text
    with gateway.client() as client:
        assert error_of(client.get("/metrics")) == (404, "not_found")


def test_log_has_client_and_model_and_no_prompt(gateway: Gateway) -> None:
    log = gateway.state / "log/gateway.log"
    # Lines of the requests before may still be on their way: only Q4 is asked for here, and once.
    before = log.stat().st_size
    gateway.complete(Q4, prompt="a secret prompt")
    deadline = time.monotonic() + 30
    while Q4 not in (added := log.read_bytes()[before:].decode()) or not added.endswith("\n"):
        assert time.monotonic() < deadline, added
        time.sleep(0.1)
    lines = [json.loads(line) for line in added.splitlines() if line.startswith("{")]
    assert ("alice", Q4, 200) in [(line["client"], line["model"], line["status"]) for line in lines]
    assert "secret prompt" not in log.read_text()
    assert KEY not in log.read_text()


def test_verify_asks_gateway_for_every_model(gateway: Gateway) -> None:
    through = ("-e", "verify_through=gateway")
    run = gateway.bed.run("verify", *through, "-e", f"verify_api_key={KEY}")
    run.expect(*(f"{model} through {gateway.url}: ok in" for model in (Q2, Q3, Q4)), "streamed in")
    document = gateway.bed.root / "verify.json"
    gateway.bed.run("verify", *through, "-e", f"verify_api_key={KEY}", "-e", f"output_file={document}")
    host = json.loads(document.read_text())["hosts"]["bed"]
    assert (host["url"], host["total_models"], host["answered_models"]) == (gateway.url, 3, 3)
    assert [(model["name"], model["via"], model["error"]) for model in host["models"]] == [
        (model, "controller", None) for model in (Q2, Q3, Q4)
    ]
    by_host = gateway.bed.run("verify", *through, "-e", f"verify_api_key={KEY}", "-e", "verify_from=host")
    by_host.expect(f"{Q4} through {gateway.url}: ok in")
    without = gateway.bed.run("verify", *through, code=2)
    without.expect("0 of 3 models answered", "set verify_api_key to the key of a client in gateway_api_keys")
    bob = gateway.bed.run("verify", *through, "-e", f"verify_api_key={OTHER_KEY}", code=2)
    bob.expect("use the key of a client of all models")
    # The servers themselves are still what plain verify asks.
    gateway.bed.run("verify", "-e", f"verify_api_key={SERVER_KEY}").expect(f"{Q4}-2 port")
