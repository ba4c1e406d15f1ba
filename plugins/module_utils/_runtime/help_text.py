# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What a llama-server prints about itself: its version and the flags that it accepts."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._core.errors import MagiError
from .flags import Flag, flag_name


class VersionError(MagiError):
    """Raised for unknown output of --version."""


_SPELLING = re.compile(r"-{1,2}[A-Za-z0-9][A-Za-z0-9._-]*")
_ENTRY = re.compile(r"(?P<indent> {0,12})(?=-{1,2}[A-Za-z])")
_ENV = re.compile(r"\(env: (?:LLAMA_ARG_)?([A-Z0-9_]+)\)")
_REMOVED = re.compile(r"argument has been removed", re.IGNORECASE)
_NEW_VERSION = re.compile(r"^version:\s*(\S+)\s+\(build\s+(\d+)(?:,\s*commit\s+([^)\s]+))?\)", re.MULTILINE)
_OLD_VERSION = re.compile(r"^version:\s*(\d+)(?:\s+\(([^)\s]+)\))?", re.MULTILINE)
_COMMIT = re.compile(r"[0-9a-f]{6,40}")


@dataclass(frozen=True)
class Version:
    """The output of --version. build is upstream's build number, the only part that can be compared."""

    version: str
    build: int | None
    commit: str | None


def parse_version(text: str) -> Version:
    """Read the output of --version, in the old format (9305 (63248fc3e)) or the new (0.7.0 (build 11669, commit …))."""
    new = _NEW_VERSION.search(text)
    if new:
        return Version(new[1], int(new[2]) or None, _commit(new[3]))
    old = _OLD_VERSION.search(text)
    if old:
        # Built without git, it reports 0 (unknown), which cannot be compared.
        return Version(old[1], int(old[1]) or None, _commit(old[2]))
    shown = next((line.strip()[:200] for line in text.splitlines() if line.strip()), "nothing")
    raise VersionError(f"the output of --version is not that of llama-server; it printed: {shown}")


def _commit(text: str | None) -> str | None:
    # Some distributions print their own name here.
    return text if text and _COMMIT.fullmatch(text) else None


def parse_help(text: str) -> dict[str, Flag]:
    """Read the output of --help: every flag by its canonical long name in snake_case."""
    found = [flag for flag in map(_entry_flag, _entries(text)) if flag]
    flags = {flag.name: flag for flag in found}
    for flag in found:
        opposite = flags.get(flag.name[3:]) if flag.name.startswith("no_") else None
        # Older builds list a flag and its negation separately.
        if opposite and not flag.value and not opposite.value and not opposite.negation:
            flags[opposite.name] = _replace(opposite, negation=flag.spelling, shorts=opposite.shorts)
            del flags[flag.name]
    return {name: _resolve_instead(flag, flags) for name, flag in flags.items()}


def _replace(flag: Flag, **changes: Any) -> Flag:
    return Flag(**{**flag.__dict__, **changes})


def _resolve_instead(flag: Flag, flags: Mapping[str, Flag]) -> Flag:
    """Resolve the replacement of a removed flag to existing flags: the help may say --spec-ngram-*-size-n."""
    if not flag.removed:
        return flag
    present = sorted(name for name, other in flags.items() if not other.removed)
    instead = [name for pattern in flag.instead for name in fnmatch.filter(present, pattern)]
    return _replace(flag, instead=tuple(dict.fromkeys(instead)))


def _entries(text: str) -> list[tuple[str, str]]:
    """Split the help into (names and value, description)."""
    lines = text.splitlines()
    column = _description_column(lines)
    entries: list[tuple[str, list[str]]] = []
    for line in lines:
        if _ENTRY.match(line):
            head, description = _split_head(line, column)
            entries.append((head, [description] if description else []))
        elif not line.strip():
            continue
        elif entries and line.startswith(" "):
            entries[-1][1].append(line.strip())
    return [(head, " ".join(description)) for head, description in entries]


def _description_column(lines: Iterable[str]) -> int:
    """The column of descriptions: the most common indent of continuation lines."""
    indents = Counter(len(line) - len(line.lstrip()) for line in lines if line.strip() and not _ENTRY.match(line))
    indents.pop(0, None)
    return indents.most_common(1)[0][0] if indents else 40


