# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs in JSON lines read as plain ones."""

from __future__ import annotations

import pytest
from ansible_collections.magi.llama.plugins.module_utils._services.base import log_lines
from ansible_collections.magi.llama.plugins.module_utils._services.server_log import MAX_LINE_BYTES, parsed, plain_lines
from ansible_collections.magi.llama.plugins.module_utils._services.systemd_driver import parse_journal

LINES = [
    "error: invalid argument: --x",
    '{"type":"log","time":1,"level":"error","msg":"srv load_model: failed to open GGUF file \'/m/\\"x\\".gguf\'\\n"}',
    '{"type":"fit_memory_breakdown","data":{"unit":"MiB","rows":[]}}',
    '{"type":"log","msg":7}',
    '{"type":"log","msg":',
    '{"type":"log","time":2,"level":"info","msg":"two\\nlines\\n"}',
]
PLAIN = [
    "error: invalid argument: --x",
    "srv load_model: failed to open GGUF file '/m/\"x\".gguf'",
    '{"type":"log","msg":',
    "two",
    "lines",
]


def test_messages_are_shown_without_json() -> None:
    assert plain_lines(LINES) == PLAIN
    assert log_lines("\n".join(LINES) + "\n", 2) == ["two", "lines"]
    assert log_lines("", 5) == []


@pytest.mark.parametrize(
    "line", ['{"type":"' + "x" * MAX_LINE_BYTES + '"}', "[" * 9999, '{"type":' + "[" * 9999, "null"]
)
def test_hostile_lines_are_no_objects(line: str) -> None:
    assert parsed(line) is None


def test_journal_is_split_by_process() -> None:
    output = "\n".join(
        [
            '{"_PID":"5","SYSLOG_IDENTIFIER":"a","MESSAGE":"of a"}',
            '{"_PID":"6","SYSLOG_IDENTIFIER":"b","MESSAGE":"of b"}',
            # A PID that was another program's since the boot.
            '{"_PID":"5","SYSLOG_IDENTIFIER":"sshd","MESSAGE":"of sshd"}',
            # Not UTF-8, and hostile.
            '{"_PID":"5","SYSLOG_IDENTIFIER":"a","MESSAGE":[255,111,107,999,"x"]}',
            '{"_PID":"5","SYSLOG_IDENTIFIER":"a","MESSAGE":null}',
            "not json",
            "[" * 9999,
            "7",
        ]
    )
    assert parse_journal(output, {"a": 5, "b": 6, "c": 7}) == {"a": ["of a", "\ufffdok"], "b": ["of b"], "c": []}
