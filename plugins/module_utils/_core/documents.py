# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Documents: the data passed between stages. Each has a schema version, the collection's version and one loader.

docs/schemas/ has the JSON Schema of each. A loader checks what the code relies on and accepts further keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import MagiError
from .version import COLLECTION_VERSION

# Server names, which become file and unit names.
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
ABSOLUTE_PATH = re.compile(r"/[^\x00]*")
NUMBER = (int, float)
NULL = type(None)

# A type or a tuple of types, a pattern for the complete text, [shape of each item], Fields, Map or Maybe.
Shape = Any


class DocumentError(MagiError):
    """Raised for a document with an invalid value."""


class NewerDocumentError(DocumentError):
    """Raised for a document that a newer version of the collection wrote."""


@dataclass(frozen=True)
class Fields:
    """An object with these keys; the optional ones may be missing. Other keys are accepted."""

    required: Mapping[str, Shape]
    optional: Mapping[str, Shape] = field(default_factory=dict)


@dataclass(frozen=True)
class Map:
    """An object with any keys, or keys that match the pattern, and values of one shape."""

    values: Shape
    keys: re.Pattern[str] | None = None


@dataclass(frozen=True)
class Maybe:
    """null or a value of the shape."""

    shape: Shape


def check(value: Any, shape: Shape, where: str) -> None:
    """Raise DocumentError, with the key and the value, if a value does not have the shape."""
    if isinstance(shape, (type, tuple)):
        kinds = shape if isinstance(shape, tuple) else (shape,)
        # In Python true is a number.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise DocumentError(f"{where} is {value!r:.40}, not {_words(kinds)}")
    elif isinstance(shape, Maybe):
        if value is not None:
            check(value, shape.shape, where)
    elif isinstance(shape, re.Pattern):
        if not isinstance(value, str) or not shape.fullmatch(value):
            raise DocumentError(f"{where} is {value!r:.40}, which does not match {shape.pattern}")
    elif isinstance(shape, list):
        check(value, list, where)
        for number, item in enumerate(value):
            if not _is_plain(item, shape[0]):
                check(item, shape[0], f"{where}[{number}]")
    elif isinstance(shape, Map):
        check(value, dict, where)
        for key, item in value.items():
            check(key, shape.keys or str, f"a key of {where}")
            check(item, shape.values, f"{where}.{key}")
    else:
        check(value, dict, where)
        for key, kind in shape.required.items():
            if key not in value:
                raise DocumentError(f"{where} lacks {key}")
            if not _is_plain(value[key], kind):
                check(value[key], kind, f"{where}.{key}")
        for key, kind in shape.optional.items():
            if key in value and not _is_plain(value[key], kind):
                check(value[key], kind, f"{where}.{key}")


def _is_plain(value: Any, shape: Shape) -> bool:
    """Whether the shape is just a type and the value has it, as nearly all values do."""
    kind = value.__class__
    return kind is shape or (shape.__class__ is tuple and kind in shape)


_WORDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false", NULL: "null"}


def _words(kinds: tuple[type, ...]) -> str:
    return "a number" if kinds == NUMBER else " or ".join(_WORDS.get(kind, "a number") for kind in kinds)


@dataclass(frozen=True)
class Document:
    """A kind of document: its name, schema version and shape, and migrations from each older version."""

    name: str
    version: int
    shape: Fields
    migrations: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = field(default_factory=dict)

    def stamp(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content with both versions in front."""
        return {"schema_version": self.version, "collection_version": COLLECTION_VERSION, **content}

    def migrated(self, content: dict[str, Any]) -> dict[str, Any]:
        """Return the content in the current schema version; only the version is checked.

        Raises DocumentError if it has no version, NewerDocumentError if the version is newer.
        """
        check(content, Fields({"schema_version": int}), f"the {self.name}")
        if content["schema_version"] > self.version:
            raise NewerDocumentError(
                f"The {self.name} was written by a newer magi.llama (schema version {content['schema_version']}, here "
                f"{self.version}). Update the collection on this controller."
            )
        while content["schema_version"] < self.version:
            migrate = self.migrations.get(content["schema_version"])
            if migrate is None:
                raise DocumentError(f"the {self.name} has the unknown schema version {content['schema_version']}")
            content = migrate(content)
        return content

    def load(self, content: dict[str, Any]) -> dict[str, Any]:
        """Return the content in the current schema version, checked. Raises DocumentError."""
        content = self.migrated(content)
        check(content, self.shape, f"the {self.name}")
        return content
