# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The controller's view of a run: which host gets which files from where, and every host's job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._core.errors import MagiError

CONTROLLER, HOST, MIRROR = "controller", "host", "mirror"

# By host: what inspect_files has answered, each file also with "wanted".
Found = Mapping[str, Sequence[Mapping[str, Any]]]


class RunError(MagiError):
    """A run that cannot begin."""


@dataclass(frozen=True)
class Transfer:
    """A file that at least one host lacks: who gets it, who has it, and what is known of it."""

    name: str
    size: int | None
    sha256: str | None
    gets: tuple[str, ...]
    has: tuple[str, ...]


def transfers(found: Found) -> list[Transfer]:
    """The files that hosts want and lack, in order. Raises RunError where a host has another file of the name."""
    by_name: dict[str, dict[str, Any]] = {}
    differing = []
    for host, files in found.items():
        for file in files:
            one = by_name.setdefault(
                file["name"], {"size": file["size"], "sha256": file["sha256"], "gets": [], "has": []}
            )
            if file["state"] == "present":
                one["has"].append(host)
            elif file["wanted"] and file["state"] == "missing":
                one["gets"].append(host)
            elif file["wanted"]:
                differing.append(f"{host}: {file['name']}")
    if differing:
        raise RunError(
            f"Another file has this name: {', '.join(differing[:10])}. It is not written over: a server may use it. "
            "Remove it, or write the manifest again with manifest.yml if it is the right one. Nothing was copied."
        )
    return [
        Transfer(name, one["size"], one["sha256"], tuple(one["gets"]), tuple(one["has"]))
        for name, one in sorted(by_name.items())
        if one["gets"]
    ]


def lister_of(transfer: Transfer, available: Mapping[str, str]) -> str:
    """Who lists a file's pieces: controller or mirror where available has it (by name), else a host with the file.

    Raises RunError where no one has it.
    """
    if transfer.name in available:
        return available[transfer.name]
    if not transfer.has:
        raise RunError(
            f"No host of this run has {transfer.name}, and models_source does not have it either. Set models_source to "
            "a folder on the controller or the address of a mirror that has it, or run on a host with the file too "
            "(--limit, target)."
        )
    if transfer.sha256 is None:
        raise RunError(
            f"{transfer.name}: a host's file is only handed on where the manifest has its SHA-256. Write the manifest "
            "with manifest.yml."
        )
    return transfer.has[0]


def check_listed(transfer: Transfer, sha256: str, size: int, where: str) -> None:
    """Raise RunError where a source has another file than the manifest says."""
    if transfer.sha256 not in (None, sha256) or transfer.size not in (None, size):
        raise RunError(
            f"{where} has another {transfer.name} than the manifest: {size} bytes with the sha256 {sha256}, where the "
            f"manifest says {transfer.size} bytes and {transfer.sha256}. Copy the right file there, or write the "
            "manifest again with manifest.yml. Nothing was copied."
        )


def job_files(wanted: Sequence[Transfer], listed: Mapping[str, Mapping[str, Any]], me: str) -> list[dict[str, Any]]:
    """The files of a host's job. listed has by name {"pieces", "from", "mirror"}, the same for all hosts."""
    files = []
    for transfer in wanted:
        source = listed[transfer.name]
        role = "get" if me in transfer.gets else "give" if me in transfer.has else "none"
        files.append(
            {
                "name": transfer.name,
                "pieces": source["pieces"],
                "role": role,
                "hosts": list(transfer.gets),
                "mirror": source.get("mirror", ""),
                # The manifest's, never one that a host or a FILE.pieces has: these may be another's work.
                "sha256": transfer.sha256 or "",
            }
        )
    return files


def job_peers(wanted: Sequence[Transfer], addresses: Mapping[str, str], me: str) -> list[dict[str, Any]]:
    """The other hosts of a host's job, by name and address, with the numbers of the files that they had before."""
    hosts = {host for transfer in wanted for host in (*transfer.gets, *transfer.has)}
    return [
        {
            "name": host,
            "host": address,
            "seeds": [number for number, transfer in enumerate(wanted) if host in transfer.has],
        }
        for host, address in addresses.items()
        if host in hosts and host != me
    ]


def pushed(
    missing: Sequence[int], hosts: Sequence[str], me: str, *, is_alone: bool, is_stalled: bool, limit: int
) -> list[int]:
    """The pieces that the controller gives a host next.

    These are those that it is shown first, the others of hosts come from these; all where it reaches no other host,
    and a few, not the same on each host, where nothing moves.
    """
    own = hosts.index(me) if me in hosts else 0
    if is_alone:
        return list(missing[:limit])
    mine = [number for number in missing if hosts[number % len(hosts)] == me]
    if mine or not is_stalled:
        return mine[:limit]
    start = own * len(missing) // max(1, len(hosts))
    return [*missing[start:], *missing[:start]][:limit]
