# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Which files of a manifest a host is to have."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .._core.errors import MagiError
from .._models.names import QUANT_TOKEN, slug, split_name
from .._models.quantization import tier_of
from .._plan.profile import matches, nearest

MAX_NAME = 400


class WantedError(MagiError):
    """A name of a file that cannot be used, or that no one knows."""


def check_name(name: str) -> str:
    """Return a file's path relative to the models folder. Raises WantedError where it could lead out of it."""
    parts = name.split("/")
    if not name.isprintable() or len(name) > MAX_NAME or "\\" in name or any(part[:1] in ("", ".") for part in parts):
        raise WantedError(
            f"{name!r:.100} is not the path of a model file below a models folder: no part of it may be empty or begin "
            "with a dot, and it is not absolute. Rename the file, or write the manifest again from one scan path."
        )
    if not name.endswith(".gguf"):
        raise WantedError(f"{name} does not end in .gguf. Only model files are distributed.")
    return name


def chosen_by_name(wanted: Sequence[str], known: Iterable[str]) -> list[str]:
    """The files of known that are named by path, file name or id, with all shards of a model; sorted.

    Raises WantedError, naming the nearest, where one is not known.
    """
    files = sorted(known)
    found: set[str] = set()
    for name in wanted:
        picked = [path for path in files if name in (path, posixpath.basename(path), slug(path))]
        if not picked:
            raise WantedError(f'models_files: there is no file "{name}": {nearest(name, _words(files))}')
        found.update(_with_shards(picked, files))
    return sorted(found)


def _words(files: Iterable[str]) -> set[str]:
    return {word for path in files for word in (path, slug(path))}


def _with_shards(picked: Iterable[str], files: Sequence[str]) -> set[str]:
    groups = {_group(path) for path in picked}
    return {path for path in files if _group(path) in groups}


def _group(path: str) -> str:
    """What all shards of a model have in common; the path of a file that is not a shard."""
    folder, name = posixpath.split(path)
    shard = split_name(name)
    return posixpath.join(folder, f"{shard.stem} of {shard.total}") if shard else path


def chosen_by_profile(profile: Mapping[str, Any], known: Iterable[str]) -> tuple[list[str], list[str]]:
    """The files that a validated profile names, with the projectors in their folders; and the keys that name none.

    A manifest knows names only, so an id has to be that of the file's name, and a selector by architecture or kind
    picks nothing.
    """
    files = sorted(known)
    models = [(path, {"id": slug(path), "tier": _tier(path)}) for path in files if not _is_projector(path)]
    found: set[str] = set()
    without: list[str] = []
    for entry in profile["enabled_models"]:
        selector = entry["selector"] if entry["model"] is None else {}
        picked = [
            path
            for path, model in models
            if (model["id"] == entry["model"] if entry["model"] is not None else matches(selector, model))
        ]
        if not picked:
            without.append(f"{entry['key']} ({entry['model'] or ', '.join(f'{k}: {v}' for k, v in selector.items())})")
        found.update(_with_shards(picked, files))
    folders = {posixpath.dirname(path) for path in found}
    found.update(path for path in files if _is_projector(path) and posixpath.dirname(path) in folders - {""})
    return sorted(found), without


def _is_projector(path: str) -> bool:
    return "mmproj" in posixpath.basename(path).lower()


def _tier(path: str) -> str | None:
    """The tier in a file's name."""
    found = QUANT_TOKEN.findall(posixpath.basename(path))
    return tier_of(found[-1]) if found else None
