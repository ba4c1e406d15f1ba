# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Texts of exported YAML stay texts, whichever version of YAML its reader has."""

from __future__ import annotations

import pytest
import yaml
from ansible_collections.magi.llama.plugins.plugin_utils.export_text import to_text

# By YAML 1.2's core schema, YAML 1.1, and Go's strconv, where PyYAML quotes only what it reads itself.
OTHERS = [
    "1e6",
    "1e-05",
    "1.5e3",
    "0123456789",
    "0o10",
    "0x1F",
    "0b11",
    "1_000",
    "190:20:30",
    "-7",
    "+7",
    ".5",
    "5.",
    "-.inf",
    ".NaN",
    "y",
    "N",
    "yes",
    "off",
    "true",
    "Null",
    "~",
    "=",
    "<<",
    "2001-01-01",
    "1E6",
    "-0o7",
    "08",
]


@pytest.mark.parametrize("word", OTHERS)
def test_text_that_a_reader_takes_for_something_else_is_quoted(word: str) -> None:
    text = to_text("a.yaml", {word: [word]})
    assert f"'{word}':\n- '{word}'\n" in text and yaml.safe_load(text) == {word: [word]}


def test_numbers_and_other_texts_are_written_as_they_are() -> None:
    text = to_text("a.yaml", {"port": 8080, "on_demand": False, "names": ["llama-server", "--port", "1 word"]})
    assert text.endswith("port: 8080\non_demand: false\nnames:\n- llama-server\n- --port\n- 1 word\n")
