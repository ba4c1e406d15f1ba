# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""/docs: the API's reference as a plain page, made of the OpenAPI document. No script, nothing from another origin."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from .status_page import page, table

router = APIRouter(include_in_schema=False)
METHODS = ("get", "put", "post", "delete")
MAX_DEPTH = 6


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    return page("API", reference(request.app.openapi()))


def reference(document: Mapping[str, Any]) -> str:
    """The document as HTML: every endpoint by its tag, then every shape."""
    info = document["info"]
    parts = [
        f"<p>{escape(info.get('description', ''))}</p>",
        '<p>The same for programs: <a href="/api/v1/openapi.json">/api/v1/openapi.json</a> (OpenAPI '
        f"{escape(document['openapi'])}).</p>",
    ]
    by_tag: dict[str, list[str]] = {}
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                operation = item[method]
                by_tag.setdefault((operation.get("tags") or ["other"])[0], []).append(
                    _operation(method, path, operation)
                )
    for tag, operations in by_tag.items():
        parts += [f'<h2 id="{escape(_anchor(tag))}">{escape(tag.capitalize())}</h2>', *operations]
    parts.append('<h2 id="shapes">Shapes</h2>')
    for name, schema in sorted(document.get("components", {}).get("schemas", {}).items()):
        parts.append(_shape(name, schema))
    return "\n".join(parts)


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    title = f"{method.upper()} {path}"
    text = escape(operation.get("description") or operation.get("summary") or "")
    parts = [f'<h3 id="{escape(_anchor(title))}"><code>{escape(title)}</code></h3><p>{text}</p>']
    rows: list[tuple[str, ...]] = [
        (one["name"], one["in"], kind(one["schema"]), one.get("description") or one["schema"].get("description") or "")
        for one in operation.get("parameters", ())
    ]
    if rows:
        parts.append(table("Parameters", ("Name", "In", "Type", "Meaning"), rows))
    for content in (operation.get("requestBody") or {}).get("content", {}).values():
        parts.append(f"<p>Body: {_linked(content.get('schema', {}))}</p>")
    answers = [
        (status, ", ".join(answer.get("content", {})) or "", answer.get("description", ""), answer)
        for status, answer in operation["responses"].items()
    ]
    lines = "".join(
        f"<li><code>{escape(status)}</code> {_links(answer)} {escape(meaning)}</li>"
        for status, _media, meaning, answer in answers
    )
    return "".join([*parts, f"<ul>{lines}</ul>"])


def _links(answer: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{escape(media)} {_linked(content.get('schema', {}))}" for media, content in answer.get("content", {}).items()
    )


def _linked(schema: Mapping[str, Any]) -> str:
    """The type of a schema, its shapes as links."""
    text = escape(kind(schema))
    for name in sorted(set(_names(schema)), key=len, reverse=True):
        text = re.sub(rf"\b{re.escape(name)}\b", f'<a href="#shape-{_anchor(name)}">{escape(name)}</a>', text, count=1)
    return text


def _names(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        if "$ref" in schema:
            yield schema["$ref"].rsplit("/", 1)[-1]
        for value in schema.values():
            yield from _names(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _names(value)


def kind(schema: Mapping[str, Any], depth: int = 0) -> str:
    """A schema in few words: "list of Host", "integer or null", "ok | degraded"."""
    if depth > MAX_DEPTH:
        return "…"
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(kind(one, depth + 1) for one in schema[key])
    if "enum" in schema:
        return " | ".join(json.dumps(one) for one in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}), depth + 1)}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"mapping of name to {kind(schema['additionalProperties'], depth + 1)}"
    return str(schema.get("type", "anything"))


def _shape(name: str, schema: Mapping[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = [
        (key, kind(value), "" if key in required else "optional", value.get("description", ""))
        for key, value in schema.get("properties", {}).items()
    ]
    text = escape(schema.get("description", ""))
    body = table(name, ("Key", "Type", "", "Meaning"), rows) if rows else f"<p>{escape(kind(schema))}</p>"
    return f'<h3 id="shape-{_anchor(name)}">{escape(name)}</h3><p>{text}</p>{body}'
