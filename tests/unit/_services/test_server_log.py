# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs in JSON lines read as plain ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._services.base import LogLine, log_lines
from ansible_collections.magi.llama.plugins.module_utils._services.journal import journal_lines, parse_journal
from ansible_collections.magi.llama.plugins.module_utils._services.log_files import LogFiles
from ansible_collections.magi.llama.plugins.module_utils._services.server_log import (
    MAX_LINE_BYTES,
    lines_since,
    parsed,
    plain_lines,
)

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


def entry(text: str, who: str, second: int) -> str:
    microseconds = str(1_795_830_000_000_000 + second * 1_000_000)
    return json.dumps({"__REALTIME_TIMESTAMP": microseconds, "SYSLOG_IDENTIFIER": who, "MESSAGE": text})


def test_journal_of_a_unit_has_times_and_what_systemd_reports() -> None:
    output = "\n".join(
        [
            entry("first", "a", 0),
            entry(LINES[5], "a", 1),
            entry("Main process exited, code=killed, status=9/KILL", "systemd", 2),
            entry("\x1b[2Jx" + "y" * 1000, "a", 3),
        ]
    )
    found = journal_lines(output, "a", 4)
    assert found[:3] == [
        LogLine("two", "2026-11-28T01:40:01Z"),
        LogLine("lines", "2026-11-28T01:40:01Z"),
        LogLine("systemd: Main process exited, code=killed, status=9/KILL", "2026-11-28T01:40:02Z"),
    ]
    assert found[3].text.startswith("\\x1b[2Jxy") and len(found[3].text) < 520
    assert journal_lines('{"MESSAGE":"no time"}', "a", 4) == [LogLine("no time")]


def timed(*seconds: int) -> list[str]:
    return [json.dumps({"type": "log", "time": s * 1_000_000, "msg": str(s)}, separators=(",", ":")) for s in seconds]


@pytest.mark.parametrize(
    ("lines", "moment", "shown"),
    [
        # The last line was written at 1000: this process began at 900.
        (timed(1, 50, 100), 950, 2),
        (timed(1, 50, 100), 951, 1),
        (timed(1, 50, 100), 0, 3),
        (timed(1, 50, 100), 1001, 0),
        # The process before ended when this one began, at 900, if not earlier.
        (timed(10, 30, 1, 100), 880, 4),
        (timed(10, 30, 1, 100), 881, 3),
        (timed(10, 30, 1, 100), 901, 2),
        # A line without a time is as old as the next one that has it.
        (["plain", *timed(50), "plain", *timed(100)], 960, 2),
        (["plain", "plain"], 999, 2),
        (["plain", "plain"], 1001, 0),
        ([], 1, 0),
    ],
)
def test_lines_of_a_file_are_dated_from_its_end(lines: list[str], moment: int, shown: int) -> None:
    assert lines_since(lines, moment, 1000) == lines[len(lines) - shown :]


@pytest.mark.parametrize("names", [["a.log"], ["a.log", "a.log.1"], ["a.log", "a.log.1", "a.log.2"]])
def test_log_before_a_rotation_is_read_too(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "log").mkdir()
    for place, name in enumerate(names):
        (tmp_path / "log" / name).write_text(f"line of file {place}\n" * 2)
    found = LogFiles(str(tmp_path), "/nonexistent").last("a", 5, None)
    assert found == [f"line of file {place}" for place in reversed(range(len(names))) for _ in range(2)][-5:]
    assert LogFiles(str(tmp_path), "/nonexistent").last("b", 5, None) == []
    assert LogFiles(str(tmp_path), "/nonexistent").last("a", 5, 2e10) == []
