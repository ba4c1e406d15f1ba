# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The record of the servers that are deployed on a host: servers.json in the state directory."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .._core.errors import MagiError
from .._launch.config_files import File, digest, file_at
from .._services.table import deployed_paths

SCHEMA_VERSION = 1
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


class RecordError(MagiError):
    """A record that cannot be read."""


class DamagedRecordError(RecordError):
    """A record that is there and is not JSON of ours: what runs is then all that is known."""


def record_path(state_dir: str) -> str:
    """The path of the record."""
    return os.path.join(state_dir, "servers.json")


def empty_record() -> dict[str, Any]:
    """The record of a host on which nothing is deployed."""
    return {"schema_version": SCHEMA_VERSION, "profile": None, "service_manager": None, "servers": []}


def read_record(state_dir: str) -> dict[str, Any]:
    """{"schema_version", "profile", "service_manager", "servers": [server …]}; empty where nothing is deployed.

    Raises DamagedRecordError where the text makes no sense, RecordError where it cannot be read or is too new.
    """
    path = record_path(state_dir)
    try:
        with open(path, encoding="utf-8") as stream:
            record = json.load(stream)
        if record["schema_version"] > SCHEMA_VERSION:
            raise RecordError(f"{path} was written by a newer magi.llama: update the collection on this controller.")
        for server in record["servers"]:
            if not {"name", "port", "argv", "model_id"} <= set(server):
                raise ValueError("a server lacks its name, port, argv or model_id")
            # Names become names of files and units.
            if not NAME.fullmatch(server["name"]):
                raise ValueError(f"{server['name']!r:.40} is not a server name")
    except FileNotFoundError:
        return empty_record()
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}. Run as a user who may read it.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedRecordError(
            f"{path} is damaged ({error}). site.yml writes it again: running servers are found by their processes."
        ) from error
    return dict(record)


def record_of(plan: Mapping[str, Any], service_manager: str) -> dict[str, Any]:
    """The record of what is deployed once the plan is applied."""
    servers = [
        {key: value for key, value in server.items() if key not in ("action", "reason")}
        for server in plan["servers"]
        if server["action"] != "stop"
    ]
    return {
        "schema_version": 1,
        "profile": plan["profile"],
        "service_manager": service_manager,
        "start": plan.get("start"),
        "servers": servers,
    }


def record_file(state_dir: str, record: Mapping[str, Any]) -> File:
    """The record as a file."""
    return File(record_path(state_dir), (json.dumps(record, indent=2) + "\n").encode())


def deployed(state_dir: str, service_manager: str) -> dict[str, str]:
    """The record and every launch config of this state directory, each path with the digest of the file.

    By it the controller knows whether there is anything to write, without sending it all.
    """
    found = [file_at(path) for path in [record_path(state_dir), *deployed_paths(state_dir, service_manager)]]
    return {file.path: digest(file) for file in found if file is not None}


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
