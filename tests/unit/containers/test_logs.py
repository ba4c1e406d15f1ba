# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Log files as lines of standard output."""

from __future__ import annotations

from pathlib import Path

from magi_container.logs import LONGEST_LINE, LogFollower


def test_lines_are_shown_once_with_the_name_of_their_server(tmp_path: Path) -> None:
    lines: list[str] = []
    follower = LogFollower(tmp_path, lines.append)
    log = tmp_path / "tiny.log"
    log.write_text("one\ntw")
    follower.look()
    with log.open("a") as stream:
        stream.write("o\n")
    follower.look()
    follower.look()
    assert lines == ["tiny | one", "tiny | two"]


def test_what_was_logged_before_the_start_is_not_shown_again(tmp_path: Path) -> None:
    lines: list[str] = []
    (tmp_path / "tiny.log").write_text("old\n")
    follower = LogFollower(tmp_path, lines.append)
    follower.start()
    with (tmp_path / "tiny.log").open("a") as stream:
        stream.write("new\n")
    follower.end()
    assert lines == ["tiny | new"]


def test_a_rotated_log_is_read_from_its_beginning(tmp_path: Path) -> None:
    lines: list[str] = []
    follower = LogFollower(tmp_path, lines.append)
    (tmp_path / "tiny.log").write_text("a long first line\n")
    follower.look()
    (tmp_path / "tiny.log").rename(tmp_path / "tiny.log.1")
    (tmp_path / "tiny.log").write_text("second\n")
    follower.look()
    assert lines == ["tiny | a long first line", "tiny | second"]


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    lines: list[str] = []
    (tmp_path / "tiny.log").write_text("x" * (LONGEST_LINE + 1))
    LogFollower(tmp_path, lines.append).look()
    assert [len(line) for line in lines] == [len("tiny | ") + LONGEST_LINE + 1]