def _split_head(line: str, column: int) -> tuple[str, str]:
    """Split a flag's names and value from its description, which begins after two spaces or at the column."""
    indent = len(line) - len(line.lstrip())
    for gap in re.finditer(r" {2,}", line[indent:]):
        start, end = indent + gap.start(), indent + gap.end()
        # Short names are padded, so a gap after a comma is still between names.
        if line[start - 1] != "," or not _SPELLING.match(line, end):
            return line[indent:start], line[end:]
    head = line[indent:column].rstrip()
    # Names that fill the column leave one space; a head that is longer has its description on the next line.
    filled = len(line) > column and line[column - 1 : column] == " " and line[column] not in " -"
    if filled and indent + len(head) == column - 1 and not head.endswith(",") and head.count("<") == head.count(">"):
        return head, line[column:]
    return line[indent:].rstrip(), ""


def _entry_flag(entry: tuple[str, str]) -> Flag | None:
    """Return the flag of one entry of the help; None if it has no long name."""
    head, description = entry
    spellings, hint = _spellings(head)
    positive, negative = _part_negations(spellings)
    longs = [spelling for spelling in positive if spelling.startswith("--")]
    if not longs:
        return None
    spelling = _canonical(longs, description)
    negations = [name for name in negative if name.startswith("--")]
    preferred = "--no-" + spelling[2:]
    negation = preferred if preferred in negations else next(iter(negations), None)
    removed = bool(_REMOVED.search(description))
    others = [flag_name(name) for name in (*longs, *negations) if name not in (spelling, negation)]
    return Flag(
        name=flag_name(spelling),
        spelling=spelling,
        value=bool(hint),
        words=_words(hint),
        choices=() if removed else _choices(hint, description),
        auto=bool(hint) and not _choices(hint, "") and bool(re.search(r"'auto'|default: auto\b", description)),
        joined=bool(hint) and (hint.endswith(",...") or "comma-separated" in description),
        negation=negation,
        aliases=tuple(others),
        shorts=tuple(name.lstrip("-") for name in positive if not name.startswith("--")),
        removed=removed,
        instead=tuple(flag_name(name) for name in re.findall(r"--[a-z0-9*-]+", description)) if removed else (),
    )


def _spellings(head: str) -> tuple[list[str], str]:
    """Read "-c, --ctx-size N" as its spellings and the hint of its value. Old help repeats the hint after each one."""
    spellings: list[str] = []
    hint = ""
    position = 0
    while True:
        match = _SPELLING.match(head, position)
        if not match:
            return spellings, hint
        spellings.append(match[0])
        rest = head[match.end() :]
        following = re.search(r",\s*(?=-{1,2}[A-Za-z])", rest)
        hint = (rest[: following.start()] if following else rest).strip().rstrip(",") or hint
        if not following:
            return spellings, hint
        position = match.end() + following.end()


def _part_negations(spellings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split spellings into those that turn a flag on and off: "-kvo, --kv-offload, -nkvo, --no-kv-offload"."""
    for index, spelling in enumerate(spellings):
        if not spelling.startswith("--no-") or not any(s.startswith("--") for s in spellings[:index]):
            continue
        start = index
        while start > 1 and spellings[start - 1].startswith("-n"):
            start -= 1
        return list(spellings[:start]), list(spellings[start:])
    return list(spellings), []


def _canonical(longs: Sequence[str], description: str) -> str:
    """Return the spelling that the flag's environment variable is named after, or else upstream's first spelling."""
    env = _ENV.search(description)
    named = "--" + env[1].lower().replace("_", "-") if env else ""
    return named if named in longs else longs[0]


def _words(hint: str) -> int:
    if not hint:
        return 0
    return len(hint.split()) if re.fullmatch(r"[A-Z]+( [A-Z]+)+", hint) else 1


def _choices(hint: str, description: str) -> tuple[str, ...]:
    """Return the values that a flag accepts, if listed: [on|off], {none,layer}, <0|1>, allowed values: …"""
    bracketed = re.fullmatch(r"[\[{<]([\w.+-]+(?:[|,][\w.+-]+)+)[\]}>]", hint)
    if bracketed and ".." not in hint and not re.search(r"\d,", bracketed[1]):
        return tuple(re.split(r"[|,]", bracketed[1]))
    allowed = re.search(r"allowed values: ((?:[\w.]+, )*[\w.]+)", description)
    return tuple(allowed[1].split(", ")) if allowed else ()
