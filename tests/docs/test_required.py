# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every command that the documentation names has what its playbook requires, and sizes are those that a plan makes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ansible_collections.magi.llama.plugins.module_utils._plan.cpu import Demand, share_cores
from support.doc_blocks import FENCE, PAGES, ROOT

BOOKS = yaml.safe_load((ROOT / "meta/extra_vars.yml").read_text())["playbooks"]
REQUIRED = {name: book["required"] for name, book in BOOKS.items() if book.get("required")}
CALLED = re.compile(rf"(?:^|[\s/])(?:magi\.llama\.)?(?P<book>{'|'.join(REQUIRED)})(?:\.yml)?(?=\s|$)")


def pieces(text: str) -> Iterator[str]:
    """The commands of the shell's blocks, one a line, and the code in sentences."""
    for block in FENCE.finditer(text):
        if block["language"] in ("sh", "bash", "console"):
            yield from block["text"].replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`]+)`", FENCE.sub("", text))


def lacking(piece: str) -> list[str]:
    """The variables that a command of the documentation lacks; a playbook's bare name is none."""
    called = CALLED.search(piece)
    if called is None or not re.search(r"\.yml|magi\.llama\.", called[0]):
        return []
    return [name for name in REQUIRED[called["book"]] if not re.search(rf"-e ['\"]?{name}=", piece)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_the_variables_that_their_playbooks_require(page: Path) -> None:
    found = {piece: names for piece in pieces(page.read_text()) if (names := lacking(piece))}
    assert found == {}


@pytest.mark.parametrize(
    ("piece", "names"),
    [
        ("start.yml", ["servers"]),
        ("ansible-playbook playbooks/stop.yml --limit a", ["servers"]),
        ("ansible-playbook magi.llama.restart", ["servers"]),
        ("restart.yml -e servers=<name>", []),
        ("site.yml", []),
        ("restart", []),
    ],
)
def test_what_a_command_lacks(piece: str, names: list[str]) -> None:
    assert lacking(piece) == names


def test_threads_of_the_page_on_sizing_are_those_of_a_plan() -> None:
    text = (ROOT / "docs/sizing.md").read_text()
    section = " ".join(text[text.index("## Cores") : text.index("## Speed")].split())
    assert "threads: auto" in section and "cpu_share" in section
    both = share_cores(16, [Demand("a", 2), Demand("b")])
    assert f"16 cores, which get {both['a']} and {both['b']} threads" in section
    four = [Demand(name) for name in "abcd"]
    for_all, for_two = (share_cores(16, four, busy)["a"] for busy in (None, 2))
    assert f"get {for_all} threads each, and with `servers_cpu_expected_busy: 2` they get {for_two}." in section
    assert share_cores(2, four[:2]) == {"a": 1, "b": 1} and "two servers get one thread each" in section
