# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The state of a host before deployment.json: servers.json with the record, previous.json with the deployment before.

Read where deployment.json is missing. The next run that writes state replaces them by it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .._core.documents import Document, Fields
from .record import PREVIOUS, RECORD, Deployment, checked, deployment_in, read_file

_RECORD = Document("record", 1, Fields({}))
_PREVIOUS = Document("previous deployment", 1, Fields({}))
_SHAPE = Fields({"record": RECORD, "files": PREVIOUS.required["files"]})


def _record_path(state_dir: str) -> str:
    return os.path.join(state_dir, "servers.json")


def _previous_path(state_dir: str) -> str:
    return os.path.join(state_dir, "previous.json")


def paths(state_dir: str) -> list[str]:
    """Paths of both files."""
    return [_record_path(state_dir), _previous_path(state_dir)]


def read_record(state_dir: str) -> dict[str, Any] | None:
    """The record in servers.json, None where it is missing. Raises RecordError."""
    path = _record_path(state_dir)
    content = read_file(path, _RECORD)
    return None if content is None else migrated_record(checked(content, RECORD, path))


def read_previous_deployment(state_dir: str) -> Deployment | None:
    """The deployment in previous.json, None where it is missing. Raises RecordError."""
    path = _previous_path(state_dir)
    content = read_file(path, _PREVIOUS)
    return deployment_in(None if content is None else migrated_previous(checked(content, _SHAPE, path)))


def migrated_record(content: Mapping[str, Any]) -> dict[str, Any]:
    """servers.json as the part "deployed" of deployment.json."""
    return {key: content.get(key) for key in ("profile", "service_manager", "start", "servers")}


def migrated_previous(content: Mapping[str, Any]) -> dict[str, Any]:
    """previous.json as the part "previous" of deployment.json."""
    return {"deployed": migrated_record(content["record"]), "files": content["files"]}
