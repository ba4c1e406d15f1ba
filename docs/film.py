# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records the demo in a terminal and renders it as an animated SVG: `make film`.

The recording is an asciicast (version 2), .cache/demo.cast, with this checkout's path rewritten; the picture is
docs/demo.svg. Pauses are shortened. Where animations are off, the picture shows the end.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
SHOWN_ROOT = "~/magi.llama"
ASK = '{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}'
COMMANDS = ("make demo", f"curl -s http://127.0.0.1:8080/v1/chat/completions -d '{ASK}'")

COLUMNS, ROWS = 120, 32
LONGEST_PAUSE, TYPED_SECONDS, END_SECONDS = 0.8, 0.9, 8.0
CHARACTER_WIDTH, LINE_HEIGHT, MARGIN = 8.0, 18, 14
PROMPT = "\x1b[1;32m$\x1b[0m "
# The colours of SGR 30 to 37; bold makes no other colour.
COLOURS = ("#6b7280", "#f87171", "#4ade80", "#facc15", "#60a5fa", "#e879f9", "#22d3ee", "#e5e7eb")
SGR = re.compile(r"\x1b\[([0-9;]*)m")
OTHER_SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]|\x1b[()][A-Z0-9]|[\x00-\x08\x0b-\x1a\x1c-\x1f]")


def shown(text: str) -> str:
    """The text without what is this machine's alone."""
    return text.replace(str(ROOT), SHOWN_ROOT).replace(str(Path.home()), "~")


def output_lines(command: str) -> Iterator[tuple[float, str]]:
    """Runs a command in a terminal; each line that it prints, when it was complete, in seconds from the start."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    # As in a terminal of its own, not below another make.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment = {**inherited, "TERM": "xterm-256color"}
    started = time.monotonic()
    with subprocess.Popen(
        ["bash", "-c", command], cwd=ROOT, env=environment, stdin=terminal, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        text = b""
        while True:
            try:
                text += os.read(controller, 65536)
            except OSError:  # The terminal is closed on the other side.
                break
            *lines, text = text.split(b"\n")
            for line in lines:
                yield time.monotonic() - started, line.decode().rstrip("\r")
    os.close(controller)
    if text:
        yield time.monotonic() - started, text.decode()
    if process.returncode != 0:
        sys.exit(f"{command!r} failed with exit code {process.returncode}.")


def check_ports() -> None:
    """Ends where the demo would get other ports than those that are free on a reader's machine."""
    for port in range(8080, 8084):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                sys.exit(f"port {port} is in use: stop what listens there, for example another demo (make demo-stop).")


def record(path: Path) -> None:
    """Writes the recording of COMMANDS."""
    check_ports()
    events: list[tuple[float, str, str]] = []
    start = 0.0
    for command in COMMANDS:
        events.append((start, "o", PROMPT))
        for number, character in enumerate(command, 1):
            events.append((start + 0.5 + TYPED_SECONDS * number / len(command), "o", character))
        start += 0.5 + TYPED_SECONDS
        events.append((start, "o", "\r\n"))
        for seconds, line in output_lines(command):
            events.append((start + seconds, "o", shown(line) + "\r\n"))
        start = events[-1][0] + 1.5
    events.append((start, "o", PROMPT))
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": "make demo"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in (header, *events)))


@dataclasses.dataclass
class Line:
    """A line of the screen: when it appears, when it is complete, and its text with SGR sequences."""

    begins: float
    ends: float
    text: str


def screen_lines(cast: str) -> list[Line]:
    """The lines of a recording, pauses shortened."""
    lines = [Line(0.0, 0.0, "")]
    before = now = 0.0
    for entry in cast.splitlines()[1:]:
        at, _kind, text = json.loads(entry)
        now += min(at - before, LONGEST_PAUSE)
        before = at
        for number, part in enumerate(OTHER_SEQUENCES.sub("", text.replace("\r\n", "\n")).split("\n")):
            if number:
                lines.append(Line(now, now, ""))
            if part:
                if not lines[-1].text:
                    lines[-1].begins = now
                lines[-1].text += part
                lines[-1].ends = now
    return lines


