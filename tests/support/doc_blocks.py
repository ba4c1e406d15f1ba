# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fenced blocks of the documentation, and the commands in those of the shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**/*.md", "roles/*/README.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^ *```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
# The comment right before a block: <!-- run: demo -->, <!-- not run: why -->, <!-- yaml: profile -->.
MARK = re.compile(r"<!-- (?P<kind>[a-z ]+): (?P<value>[^>]+?) -->\n+ *$")
SHELLS = ("sh", "bash", "console")


@dataclass(frozen=True)
class Block:
    """A block: where it is, its language, its text, and the mark before it, such as ("run", "demo")."""

    place: str
    language: str
    text: str
    mark: tuple[str, str] | None

    def __str__(self) -> str:
        return self.place


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """The blocks of a page."""
    for found in FENCE.finditer(text):
        mark = MARK.search(text, 0, found.start())
        line = text.count("\n", 0, found.start()) + 1
        indent = len(found[0]) - len(found[0].lstrip(" "))
        body = re.sub(rf"^ {{{indent}}}", "", found["text"], flags=re.MULTILINE)
        yield Block(f"{page}:{line}", found["language"], body, (mark["kind"], mark["value"]) if mark else None)


def all_blocks() -> list[Block]:
    """The blocks of all pages."""
    return [block for page in PAGES for block in blocks_of(str(page.relative_to(ROOT)), page.read_text())]


def commands(shell: str) -> list[list[str]]:
    """The commands of a shell block as words: no comments, no variables set before a command."""
    lines = shell.replace("\\\n", " ").splitlines()
    result = []
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        lexer.commenters = "#"
        command: list[str] = []
        for word in [*lexer, ";"]:
            if word in (";", "&&", "||", "|", "&"):
                result += [command] if command else []
                command = []
            elif command or not re.match(r"[A-Z_]+=", word):
                command.append(word)
    return result


def unchecked(block: Block) -> list[str]:
    """What of a block nothing would look at: the reasons why it must be marked."""
    if block.language in SHELLS and block.mark is None:
        return [
            f"`{' '.join(command)}` needs a mark: run, or not run with the reason"
            for command in commands(block.text)
            if command[0] not in ("make", "ansible-playbook")
        ]
    if block.language in ("yaml", "yml") and block.mark is None and not re.search(r"^- .*\n  hosts:", block.text, re.M):
        return ["YAML needs a mark: profile, variables, inventory or playbook, or not run with the reason"]
    if block.language not in (*SHELLS, "yaml", "yml", "json", "text"):
        return [f"the language {block.language!r} is not one of sh, yaml, json, text"]
    return []
