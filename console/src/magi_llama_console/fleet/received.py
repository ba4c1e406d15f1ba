# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What comes from managed hosts, in the shapes that the rest relies on.

A host may send anything. What says which server is meant has to be there; any other value that is not of its type is
unknown, and so is a number that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

MAX_WHOLE = 2**63
# As deep as documents of the collection are, several times over.
MAX_DEPTH = 32
# Of a server's log, more than the collection sends.
MAX_LINES, MAX_LINE = 200, 1000


class Unusable(ValueError):
    """A document or an event that cannot be used: the text says which part."""


def text(value: Any) -> str | None:
    """A text that can be written as UTF-8; None for anything else."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None


def whole(value: Any) -> int | None:
    """A number of bytes, seconds, or things; None for anything else."""
    is_whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_WHOLE
    return value if is_whole else None


def number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) >= MAX_WHOLE:
        return None
    return value if math.isfinite(value) else None


def port(value: Any) -> int | None:
    """A port that a server can have; None for anything else."""
    found = whole(value)
    return found if found is not None and 1 <= found <= 65535 else None


def time(value: Any) -> str | None:
    """An RFC 3339 time, written as the store writes them, since they sort as text; None for anything else."""
    try:
        found = datetime.fromisoformat(value)
        is_zoned = found.tzinfo is not None
        return found.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if is_zoned else None
    except (TypeError, ValueError, OverflowError):
        return None


def mapping(value: Any) -> dict[str, Any]:
    """A mapping, with plain values all the way down; an empty one for anything else."""
    return plain(value) if isinstance(value, dict) else {}


def plain(value: Any, depth: int = 0) -> Any:
    """A JSON value without what cannot be written as JSON again, or is too deep for it."""
    if depth > MAX_DEPTH:
        return None
    if isinstance(value, dict):
        return {text(str(key)): plain(one, depth + 1) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one, depth + 1) for one in value]
    if isinstance(value, str):
        return text(value)
    if value is None or isinstance(value, bool):
        return value
    return number(value)


def texts(value: Any) -> list[str]:
    """The texts of a list; none for anything else."""
    return [found for one in value if (found := text(one)) is not None] if isinstance(value, (list, tuple)) else []


def _wholes(value: Any) -> dict[str, Any]:
    """A mapping of which all numbers are whole; any other value is kept."""
    found = mapping(value)
    return {key: one for key, one in found.items() if not isinstance(one, (int, float)) or whole(one) is not None}


def _bytes(value: Any, *keys: str) -> dict[str, Any]:
    """A mapping in which these keys are whole numbers, or missing."""
    found = _wholes(value)
    return {key: one for key, one in found.items() if key not in keys or whole(one) is not None}


def _typed(found: dict[str, Any], types: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    return {key: types[key](one) if key in types else plain(one) for key, one in found.items()}


def _listed(value: Any, what: str, read: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    if not isinstance(value, (list, tuple)):
        raise Unusable(f"{what} is not a list")
    return [read(one) for one in value]


def _needs(found: Any, what: str, **types: Callable[[Any], Any]) -> dict[str, Any]:
    """These values of a mapping, all of them known. Raises Unusable."""
    if not isinstance(found, dict):
        raise Unusable(f"{what} is not a mapping")
    needed = {key: read(found.get(key)) for key, read in types.items()}
    for key, one in needed.items():
        if one is None or one == "":
            raise Unusable(f"{what} has no usable {key}")
    return needed


_PLANNED: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("display_name", "tier", "kind", "host", "revision", "stands_in_for"), text),
    "reason": lambda value: text(value) or "",
    "port": port,
    "downtime_seconds": number,
    "argv": texts,
    "argv_diff": texts,
    "env": mapping,
    "memory": lambda value: _bytes(value, "total_bytes", "ram_bytes", "vram_bytes", "slot_context"),
}
_REPORTED: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("display_name", "tier", "kind", "bind_address", "profile"), text),
    **dict.fromkeys(("pid", "uptime_seconds", "rss_bytes", "vram_bytes", "context_size"), whole),
    "restarts": lambda value: whole(value) or 0,
    "tokens_per_second": number,
    "log": lambda value: tuple(one[:MAX_LINE] for one in texts(value)[-MAX_LINES:]),
    "memory": lambda value: _bytes(value, "planned_bytes", "loaded_bytes", "loaded_gpu_bytes"),
}
_MODEL: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("display_name", "kind", "tier", "architecture", "path"), text),
    **dict.fromkeys(("size_bytes", "context_length"), whole),
}
_GPU: dict[str, Callable[[Any], Any]] = {"name": text, "total_bytes": whole, "free_bytes": whole}


def plan(value: Any) -> dict[str, Any]:
    """The profile, the servers and the memory of a plan. Raises Unusable."""
    if not isinstance(value, dict):
        raise Unusable("the plan is not a mapping")
    return {
        "profile": text(value.get("profile")),
        "servers": planned(value.get("servers")),
        "memory": _memory(value.get("memory")),
    }


def planned(value: Any) -> list[dict[str, Any]]:
    """The servers of a plan. Raises Unusable."""
    return _listed(value, "servers of the plan", _planned)


def _planned(one: Any) -> dict[str, Any]:
    needed = _needs(one, "a planned server", name=text, model_id=text, action=text)
    if needed["action"] != "stop":
        needed |= _needs(one, f"the planned server {needed['name']}", port=port)
    return {"reason": "", **_typed(one, _PLANNED), **needed}


def _memory(value: Any) -> dict[str, Any]:
    found = value if isinstance(value, dict) else {}
    kept: dict[str, Any] = {
        key: whole(found[key])
        for key in ("host_ram_bytes", "host_available_bytes")
        if whole(found.get(key)) is not None
    }
    gpus = found.get("gpus")
    if isinstance(gpus, list) and all(isinstance(one, dict) for one in gpus):
        kept["gpus"] = [{key: read(one.get(key)) for key, read in _GPU.items()} for one in gpus]
    shares = found.get("gpu_bytes")
    kept["gpu_bytes"] = [whole(one) for one in shares] if isinstance(shares, list) else []
    return kept


def status(value: Any) -> dict[str, Any]:
    """The servers of a status document. Raises Unusable."""
    if not isinstance(value, dict):
        raise Unusable("the status is not a mapping")
    return {"servers": _listed(value.get("servers"), "servers of the status", _reported)}


def _reported(one: Any) -> dict[str, Any]:
    needed = _needs(one, "a server of the status", name=text, model_id=text, port=port, state=text)
    unknown: dict[str, Any] = dict.fromkeys(("display_name", "tier", "pid", "uptime_seconds", "rss_bytes"))
    return {**unknown, "restarts": 0, **_typed(one, _REPORTED), **needed, "is_ready": one.get("is_ready") is True}


def registry(value: Any) -> dict[str, Any]:
    """The models of a scan or of an event, and the files that were refused. Raises Unusable."""
    if not isinstance(value, dict):
        raise Unusable("the registry is not a mapping")
    found: dict[str, Any] = {"models": _listed(value.get("models") or [], "models of the registry", _model)}
    if isinstance(value.get("rejected"), list):
        found["rejected"] = [mapping(one) for one in value["rejected"] if isinstance(one, dict)]
    return found


def _model(one: Any) -> dict[str, Any]:
    return {**_needs(one, "a model", id=text), **_typed({key: one[key] for key in one if key != "id"}, _MODEL)}


def verified(value: Any) -> dict[str, float | None]:
    """Tokens per second by server, of those that were found to be right. Raises Unusable."""
    servers = _listed(
        value.get("servers"), "servers of the verify", lambda one: {**_needs(one, "a server", name=text), "of": one}
    )
    return {one["name"]: number(one["of"].get("tokens_per_second")) for one in servers if one["of"].get("ok") is True}


def _status_event(data: dict[str, Any]) -> dict[str, Any]:
    reasons = {key: text(one) for key, one in mapping(data.get("drift")).items()}
    return {
        "status": status(data.get("status")),
        "drift": {key: reason for key, reason in reasons.items() if reason is not None},
    }


def _server_event(data: dict[str, Any]) -> dict[str, Any]:
    return {
        **_needs(data, "the event", server=text),
        "port": port(data.get("port")),
        "reason": text(data.get("reason")),
        "fix": text(data.get("fix")),
    }


def _run_started(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "playbook": text(data.get("playbook")) or "",
        "profile": text(data.get("profile")),
        "check": bool(data.get("check")),
    }


def _run_ended(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "rc": whole(data.get("rc")),
        "hosts": {key: mapping(one) for key, one in mapping(data.get("hosts")).items()},
    }


_DATA: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "run_started": _run_started,
    "run_ended": _run_ended,
    "plan": lambda data: {"plan": plan(data.get("plan"))},
    "status": _status_event,
    "registry": registry,
    **dict.fromkeys(("server_ready", "server_failed", "server_stopped"), _server_event),
}


def event(found: Mapping[str, Any]) -> dict[str, Any]:
    """An event of which all that the fleet is folded from has its type. Raises Unusable.

    The data of types that say nothing of the fleet is left out.
    """
    needed = _needs(dict(found), "the event", type=text, run=text, at=time)
    data = found.get("data")
    if not isinstance(data, dict):
        raise Unusable("the event has no data")
    read = _DATA.get(needed["type"])
    return {
        **needed,
        "host": text(found.get("host")),
        "check": bool(found.get("check")),
        "data": read(data) if read else {},
    }
