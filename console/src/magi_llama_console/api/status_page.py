# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""/status: hosts and servers as a plain page without script, for terminals, old browsers and a first look."""

from __future__ import annotations

import urllib.parse
from collections.abc import Sequence
from html import escape
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse

from ..console import Console
from ..fleet.facts import Host
from .deps import ConsoleDep
from .fleet_answers import servers_of
from .problems import Problem
from .security import authenticate
from .v1.session import SignIn, sign_in

router = APIRouter(include_in_schema=False)
STYLE = Path(__file__).with_name("plain.css")
COLUMNS = ("Host", "Server", "Model", "Tier", "Port", "State", "Memory", "Planned", "Restarts", "Tokens/s", "Why not")
# Besides the word, so that a state is never known by its colour alone.
MARKS = {"ready": "●", "sleeping": "◐", "starting": "◌", "loading": "◌", "stopped": "○"}


@router.get("/plain.css")
async def style() -> FileResponse:
    return FileResponse(STYLE, media_type="text/css", headers={"Cache-Control": "max-age=300"})


@router.get("/status")
async def status_page(request: Request, console: ConsoleDep) -> HTMLResponse:
    if await authenticate(request, console) is None:
        return page("Sign in", sign_in_form(""), status=401)
    await console.fleet.refresh()
    return page("Servers", body(console), refresh=10)


@router.post("/status")
async def sign_in_to_status(request: Request, console: ConsoleDep) -> Response:
    """The form of the page: the same as POST /api/v1/session."""
    fields = urllib.parse.parse_qs((await request.body()).decode(errors="replace"))
    token = fields.get("token", [""])[0][:200]
    answer = RedirectResponse("/status", status_code=303)
    try:
        await sign_in(SignIn(token=token), request, answer, console)
    except Problem as error:
        return page("Sign in", sign_in_form(f"{error.detail} {error.fix}"), status=error.status)
    answer.status_code = 303
    return answer


def page(title: str, content: str, status: int = 200, refresh: int = 0) -> HTMLResponse:
    """A page of this console: no script, one style sheet."""
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{again}'
        f'<title>{escape(title)} · magi.llama</title><link rel="stylesheet" href="/plain.css"></head>'
        f'<body><header><a href="/">magi.llama</a> <nav><a href="/status">Servers</a> <a href="/docs">API</a></nav>'
        f"</header><main><h1>{escape(title)}</h1>{content}</main></body></html>",
        status,
    )


def sign_in_form(error: str) -> str:
    said = f'<p role="alert">{escape(error)}</p>' if error else ""
    return (
        f'{said}<form method="post" action="/status"><label for="token">Token</label> '
        '<input id="token" name="token" type="password" autocomplete="current-password" required> '
        "<button>Sign in</button></form>"
    )


def body(console: Console) -> str:
    watch = console.fleet
    hosts = watch.hosts()
    servers = servers_of(hosts)
    ready = sum(one.is_ready for one in servers)
    problem = f'<p role="alert">{escape(watch.inventory_error)}</p>' if watch.inventory_error else ""
    return f"{problem}<p>{ready} of {len(servers)} servers are ready.</p>{_hosts(console, hosts)}{_servers(hosts)}"


def _hosts(console: Console, hosts: list[Host]) -> str:
    rows = []
    for host in hosts:
        stale = console.fleet.stale_since(host)
        drift = len(host.drift) if host.drift else 0
        rows.append(
            (
                host.name,
                host.state,
                f"{host.ready_servers} of {len(host.servers)}",
                host.profile or "",
                _bytes(host.ram.free_bytes),
                _bytes(host.ram.planned_bytes),
                f"{drift} since {host.drift_since}" if drift else "none" if host.drift is not None else "",
                (host.as_of or "never") + (" (stale)" if stale else ""),
                host.source,
            )
        )
    head = ("Host", "State", "Ready", "Profile", "RAM free", "RAM planned", "Drift", "As of", "Source")
    return table("Hosts", head, rows)


def _servers(hosts: list[Host]) -> str:
    rows = [
        (
            one.host,
            one.name,
            one.model_id,
            one.tier or "",
            str(one.port),
            f"{MARKS.get(one.state, '✕')} {one.state}",
            _bytes(one.rss_bytes),
            _bytes(one.planned_bytes),
            str(one.restarts),
            "" if one.tokens_per_second is None else f"{one.tokens_per_second:.1f}",
            one.reason or "",
        )
        for one in servers_of(hosts)
    ]
    return table("Servers", COLUMNS, rows)


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f'<th scope="col">{escape(one)}</th>' for one in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table><caption>{escape(caption)}'
        f"</caption><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _bytes(size: int | None) -> str:
    """A size as people read it, in binary units."""
    if size is None:
        return ""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
