# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The film of the demo: rendering of a recording, and content of the film in the repository."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"

specification = importlib.util.spec_from_file_location("film", ROOT / "docs/film.py")
assert specification and specification.loader
film = importlib.util.module_from_spec(specification)
sys.modules["film"] = film
specification.loader.exec_module(film)


def texts(svg: str) -> list[str]:
    """The text of each row of the picture."""
    return ["".join(row.itertext()) for row in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def cast(*events: tuple[float, str]) -> str:
    entries = [{"version": 2, "width": film.COLUMNS, "height": film.ROWS}, *([at, "o", text] for at, text in events)]
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def test_line_appears_at_its_time_in_colour() -> None:
    svg = film.render(cast((0, "first\r\n"), (0.5, "\x1b[0;33mchanged\x1b[0m <&>\x1b[K\x07\r\n"), (1, "end")))
    assert texts(svg) == ["first", "changed <&>", "end"]
    assert f'<tspan fill="{film.COLOURS[3]}">changed</tspan><tspan> &lt;&amp;&gt;</tspan>' in svg
    total = 1 + film.END_SECONDS
    assert f"@keyframes a1{{0%{{opacity:0}}{50 / total:.2f}%" in svg


def test_pause_is_shortened() -> None:
    svg = film.render(cast((0, "first\r\n"), (60, "second")))
    assert f"animation:{film.LONGEST_PAUSE + film.END_SECONDS:.2f}s" in svg


def test_long_line_is_wrapped_and_long_text_scrolls() -> None:
    svg = film.render(cast((0, "x" * (film.COLUMNS + 1)), (0, "\r\nline" * film.ROWS)))
    assert texts(svg)[:3] == ["x" * film.COLUMNS, "x", "line"]
    assert f"translateY({-2 * film.LINE_HEIGHT}px)" in svg


def test_local_paths_are_rewritten() -> None:
    assert film.shown(f"{film.ROOT}/.cache and {Path.home()}/x") == "~/magi.llama/.cache and ~/x"


def test_film_in_repository_shows_successful_run_and_answer() -> None:
    rows = texts((ROOT / "docs/demo.svg").read_text())
    text = "\n".join(rows)
    for expected in ("$ make demo", "4 of 4 servers ready", "$ curl -s http://127.0.0.1:8080/v1/chat/completions"):
        assert expected in text
    # The request goes to the server that the run started.
    assert re.search(r"^start +tiny-llama-q2_k +port 8080 ", text.replace("      ", ""), re.MULTILINE)
    assert '"object":"chat.completion"' in "".join(rows)
    assert "failed=0" in text and not re.search(r"failed=[1-9]|fatal:", text)
    assert not re.search(r"(?<![\w~.])/(?:home|root|tmp|builds|srv|Users)/", text)
