# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may do what: tokens, sessions of browsers, the origin of requests, attempts, keys, the audit log, headers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from support.console import RunningConsole, token_of

READING = ("/api/v1/jobs", "/api/v1/jobs/x", "/api/v1/jobs/x/output", "/api/v1/events", "/api/v1/keys", "/api/v1/audit")
CHANGING = (
    ("POST", "/api/v1/jobs", {"verb": "status"}),
    ("POST", "/api/v1/jobs/x/cancel", None),
    ("POST", "/api/v1/keys", {"name": "new"}),
    ("DELETE", "/api/v1/keys/test-read", None),
)


def test_without_token_nothing_is_answered(console: RunningConsole) -> None:
    for path in READING:
        answer = console.anonymous.get(path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
    for method, path, body in CHANGING:
        assert console.anonymous.request(method, path, json=body).status_code == 401, path
    # Not even what a valid request would be.
    assert console.anonymous.post("/api/v1/jobs", json={"verb": "nonsense"}).status_code == 401


def test_role_read_changes_nothing(console: RunningConsole) -> None:
    for method, path, body in CHANGING:
        assert console.read.request(method, path, json=body).status_code == 403, path
    assert console.read.get("/api/v1/jobs").json() == {"jobs": []}


def test_log_of_a_server_is_for_operators_only(
    console: RunningConsole, fake: Callable[..., None], tmp_path: Path
) -> None:
    server = {"name": "x", "model_id": "x", "port": 8080, "state": "ready", "is_ready": True}
    status = {"host": "node1", "type": "status", "data": {"status": {"servers": [server]}}}
    fake(send=[status], wait=str(tmp_path / "go"))
    job = console.submit("status", limit=["node1"])["id"]
    document = {"kind": "status", "hosts": {"node1": {"servers": [{**server, "log": ["a prompt"]}]}}}
    folder = console.data / "jobs" / job
    while not (folder / "request.json").exists():
        time.sleep(0.01)
    (folder / "result.json").write_text(json.dumps(document))
    (tmp_path / "go").touch()
    console.wait(job)
    seen = {}
    for client in (console.operate, console.read):
        of_server = client.get("/api/v1/servers/node1/x").json()
        (of_job,) = client.get(f"/api/v1/jobs/{job}").json()["job"]["result"]["hosts"]["node1"]["servers"]
        assert of_server["log_tail_as_of"] and of_job["name"] == "x"
        seen[client] = (of_server["log_tail"], of_job.get("log"))
    assert seen == {console.operate: (["a prompt"], ["a prompt"]), console.read: (None, None)}


def test_every_path_of_the_api_wants_a_token(console: RunningConsole) -> None:
    paths = console.anonymous.get("/api/v1/openapi.json").json()["paths"]
    assert "/api/v1/jobs/{job_id}/events" in paths
    for path, methods in paths.items():
        for method in methods:
            if path.startswith("/api/v1") and (method, path) != ("post", "/api/v1/session"):
                assert console.anonymous.request(method, path.format_map(Any())).status_code == 401, (method, path)


class Any(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "x"


def test_cookie_of_a_session_is_kept_from_scripts_and_other_sites(console: RunningConsole) -> None:
    answer = console.anonymous.post("/api/v1/session", json={"token": token_of(console.operate)})
    name, _, rest = answer.headers["set-cookie"].partition("=")
    _value, *attributes = [part.strip().lower() for part in rest.split(";")]
    assert {"httponly", "samesite=strict", "path=/"} <= set(attributes)
    cookie = {"cookie": f"{name}={rest.split(';')[0]}"}
    me = httpx.get(f"{console.url}/api/v1/session", headers=cookie).json()
    assert (me["name"], me["role"], me["expires_at"]) == ("test-operate", "operate", answer.json()["expires_at"])
    # The store has its digest only.
    kept = (console.data / "console.db").read_bytes() + (console.data / "console.db-wal").read_bytes()
    cookie_value = rest.split(";")[0]
    assert cookie_value.encode() not in kept and hashlib.sha256(cookie_value.encode()).hexdigest().encode() in kept


def test_change_with_a_cookie_needs_our_origin(console: RunningConsole) -> None:
    browser = console.sign_in(console.operate)
    body = {"verb": "status"}
    for origin in ("https://evil.example", "null", ""):
        refused = browser.post("/api/v1/jobs", json=body, headers={"Origin": origin})
        assert refused.status_code == 403, origin
    assert browser.get("/api/v1/jobs").json() == {"jobs": []}
    assert browser.post("/api/v1/jobs", json=body).status_code == 202
    # Another site cannot sign a browser in either.
    other = {"Origin": "https://evil.example"}
    signed = console.anonymous.post("/api/v1/session", json={"token": token_of(console.read)}, headers=other)
    assert signed.status_code == 403


def test_session_ends_by_sign_out_and_with_its_token(console: RunningConsole) -> None:
    browser = console.sign_in(console.operate)
    cookies = dict(browser.cookies)
    assert browser.delete("/api/v1/session").status_code == 204
    assert httpx.get(f"{console.url}/api/v1/jobs", cookies=cookies).status_code == 401
    reader = console.sign_in(console.read)
    assert reader.get("/api/v1/jobs").status_code == 200
    assert reader.post("/api/v1/jobs", json={"verb": "status"}).status_code == 403
    # Made again at the command line: neither the old token nor its sessions are worth anything.
    console.add_token("test-read", "read")
    assert reader.get("/api/v1/jobs").status_code == 401
    assert console.read.get("/api/v1/jobs").status_code == 401


def test_many_wrong_tokens_of_an_address_are_refused_unseen(console: RunningConsole) -> None:
    answers = [console.anonymous.post("/api/v1/session", json={"token": f"wrong{n}"}).status_code for n in range(11)]
    assert answers == [401] * 10 + [429]
    refused = console.anonymous.post("/api/v1/session", json={"token": "wrong"})
    assert (refused.status_code, int(refused.headers["retry-after"]) <= 61) == (429, True)
    guess = console.anonymous.get("/api/v1/jobs", headers={"Authorization": "Bearer wrong"})
    assert guess.status_code == 429
    # Those who have a token are not locked out by it.
    assert console.sign_in(console.operate).get("/api/v1/jobs").status_code == 200
    assert console.read.get("/api/v1/jobs").status_code == 200


def test_new_key_is_answered_once_and_kept_as_digest(console: RunningConsole) -> None:
    created = console.operate.post("/api/v1/keys", json={"name": "ci", "role": "operate"}).json()
    assert created["key"]["name"] == "ci"
    ours = {"Authorization": f"Bearer {created['token']}"}
    assert console.anonymous.get("/api/v1/session", headers=ours).json()["name"] == "ci"
    names = {key["name"]: key["role"] for key in console.read.get("/api/v1/keys").json()["keys"]}
    assert names == {"test-read": "read", "test-operate": "operate", "ci": "operate"}
    files = b"".join(path.read_bytes() for path in console.data.rglob("*") if path.is_file())
    assert created["token"].encode() not in files
    assert console.operate.post("/api/v1/keys", json={"name": "ci"}).status_code == 409
    assert console.operate.post("/api/v1/keys", json={"name": "../x"}).status_code == 422
    assert console.operate.delete("/api/v1/keys/ci").status_code == 204
    assert console.anonymous.get("/api/v1/session", headers=ours).status_code == 401
    last = console.operate.delete("/api/v1/keys/test-operate")
    assert (last.status_code, "last key" in last.json()["detail"]) == (409, True)
    unknown = console.operate.delete("/api/v1/keys/test-reat")
    assert (unknown.status_code, unknown.json()["nearest"][0]) == (404, "test-read")


def test_audit_log_says_who_did_what_and_cannot_be_changed(console: RunningConsole) -> None:
    job = console.submit("stop", servers=["all"], limit=["node1"])
    console.operate.post("/api/v1/keys", json={"name": "ci"})
    console.sign_in(console.read)
    console.anonymous.post("/api/v1/session", json={"token": "wrong"})
    entries = console.read.get("/api/v1/audit").json()["entries"]
    assert [(one["by"], one["action"], one["target"]) for one in entries] == [
        ("", "session.refused", ""),
        ("test-read", "session.create", ""),
        ("test-operate", "key.create", "ci"),
        ("test-operate", "job.create", job["id"]),
    ]
    assert entries[-1]["detail"] == {"verb": "stop", "servers": ["all"], "limit": ["node1"]}
    assert entries[-1]["address"] == "127.0.0.1"
    with contextlib.closing(sqlite3.connect(console.data / "console.db")) as db:
        for statement in ("delete from audit", "update audit set actor = 'else'"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                db.execute(statement)


def test_answers_have_strict_headers(console: RunningConsole) -> None:
    for path in ("/health", "/api/v1/jobs", "/nowhere"):
        headers = console.read.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert "server" not in headers


def test_large_request_is_refused(console: RunningConsole) -> None:
    answer = console.operate.post("/api/v1/jobs", content=b"x" * (1 << 20) + b"x")
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")

    def parts() -> object:
        for _ in range(40):
            yield b"x" * (1 << 15)

    assert console.operate.post("/api/v1/jobs", content=parts()).status_code == 413  # type: ignore[arg-type]
    assert console.read.get("/api/v1/jobs").status_code == 200
