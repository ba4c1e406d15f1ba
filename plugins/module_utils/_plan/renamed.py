# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""By what a server's model file is known again: under another name, on a disk that was mounted again, replaced."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from .._core.digests import digest_of
from .._models.source_files import content_keys
from .inputs import Host, Server
from .ports import public_port
from .profile import Model, Selected


def model_stamp(model: Model) -> str:
    """Return a short digest of a model's file that does not depend on the file's name."""
    fingerprint = model["fingerprint"]
    return digest_of([fingerprint["size"], fingerprint["mtime_ns"], fingerprint["inode"]])[:12]


def content_stamp(model: Model) -> str:
    """Return a short digest that is equal while no one has written to the model's files; empty if that is not known."""
    keys = content_keys(model["fingerprint"])
    return "" if keys is None else digest_of(keys)[:12]


def model_fingerprint(model: Model, previous: Server | None) -> str:
    """Return a short digest of the model's files; it changes when a file is replaced.

    A disk that is mounted again may give its files other inodes, and another mode, owner or hard link a file another
    change time. Where only one of the two differs from the previous record of the server, it is that of the record. A
    file that was edited in place with its time set back is found by the manifest.
    """
    before = previous or {}
    known = before.get("env", {}).get("MAGI_LLAMA_MODEL")
    stamp = content_stamp(model)
    is_written = stamp == "" or before.get("content_stamp") != stamp
    if known and (before.get("model_stamp") == model_stamp(model) or not is_written):
        return str(known)
    fingerprint = model["fingerprint"]
    return digest_of([model["files"], fingerprint["size"], fingerprint["mtime_ns"], fingerprint["inode"]])[:12]


def renamed_servers(lost: Mapping[str, str], selected: Iterable[Selected], host: Host) -> dict[str, str]:
    """Return {deployed server: id of the model that its file is now} for servers whose model was renamed."""
    deployed = {str(server["model_id"]) for server in host.record}
    stamps = {model_stamp(one.model): str(one.model["id"]) for one in selected if str(one.model["id"]) not in deployed}
    return {
        str(server["name"]): stamps[server["model_stamp"]]
        for server in host.record
        if server["name"] in lost and server.get("model_stamp") in stamps
    }


def with_ports_of_renamed(moved: Mapping[str, str], host: Host) -> Host:
    """Return the host with the ports of renamed servers remembered for their new names."""
    if not moved:
        return host
    ports: dict[str, int] = {}
    for server in host.record:
        new: Any = moved.get(str(server["name"]))
        if new is not None:
            process = host.running.get(str(server["name"]))
            port = (public_port(process) if process else None) or int(server["port"])
            ports.setdefault(str(server["name"]).replace(str(server["model_id"]), new, 1), port)
    return dataclasses.replace(host, remembered={**host.remembered, **ports})
