# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Untrusted text cannot change a terminal, hide or reorder what is read, or fill the screen."""

from __future__ import annotations

import pytest
from ansible_collections.magi.llama.plugins.module_utils._arguments.answers import held_answer
from ansible_collections.magi.llama.plugins.module_utils._core.text import (
    bounded,
    visible_line,
    visible_lines,
    visible_text,
    visible_value,
)
from ansible_collections.magi.llama.plugins.module_utils._output.report import discovery_lines
from ansible_collections.magi.llama.plugins.module_utils._services.base import log_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 日本 😀", "plain ä 日本 😀"),
        ("\x1b[2J\x1b[31mgone\x07", r"\x1b[2J\x1b[31mgone\x07"),
        ("a\rb\x9bc", r"a\rb\x9bc"),
        ("exe\u202efdp", r"exe\u202efdp"),
        ("a\u200bb\u2060c\ufeffd\u3164e\ufe0f", r"a\u200bb\u2060c\ufeffd\u3164e\ufe0f"),
        ("a\u2028b", r"a\u2028b"),
        (b"\xff".decode("utf-8", "surrogateescape"), r"\xff"),
        ("a\tb", "a    b"),
    ],
)
def test_line_has_escapes_for_what_is_not_visible(text: str, shown: str) -> None:
    assert visible_line(text) == shown


def test_lines_are_cut_and_counted() -> None:
    assert visible_line("'" * 40_000) == "'" * 499 + "…"
    assert visible_lines("a\n" * 100_000)[-1] == "… and 99001 more lines"
    assert visible_text("a\r\nb\x1b") == "a\nb\\x1b"
    assert bounded(["a", "b", "c"], 2) == ["a", "b", "      … and 1 more"]


def test_log_lines_are_cut_before_anything_reads_them() -> None:
    assert log_lines("old\n" + "\"'" * 40_000 + "\n\x1b[0m\n", 2) == [("\"'" * 250)[:499] + "…", r"\x1b[0m"]
    assert log_lines("\n", 5) == []


def test_documents_have_escapes_in_keys_and_texts() -> None:
    assert visible_value({"a\u202e": ["\x1b", 1, None], "b": "x\ny"}) == {r"a\u202e": [r"\x1b", 1, None], "b": "x\ny"}


def test_answers_of_hosts_have_escapes() -> None:
    answer = held_answer("server_state", {"failed": True, "msg": "\x1b]0;x\x07", "warnings": ["\u202ea"]})
    assert (answer["msg"], answer["warnings"]) == (r"\x1b]0;x\x07", [r"\u202ea"])


def test_rejected_files_are_not_all_listed() -> None:
    rejected = [{"path": f"/m/{number}.gguf", "reason": "broken"} for number in range(100_000)]
    registry = {"total": 0, "scan_paths": ["/m"], "companions": [], "rejected": rejected}
    lines = discovery_lines(registry, {})
    assert len(lines) == 22 and lines[-1].strip() == "… and 99980 more"
    assert "100000 rejected" in lines[0]
