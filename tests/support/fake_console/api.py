# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The console's API in front of a fleet that does not exist, with the page: `python -m support.fake_console --port 8000`."""

from __future__ import annotations

import json
import mimetypes
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from . import documents
from .fleet import Fleet, Message, before, now
from .jobs import add_past_jobs, play

STATIC = Path(__file__).resolve().parents[3] / "console/src/magi_llama_console/static"
TOKEN = "fake-token"
OPERATOR = {"name": "operator", "role": "operate", "expires_at": None}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class Problem(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status: int, title: str, **more: Any) -> None:
        super().__init__(title)
        empty = {"detail": "", "fix": "", "nearest": [], "instance": ""}
        self.document = {"type": "about:blank", "title": title, "status": status, **empty, **more}


class FakeApi(ThreadingHTTPServer):
    """Serves until `shutdown`; the port is in `server_address`."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, fleet: Fleet, port: int = 0, pace: float = 0.2) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.fleet = fleet
        self.pace = pace
        self.needs_token = False
        # Streams end and requests are refused while this is set: what the page sees when the console is down.
        self.is_cut_off = threading.Event()
        self.changes_per_second = 0.0
        self.is_closed = threading.Event()
        threading.Thread(target=self._change, daemon=True).start()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def _change(self) -> None:
        due = time.monotonic()
        while not self.is_closed.wait(0.02):
            if not self.changes_per_second:
                due = time.monotonic()
            while self.changes_per_second and due < time.monotonic():
                self.fleet.change_something()
                due += 1 / self.changes_per_second

    def server_close(self) -> None:
        self.is_closed.set()
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves is not an error."""


