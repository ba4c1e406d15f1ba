# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the extra variables of playbooks take."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.plugin_utils.extra_vars import errors, load_spec, words

OPTIONS = load_spec()["variables"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target", ["gpu", "cpu"]),
        ("profile", "production"),
        ("output", "json"),
        ("fail_on", "degraded"),
        ("fail_on", "degraded, drift"),
        ("fail_on", ["drift"]),
        ("fail_on", []),
        ("fail_on", ""),
        ("rollout_serial", [1, "25%"]),
        ("rollout_serial", '[1, "25%"]'),
        ("rollout_serial", "[1,2]"),
        ("rollout_serial", "5"),
        ("rollout_serial", 5),
        ("rollout_serial", "100%"),
        ("rollout_connection_timeout", "30"),
        ("verify_timeout", "2.5"),
        ("verify_timeout", 300),
        ("verify_api_key", "sk-1"),
        ("rollback_keep_binary", "yes"),
        ("rollback_keep_binary", False),
    ],
)
def test_valid_value_passes(name: str, value: Any) -> None:
    assert errors(OPTIONS, {name: value}) == []


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("profile", ["a"], "profile is ['a']: it is a text."),
        ("output", "yaml", 'output is "yaml": it is one of table, json.'),
        ("output", "", 'output is "": it is one of table, json.'),
        ("output", "jsn", 'output is "jsn": it is one of table, json; did you mean "json"?'),
        (
            "fail_on",
            "degarded, drift",
            'fail_on is "degarded, drift": it takes degraded, drift, or several of them separated by commas; '
            'did you mean "degraded"?',
        ),
        ("fail_on", "x", 'fail_on is "x": it takes degraded, drift, or several of them separated by commas.'),
        ("fail_on", ["drift", "x"], "fail_on is ['drift', 'x']: it takes degraded, drift, or several of them"),
        ("rollout_serial", "abc", 'rollout_serial is "abc": it is a list such as [1, "25%"].'),
        ("rollout_serial", "[1", 'rollout_serial is "[1": it is a list such as [1, "25%"].'),
        ("rollout_serial", 0, 'rollout_serial is 0: it is a list such as [1, "25%"].'),
        ("rollout_serial", "0%", 'rollout_serial is "0%": it is a list such as [1, "25%"].'),
        ("rollout_serial", "200%", 'rollout_serial is "200%": it is a list such as [1, "25%"].'),
        ("rollout_serial", [], 'rollout_serial is []: it is a list such as [1, "25%"].'),
        ("rollout_connection_timeout", "soon", 'rollout_connection_timeout is "soon": it is a whole number.'),
        ("rollout_connection_timeout", "2.5", 'rollout_connection_timeout is "2.5": it is a whole number.'),
        ("rollout_connection_timeout", True, "rollout_connection_timeout is True: it is a whole number."),
        ("rollout_connection_timeout", 0, "rollout_connection_timeout is 0: it is a whole number, 1 or more."),
        ("verify_timeout", "nan", 'verify_timeout is "nan": it is a number, 0.1 or more.'),
        ("verify_timeout", None, "verify_timeout is None: it is a number."),
        ("rollback_keep_binary", "maybe", 'rollback_keep_binary is "maybe": it is true or false.'),
        ("verify_api_key", ["secret"], "verify_api_key has an invalid value: it is a text."),
    ],
)
def test_invalid_value_is_a_sentence(name: str, value: Any, says: str) -> None:
    (found,) = errors(OPTIONS, {name: value})
    assert found.startswith(says)
    assert found.endswith((".", "?"))


def test_variables_of_other_playbooks_are_ignored() -> None:
    assert errors({"output": OPTIONS["output"]}, {"output": "json", "verify_timeout": "x"}) == []


def test_words_of_list_and_text_are_the_same() -> None:
    assert words("degraded, drift") == words(["degraded", "drift"]) == words("[degraded, drift]")
    assert words("") == []
    assert words(2) == ["2"]


def test_defaults_are_valid() -> None:
    defaults = {name: option["default"] for name, option in OPTIONS.items() if "default" in option}
    assert {"output", "rollout_serial", "verify_timeout"} <= set(defaults)
    assert errors(OPTIONS, defaults) == []
