# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents: the check against a shape, the migration of versions, and the collection's version."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.magi.llama.plugins.module_utils._core.documents import (
    NAME,
    NULL,
    NUMBER,
    Document,
    DocumentError,
    Fields,
    Map,
    Maybe,
    NewerDocumentError,
    check,
)
from ansible_collections.magi.llama.plugins.module_utils._core.version import COLLECTION_VERSION

PROJECT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("value", "shape", "wrong"),
    [
        (1, int, None),
        (True, int, "it is True, not a whole number"),
        (True, bool, None),
        (1.5, NUMBER, None),
        ("1", NUMBER, "it is '1', not a number"),
        (None, (str, NULL), None),
        (1, (str, NULL), "it is 1, not a text or null"),
        ("a-1", NAME, None),
        ("../a", NAME, "it is '../a', which does not match"),
        ("a\n", NAME, "it is 'a\\n', which does not match"),
        (1, NAME, "it is 1, which does not match"),
        (["a", 1], [str], "it[1] is 1, not a text"),
        ({}, [str], "it is {}, not a list"),
        ({"a": 1}, Map(int), None),
        ({"a": ""}, Map(int), "it.a is '', not a whole number"),
        ({"A": 1}, Map(int, NAME), "a key of it is 'A', which does not match"),
        ({"a": 1, "more": 2}, Fields({"a": int}), None),
        ({}, Fields({"a": int}), "it lacks a"),
        ({}, Fields({}, {"a": int}), None),
        ({"a": "x"}, Fields({}, {"a": int}), "it.a is 'x', not a whole number"),
        ([], Fields({}), "it is [], not an object"),
        (None, Maybe([int]), None),
        ([""], Maybe([int]), "it[0] is '', not a whole number"),
    ],
)
def test_check_error_names_key_and_value(value: Any, shape: Any, wrong: str | None) -> None:
    if wrong is None:
        check(value, shape, "it")
        return
    with pytest.raises(DocumentError, match=f"^{re.escape(wrong)}"):
        check(value, shape, "it")


def renamed(content: dict[str, Any]) -> dict[str, Any]:
    return {"schema_version": 2, "size_bytes": content["size"]}


def counted(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "schema_version": 3, "count": 1}


THING = Document("thing", 3, Fields({"size_bytes": int, "count": int}), {1: renamed, 2: counted})


@pytest.mark.parametrize(
    "content",
    [
        {"schema_version": 1, "size": 5},
        {"schema_version": 2, "size_bytes": 5},
        {"schema_version": 3, "size_bytes": 5, "count": 1},
    ],
)
def test_load_of_older_version_migrates_step_by_step(content: dict[str, Any]) -> None:
    given = dict(content)
    assert THING.load(content) == {"schema_version": 3, "size_bytes": 5, "count": 1}
    assert content == given


def test_load_of_newer_version_is_refused_with_fix() -> None:
    with pytest.raises(
        NewerDocumentError, match=r"newer magi.llama \(schema version 4, here 3\). Update the collection"
    ):
        THING.load({"schema_version": 4})


@pytest.mark.parametrize("version", [0, -1, "1", None, True])
def test_load_of_unknown_version_is_refused(version: Any) -> None:
    with pytest.raises(DocumentError, match=r"schema.version"):
        THING.load({"schema_version": version})


def test_stamp_puts_both_versions_first() -> None:
    assert list(THING.stamp({"count": 1}).items()) == [
        ("schema_version", 3),
        ("collection_version", COLLECTION_VERSION),
        ("count", 1),
    ]


def test_version_of_modules_equals_that_of_galaxy_yml() -> None:
    assert yaml.safe_load((PROJECT / "galaxy.yml").read_text())["version"] == COLLECTION_VERSION