class Handler(BaseHTTPRequestHandler):
    """One request; answers are JSON, or files of the page."""

    server: FakeApi
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""

    def _send(self, status: int, body: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _json(self, document: Any, status: int = 200, **headers: str) -> None:
        self._send(status, json.dumps(document).encode(), "application/json", **headers)

    def _body(self) -> dict[str, Any]:
        length = int(self.headers.get("Content-Length") or 0)
        return json.loads(self.rfile.read(length) or b"{}")

    def _answer(self) -> None:
        url = urlsplit(self.path)
        if not url.path.startswith("/api/v1/"):
            self._file(url.path)
            return
        path = [unquote(part) for part in url.path.removeprefix("/api/v1/").split("/")]
        body = self._body() if self.command in {"POST", "PUT", "DELETE"} else {}
        try:
            if self.server.is_cut_off.is_set():
                self.close_connection = True
                self.connection.close()
                return
            has_cookie = "magi_session=" in (self.headers.get("Cookie") or "")
            if path == ["session"]:
                self._session(body)
            elif self.server.needs_token and not has_cookie:
                raise Problem(401, "Sign in first")
            elif path[-1] == "events":
                self._stream(path[1] if path[0] == "jobs" else None)
            else:
                self._route(path, body)
        except Problem as problem:
            self._send(problem.document["status"], json.dumps(problem.document).encode(), "application/problem+json")

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def _file(self, path: str) -> None:
        file = (STATIC / path.lstrip("/")).resolve() if path != "/" else STATIC / "index.html"
        if not file.is_relative_to(STATIC) or not file.is_file():
            self._json({"title": "Not found", "status": 404, "type": "about:blank"}, 404)
            return
        self._send(200, file.read_bytes(), mimetypes.guess_type(file.name)[0] or "application/octet-stream")

    def _session(self, body: dict[str, Any]) -> None:
        if self.command == "POST":
            if body.get("token") != TOKEN:
                raise Problem(
                    401, "This token is not known", fix="Use one of magi-llama-console tokens list, or make one."
                )
            self._json(OPERATOR, Set_Cookie="magi_session=1; HttpOnly; SameSite=Strict; Path=/")
        elif self.command == "DELETE":
            self.server.needs_token = True
            self._send(204, b"", "application/json", Set_Cookie="magi_session=; Max-Age=0; Path=/")
        elif self.server.needs_token and "magi_session=1" not in (self.headers.get("Cookie") or ""):
            raise Problem(401, "Sign in first")
        else:
            self._json(OPERATOR)

    def _stream(self, job: str | None) -> None:
        fleet = self.server.fleet
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        last = self.headers.get("Last-Event-ID")
        at = int(last) if last else 0 if job else len(fleet.messages)
        self.wfile.write(b": open\n\n")
        while not self.server.is_cut_off.is_set() and not self.server.is_closed.is_set():
            with fleet.lock:
                if len(fleet.messages) <= at:
                    fleet.lock.wait(0.2)
                fresh, first = fleet.messages[at:], at
                at = len(fleet.messages)
            mine = [(first + i + 1, one) for i, one in enumerate(fresh) if job in (None, one.run)]
            if job is None:
                mine = [(place, one) for place, one in mine if one.name != "end"]
            self.wfile.write("".join(message(place, one) for place, one in mine).encode())
            if any(one.name == "end" for _, one in mine):
                return

    def _route(self, path: list[str], body: dict[str, Any]) -> None:
        fleet = self.server.fleet
        with fleet.lock:
            as_of = {"as_of": now(), "source": "events"}
        simple: dict[str, Callable[[], Any]] = {
            "hosts": lambda: {**as_of, "hosts": list(fleet.hosts.values())},
            "servers": lambda: {**as_of, "servers": list(fleet.servers.values())},
            "jobs": lambda: {"jobs": sorted(fleet.jobs.values(), key=lambda job: job["created_at"], reverse=True)},
            "profiles": lambda: {"profiles": documents.profiles(fleet)},
            "plans": lambda: {"plans": [documents.plan_head(plan) for plan in fleet.plans.values()]},
            "keys": lambda: {"keys": documents.keys()},
            "audit": lambda: {"entries": documents.audit(fleet)},
            "models": lambda: {**as_of, **documents.models(fleet)},
            "capacity": lambda: {**as_of, "hosts": documents.capacity(fleet)},
        }
        if self.command == "GET" and len(path) == 1 and path[0] in simple:
            with fleet.lock:
                self._json(simple[path[0]]())
        elif self.command == "GET" and path[0] == "servers" and len(path) == 3:
            self._server(*path[1:])
        elif self.command == "PUT" and path[0] == "profiles":
            self._json(documents.save_profile(fleet, path[1], body))
        elif (self.command, path) == ("POST", ["jobs"]):
            self._start(body)
        elif path[0] == "plans":
            self._plan(path[1:], body)
        elif path[0] == "jobs":
            self._job(path[1], path[2:])
        else:
            raise Problem(404, f"{self.command} {self.path} is not part of the API")

    def _plan(self, path: list[str], body: dict[str, Any]) -> None:
        fleet = self.server.fleet
        if not path:
            self._start({**body, "verb": "plan"})
        elif path[0] not in fleet.plans:
            raise Problem(404, f"There is no plan {path[0]}", nearest=list(fleet.plans)[:3], fix="Make a new one.")
        elif len(path) == 1:
            self._json(fleet.plans[path[0]])
        elif fleet.plans[path[0]]["is_outdated"]:
            raise Problem(409, "A host has changed since this plan was made", fix="Make a new plan, and apply that.")
        else:
            fleet.plans[path[0]]["is_outdated"] = True
            self._start({"verb": "site", "limit": list(fleet.plans[path[0]]["hosts"])})

    def _server(self, host: str, name: str) -> None:
        fleet = self.server.fleet
        if (detail := documents.server_detail(fleet, host, name)) is None:
            near = [key for of, key in fleet.servers if of == host][:3]
            raise Problem(404, f"{host} has no server {name}", nearest=near, fix="Open it from the fleet.")
        self._json(detail)

    def _start(self, body: dict[str, Any]) -> None:
        fleet = self.server.fleet
        limit = body.get("limit") or list(fleet.hosts)
        if unknown := [host for host in limit if host not in fleet.hosts]:
            raise Problem(
                422, f"limit: there is no host {unknown[0]}", nearest=list(fleet.hosts)[:2], fix="Name a host."
            )
        variables = {key: body[key] for key in ("servers", "profile", "limit", "output_log") if body.get(key)}
        is_check = bool(body.get("check")) or body["verb"] == "plan"
        job = fleet.add_job(body["verb"], limit, variables=variables, check=is_check)
        threading.Thread(target=play, args=(fleet, job, self.server.pace), daemon=True).start()
        self._json({"job": job}, 202, Location=f"/api/v1/jobs/{job['id']}")

    def _job(self, job: str, rest: list[str]) -> None:
        fleet = self.server.fleet
        if job not in fleet.jobs:
            raise Problem(404, f"Job {job} is not known", fix="Open it from the list of jobs.")
        if not rest:
            self._json({"job": fleet.jobs[job]})
        elif rest == ["cancel"]:
            fleet.change_job(job, state="cancelled", rc=99, ended_at=before(0))
            self._json({"job": fleet.jobs[job]}, 202)
        elif rest == ["output"]:
            lines = [fleet.messages[at].data.get("data", {}).get("text") for at in fleet.job_events.get(job, [])]
            self._send(200, "\n".join(line for line in lines if line).encode(), "text/plain; charset=utf-8")
        else:
            raise Problem(404, "Not part of the API")


def message(place: int, one: Message) -> str:
    """A server-sent event; only events of runs have an id."""
    head = f"event: {one.name}" if one.name else f"id: {place}"
    return f"{head}\ndata: {json.dumps(one.data, separators=(',', ':'))}\n\n"


def serve(hosts: int = 50, servers: int = 4, port: int = 0, pace: float = 0.2) -> FakeApi:
    """Start it in a thread."""
    fleet = Fleet(hosts, servers)
    add_past_jobs(fleet)
    api = FakeApi(fleet, port, pace)
    threading.Thread(target=api.serve_forever, daemon=True).start()
    return api
