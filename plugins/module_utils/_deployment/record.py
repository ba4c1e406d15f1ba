# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What is deployed on a host, the deployment before it, and what is to run: deployment.json in the state directory."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._core.documents import (
    ABSOLUTE_PATH,
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
from .._core.errors import MagiError
from .._core.ownership import open_trusted
from .._launch.config_files import File
from .._plan.document import OF_CHANGE, ON_DEMAND, ON_DEMAND_LIMITS

_SERVER = Fields(
    {"name": NAME, "model_id": str, "port": int, "argv": [str]},
    {
        "display_name": (str, NULL),
        "tier": (str, NULL),
        "kind": str,
        "architecture": (str, NULL),
        "instance": int,
        "generation": int,
        "host": str,
        "env": Map(str),
        "revision": str,
        "memory": dict,
        "memory_max_bytes": int,
        "require_gpu": str,
        "sandbox": dict,
        "on_demand": ON_DEMAND,
        "build": (int, NULL),
        "api_key_file": (str, NULL),
        # What changes with the API keys, and with the model's file, but not with its name.
        "api_key_stamp": str,
        "model_stamp": str,
        # What changes when someone writes to the model's files, but not with their inodes; empty where unknown.
        "content_stamp": str,
        "stop_timeout": int,
        "max_startup_time": NUMBER,
        # The server whose place it takes while that is restarted.
        "stands_in_for": NAME,
    },
)
RECORD = Fields(
    {"profile": (str, NULL), "service_manager": (str, NULL), "servers": [_SERVER]},
    # Users that the servers run as, or ran as before; ports of servers that left, by name; limits for starts on demand.
    {"start": (dict, NULL), "users": [str], "ports": Map(int, NAME), "on_demand": ON_DEMAND_LIMITS},
)
INTENDED = Map(re.compile("started|stopped"), NAME)
CONFIGS = Map(re.compile("[0-9a-f]{64}"), ABSOLUTE_PATH)
PREVIOUS = Fields({"deployed": RECORD, "files": [Fields({"path": ABSOLUTE_PATH, "content": str, "mode": int})]})
# Version 1 were the files that version_1.py reads.
DEPLOYMENT = Document(
    "deployment",
    2,
    Fields(
        {"collection_version": str, "deployed": RECORD, "intended": INTENDED, "previous": Maybe(PREVIOUS)},
        {"configs": CONFIGS},
    ),
)


class RecordError(MagiError):
    """A record that cannot be read."""


class DamagedRecordError(RecordError):
    """A record that is there and is not JSON of ours: what runs is then all that is known."""


@dataclass(frozen=True)
class Deployment:
    """A record of deployed servers with their launch configs, as files."""

    record: Mapping[str, Any]
    files: Sequence[File]

    @property
    def binaries(self) -> dict[str, str]:
        """Each llama-server's path with its identity."""
        return {
            str(server["argv"][0]): str(server["env"].get("MAGI_LLAMA_RUNTIME", ""))
            for server in self.record["servers"]
        }


def deployment_path(state_dir: str) -> str:
    """Path of the file."""
    return os.path.join(state_dir, "deployment.json")


def empty_record() -> dict[str, Any]:
    """The record of a host on which nothing is deployed."""
    return {"profile": None, "service_manager": None, "start": None, "servers": []}


def read_record(state_dir: str) -> dict[str, Any]:
    """{"profile", "service_manager", "start", "servers": [server …]}; empty where nothing is deployed.

    Raises DamagedRecordError where the text makes no sense, RecordError where it cannot be read or is too new.
    """
    path = deployment_path(state_dir)
    content = read_file(path, DEPLOYMENT)
    if content is not None:
        return dict(checked(content.get("deployed"), RECORD, path))
    from . import version_1

    return version_1.read_record(state_dir) or empty_record()


def read_intended(state_dir: str) -> dict[str, str]:
    """What each deployed server is to be, started or stopped. Raises RecordError."""
    path = deployment_path(state_dir)
    content = read_file(path, DEPLOYMENT)
    if content is None:
        return intended_of(read_record(state_dir))
    return dict(checked(content.get("intended"), INTENDED, path))


def read_configs(state_dir: str) -> dict[str, str]:
    """The digest of each launch config as it was written, by path; empty if missing. Raises RecordError."""
    path = deployment_path(state_dir)
    content = read_file(path, DEPLOYMENT)
    return dict(checked((content or {}).get("configs", {}), CONFIGS, path))


def read_previous_deployment(state_dir: str) -> Deployment | None:
    """The last good deployment before this one, None where there is none. Raises RecordError as read_record does."""
    path = deployment_path(state_dir)
    content = read_file(path, DEPLOYMENT)
    if content is None:
        from . import version_1

        return version_1.read_previous_deployment(state_dir)
    return deployment_in(checked(content.get("previous"), Maybe(PREVIOUS), path))


def deployment_in(previous: Mapping[str, Any] | None) -> Deployment | None:
    """The deployment that this part of the file holds."""
    if previous is None:
        return None
    files = [File(entry["path"], entry["content"].encode(), entry["mode"]) for entry in previous["files"]]
    return Deployment(previous["deployed"], files)


def read_file(path: str, document: Document) -> dict[str, Any] | None:
    """A document's file in the current schema version, its parts unchecked; None where it is missing.

    Raises RecordError, and DamagedRecordError where it is not such a document.
    """
    try:
        with open_trusted(path) as stream:
            return document.migrated(json.load(stream))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}. Run as a user who may read it.") from error
    except NewerDocumentError as error:
        raise RecordError(f"{path}: {error}") from error
    except (ValueError, RecursionError, DocumentError) as error:
        raise _damaged(path, error) from error


def checked(part: Any, shape: Any, path: str) -> Any:
    """A part of the file at path. Raises DamagedRecordError where it does not have the shape."""
    try:
        check(part, shape, "it")
    except DocumentError as error:
        raise _damaged(path, error) from error
    return part


def _damaged(path: str, error: Exception) -> DamagedRecordError:
    return DamagedRecordError(
        f"{path} is damaged ({error}). site.yml writes it again: running servers are found by their processes."
    )


def record_of(plan: Mapping[str, Any], service_manager: str) -> dict[str, Any]:
    """The record of what is deployed once the plan is applied."""
    servers = [
        {key: value for key, value in server.items() if key not in OF_CHANGE}
        for server in plan["servers"]
        if server["action"] != "stop"
    ]
    return {
        "profile": plan["profile"],
        "service_manager": service_manager,
        "start": plan.get("start"),
        "servers": servers,
        **{key: plan[key] for key in ("users", "ports", "on_demand") if plan.get(key)},
    }


def intended_of(record: Mapping[str, Any]) -> dict[str, str]:
    """What a plan intends: each server of the record is to run, and no other."""
    return {str(server["name"]): "started" for server in record["servers"]}


class UnknownServerError(MagiError):
    """A name that no deployed server has."""


def chosen(record: Mapping[str, Any], names: Sequence[str] | None) -> list[dict[str, Any]]:
    """The named servers of the record, all of them where no name is given. Raises UnknownServerError."""
    servers = {str(server["name"]): server for server in record["servers"]}
    unknown = [name for name in names or () if name not in servers]
    if unknown:
        raise UnknownServerError(
            f"No server {', '.join(unknown)} is deployed here; there are: {', '.join(sorted(servers)) or 'none'}."
        )
    return [servers[name] for name in names] if names else list(servers.values())