def wrapped(text: str) -> Iterator[list[tuple[str, str]]]:
    """A line's rows, each of pieces with their style: colour and weight as SVG attributes."""
    row: list[tuple[str, str]] = []
    style, room = "", COLUMNS
    for index, part in enumerate(SGR.split(text)):
        if index % 2:
            codes = [int(code or 0) for code in part.split(";")]
            colours = [COLOURS[code % 10] for code in codes if code // 10 in (3, 9) and code % 10 < 8]
            style = f' fill="{colours[-1]}"' if colours else ""
            continue
        while len(part) > room:
            row.append((style, part[:room]))
            yield row
            row, part, room = [], part[room:], COLUMNS
        if part:
            row.append((style, part))
            room -= len(part)
    yield row


def render(cast: str) -> str:
    """The recording as an SVG. Each row is one element that appears at its time; the whole scrolls."""
    lines = screen_lines(cast)
    total = lines[-1].ends + END_SECONDS
    texts, rules, rows, scroll = [], [], 0, ["0%{transform:translateY(0)}"]
    for number, line in enumerate(lines):
        begins, ends = (f"{100 * at / total:.2f}%" for at in (line.begins, line.ends))
        typed = line.ends > line.begins
        count = len(SGR.sub("", line.text))
        hidden = f"opacity:1;clip-path:inset(0 {100 - 200 / max(count, 1):.1f}% 0 0)" if typed else "opacity:1"
        if line.text:
            full = "opacity:1;clip-path:inset(0)"
            pace = f"animation-timing-function:steps({max(count - 2, 1)})" if typed else ""
            rules.append(
                f"@keyframes a{number}{{0%{{opacity:0}}{begins}{{{hidden};{pace}}}{ends},100%{{{full}}}}}"
                f".a{number}{{animation-name:a{number}}}"
            )
        for row in wrapped(line.text):
            rows += 1
            pieces = "".join(f"<tspan{style}>{escape(text)}</tspan>" for style, text in row)
            if pieces:
                y = MARGIN + rows * LINE_HEIGHT - 4
                texts.append(f'<text class="a{number}" x="{MARGIN}" y="{y}">{pieces}</text>')
        if rows > ROWS:
            scroll.append(f"{begins}{{transform:translateY({(ROWS - rows) * LINE_HEIGHT}px)}}")
    last = f"transform:translateY({min(ROWS - rows, 0) * LINE_HEIGHT}px)"
    width, inner = round(COLUMNS * CHARACTER_WIDTH + 2 * MARGIN), ROWS * LINE_HEIGHT
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {inner + 2 * MARGIN}" role="img">
<title>make demo: four llama-servers are planned, started, and answer</title>
<style>
text{{font:13.3px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#e5e7eb;white-space:pre}}
text,.s{{animation:{total:.2f}s step-end infinite}}
.s{{animation-name:s;{last}}}
@keyframes s{{{"".join(scroll)}100%{{{last}}}}}
{"".join(rules)}
@media (prefers-reduced-motion:reduce){{text,.s{{animation:none!important}}}}
</style>
<rect width="100%" height="100%" rx="8" fill="#111827"/>
<svg y="{MARGIN}" width="100%" height="{inner}" viewBox="0 {MARGIN} {width} {inner}">
<g class="s">
{chr(10).join(texts)}
</g>
</svg>
</svg>
"""


def main() -> None:
    cast = ROOT / ".cache/demo.cast"
    if "--render" not in sys.argv:
        record(cast)
    picture = ROOT / "docs/demo.svg"
    picture.write_text(render(cast.read_text()))
    print(f"Recorded in {cast.relative_to(ROOT)}, rendered as {picture.relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
