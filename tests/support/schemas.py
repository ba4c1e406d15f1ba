# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Validation of documents against the JSON Schemas of docs/schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
from referencing import Registry
from referencing.jsonschema import DRAFT202012

SCHEMAS = Path(__file__).parents[2] / "docs/schemas"


def schema(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    return content


def errors(name: str, document: Any) -> list[str]:
    """The errors of a document, each with its path; empty if it is valid."""
    # A schema refers to others by the names of their files.
    resources = [(path.name, DRAFT202012.create_resource(json.loads(path.read_text()))) for path in SCHEMAS.iterdir()]
    validator = jsonschema.Draft202012Validator(schema(name), registry=Registry().with_resources(resources))
    found = validator.iter_errors(document)
    return [f"{error.json_path}: {error.message[:300]}" for error in found]
