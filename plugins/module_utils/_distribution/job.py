# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What a host does in a run: which files it hands out and gets, from which other hosts, within which limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._core.errors import MagiError
from .pieces import Pieces, parse_pieces
from .wanted import check_name


class JobError(MagiError):
    """A job that must not begin."""


@dataclass(frozen=True)
class JobFile:
    """A file of the run.

    role is get, give or none, as seen from this host; hosts are those that get it. mirror is the address of the file
    at a mirror. sha256 is the manifest's, with which the whole file is compared, as its pieces' checksums may be
    another's; empty for a file that is only on the controller.
    """

    name: str
    pieces: Pieces
    role: str
    hosts: tuple[str, ...]
    mirror: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class JobPeer:
    """Another host of the run, and the numbers of the files that it had before."""

    name: str
    host: str
    seeds: frozenset[int]


@dataclass(frozen=True)
class Job:
    """A host's part of a run. Rates are bytes a second, 0 without a limit; addresses are those to listen on."""

    run: str
    token: str
    me: str
    folder: str
    files: tuple[JobFile, ...]
    peers: tuple[JobPeer, ...]
    addresses: tuple[str, ...]
    ports: range
    reserve_bytes: int = 0
    rate_up: int = 0
    rate_down: int = 0


def parse_job(value: Mapping[str, Any]) -> Job:
    """The job in a mapping from the controller.

    Raises MagiError for a name or a list of pieces that is not one, and without a token: everyone could get the files.
    """
    if not value["token"]:
        raise JobError("The run has no token, without which every client could get its files. Run again.")
    files = tuple(
        JobFile(
            check_name(file["name"]),
            parse_pieces(file["pieces"], file["name"]),
            file["role"],
            tuple(file["hosts"]),
            file.get("mirror", ""),
            file.get("sha256", ""),
        )
        for file in value["files"]
    )
    peers = tuple(JobPeer(peer["name"], peer["host"], frozenset(peer["seeds"])) for peer in value["peers"])
    return Job(
        run=value["run"],
        token=value["token"],
        me=value["me"],
        folder=value["folder"],
        files=files,
        peers=peers,
        addresses=tuple(value["addresses"]),
        ports=range(value["ports"][0], value["ports"][1] + 1),
        reserve_bytes=value.get("reserve_bytes", 0),
        rate_up=value.get("rate_up", 0),
        rate_down=value.get("rate_down", 0),
    )
