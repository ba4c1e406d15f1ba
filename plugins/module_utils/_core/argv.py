# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Look flags up in a command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

# Files that llama-server reads.
PATH_FLAGS = ("--model", "--mmproj", "--lora", "--model-draft", "--spec-draft-model", "--chat-template-file")

# Flags whose path a server writes below, and the one whose path is a file that it writes.
WRITE_FILE_FLAG = "--lookup-cache-dynamic"
WRITE_FLAGS = ("--slot-save-path", "--log-prompts-dir", WRITE_FILE_FLAG)

_SHARD = re.compile(r"(.*)-[0-9]{5}-of-([0-9]{5})\.gguf")


def shards(path: str) -> list[str]:
    """All files of a model that is split, by one of them, as llama-server opens them; otherwise the path alone."""
    match = _SHARD.fullmatch(path)
    if not match:
        return [path]
    return [f"{match[1]}-{number:05d}-of-{match[2]}.gguf" for number in range(1, int(match[2]) + 1)]


def flag_values(argv: Sequence[str], flags: Iterable[str]) -> Iterator[str]:
    """The word after each occurrence of one of these flags."""
    wanted = set(flags)
    return (value for word, value in zip(argv, argv[1:]) if word in wanted)


def flag_value(argv: Sequence[str], flag: str) -> str | None:
    """The word after the first occurrence of a flag; None if the command line lacks it."""
    return next(flag_values(argv, [flag]), None)
