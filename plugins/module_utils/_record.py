# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of the servers that are deployed on a host: servers.json in the state directory."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from ._errors import MagiError

SCHEMA_VERSION = 1
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


class RecordError(MagiError):
    """A record that cannot be read."""


class DamagedRecordError(RecordError):
    """A record that is there and is not JSON of ours: what runs is then all that is known."""


def record_path(state_dir: str) -> str:
    """Where the record lies."""
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
                raise ValueError(f"{server['name']!r:.40} is no server's name")
    except FileNotFoundError:
        return empty_record()
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}. Run as a user who may read it.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedRecordError(
            f"{path} is damaged ({error}). site.yml writes it anew: running servers are found by their processes."
        ) from error
    return dict(record)
