# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What files' names say: shards, quantizations, and the ids that models have from them."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from .stores import stable_path

MAX_ID = 128
_SPLIT = re.compile(r"^(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<total>[0-9]{5})\.gguf$")

# A quantization as written in file names: UD-Q4_K_XL, IQ2_XXS, q4_0, MXFP4, BF16, …
QUANT_TOKEN = re.compile(
    r"(?:^|(?<=[-._ ]))(?:UD[-_])?"
    r"(?:I?Q[1-8]_(?:K_)?(?:XXS|XXL|XS|XL|NL|S|M|L|P)|Q[1-8]_(?:K|[01](?:_[48]_[48])?)|I?Q[1-8]|TQ[12]_0"
    r"|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32)(?=$|[-._ ])",
    re.IGNORECASE,
)

# llama.cpp's own download folder has OWNER_REPOSITORY_FILE; a repository is called like its files, with -GGUF.
_DOWNLOADED = re.compile(r"[^_]+_(?P<repository>.+)[-_]GGUF_(?P<file>(?P=repository)[-._].+)$", re.IGNORECASE)


class SplitName(NamedTuple):
    stem: str
    number: int
    total: int


def split_name(name: str) -> SplitName | None:
    """Parse a shard's file name; None if it is not a shard's."""
    match = _SPLIT.match(name)
    return SplitName(match["stem"], int(match["number"]), int(match["total"])) if match else None


def stem_of(path: str) -> str:
    """The file's name without folder, extension and shard number, and without llama.cpp's repository before it."""
    name = os.path.basename(path)
    shard = split_name(name)
    stem = shard.stem if shard else name[: -len(".gguf")] if name.lower().endswith(".gguf") else name
    downloaded = _DOWNLOADED.match(stem)
    return downloaded["file"] if downloaded else stem


def slug(path: str) -> str:
    """Return an id from a file's name: lower case, [a-z0-9._-], a letter or digit first; empty if nothing is left."""
    plain = unicodedata.normalize("NFKD", stem_of(path)).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._]+", "-", plain).strip("-._")[:MAX_ID].rstrip("-._")


def assign_ids(
    paths: Iterable[str], known: Mapping[str, str], aliases: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """Return an id for every path, independent of their order; aliases are names to use instead of a path's own.

    A path keeps its known id. A new path gets its slug if no other path has the same slug, otherwise the slug with a
    hash of the path as suffix, which does not change when other files are added or removed.
    """
    ordered = sorted(set(paths))
    slugs = {path: slug(aliases.get(path, path)) for path in ordered}
    files_of: dict[str, int] = {}
    for base in slugs.values():
        files_of[base] = files_of.get(base, 0) + 1
    ids: dict[str, str] = {}
    taken: set[str] = set()

    def give(path: str, name: str) -> bool:
        if path in ids or not name or name in taken:
            return False
        ids[path] = name
        taken.add(name)
        return True

    # A new revision of Hugging Face's cache is the same file of the same repository.
    moved = {stable_path(path): name for path, name in known.items() if "/snapshots/" in path}
    for path in ordered:
        name = known.get(path) or (moved.get(stable_path(path)) if moved else None)
        if name is not None and (name == slugs[path] or name in _suffixed(path, slugs[path])):
            give(path, name)
    for path in ordered:
        if files_of[slugs[path]] == 1:
            give(path, slugs[path])
    for path in ordered:
        for name in _suffixed(path, slugs[path]):
            if path in ids or give(path, name):
                break
    return ids


def _suffixed(path: str, base: str) -> list[str]:
    """Return the slug with increasingly long suffixes of the path's hash."""
    digest = hashlib.sha256(stable_path(path).encode("utf-8", "surrogateescape")).hexdigest()
    return [f"{base or 'model'}-{digest[:length]}" for length in (6, 12, 24, 64)]


def other_quantization(name: str, model_id: str) -> bool:
    """Whether a name and a model's id differ only in their quantization, such as q8_0 or q4_k_m."""
    parts = [(QUANT_TOKEN.split(text), QUANT_TOKEN.findall(text)) for text in (name, model_id)]
    return parts[0][0] == parts[1][0] and all("_" in found[-1] or "16" in found[-1] for _rest, found in parts if found)
