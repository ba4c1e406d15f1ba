# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The OpenAPI document: made from the endpoints, completed here, and held in console/openapi.json.

`python -m magi_llama_console.openapi` writes that file; a test compares it, and the page's types are made from it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from .api.errors import errors
from .api.problems import ProblemDocument

FILE = Path(__file__).parents[2] / "openapi.json"
DESCRIPTION = (
    "Hosts and servers of an inventory, and the collection's playbooks as jobs. Sizes are bytes, durations seconds, "
    "times RFC 3339 in UTC; null is unknown. Answers about state have as_of and source. Errors are problem documents "
    "(RFC 9457) with the fix and the nearest valid names. Send a token as `Authorization: Bearer TOKEN`; the role "
    "operate may change things, the role read may look."
)
# Errors that every endpoint with a token may answer.
ALWAYS = (401, 403, 422, 429, 500, 503)
PUBLIC = {"/health"}
METHODS = ("get", "put", "post", "delete")


def install(app: FastAPI) -> None:
    """Have the application answer, and /docs show, the completed document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI 3.1 document of an application."""
    found = get_openapi(
        title=app.title, version=app.version, openapi_version="3.1.0", description=DESCRIPTION, routes=app.routes
    )
    schemas = found["components"]["schemas"]
    # Validation errors are problem documents here.
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    schemas["ProblemDocument"] = ProblemDocument.model_json_schema()
    found["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "The roles are read and operate."}
    }
    for path, operation in _operations(found):
        responses = operation["responses"]
        if path in PUBLIC:
            continue
        is_sign_in = path == "/api/v1/session" and "requestBody" in operation
        if not is_sign_in:
            operation["security"] = [{"token": []}]
        # A path with a name in it may name what is not there.
        named = (404,) if "{" in path else ()
        for status, answer in errors(*ALWAYS, *named, *(int(one) for one in responses if int(one) >= 400)).items():
            kept = responses.get(str(status), {}).get("description")
            is_ours = kept and kept not in ("Validation Error", "") and "content" in responses.get(str(status), {})
            responses[str(status)] = {**answer, **({"description": kept} if is_ours else {})}
        operation["responses"] = dict(sorted(responses.items()))
    return found


def _operations(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in found["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, item[method]


def as_text(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    # Settings are only used when it starts, which it does not.
    from .app import create_app
    from .settings import Settings

    nowhere = Path("/nonexistent")
    text = as_text(create_app(Settings(inventory=nowhere, data=nowhere)).openapi())
    path = Path(sys.argv[1]) if sys.argv[1:] else FILE
    path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
