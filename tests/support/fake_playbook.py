#!/usr/bin/env python3
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replaces ansible-playbook in tests: sends events as a run does, and ends when it is to.

The file that FAKE_PLAYBOOK names may have: {"events": 10, "seconds": 0.01, "rc": 0, "wait": path that must exist
before it ends, "ignore": true for a run that neither INT nor TERM ends, "send": [{"host", "type", "data"}], more events
that come first}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def main() -> int:
    options = {"events": 3, "seconds": 0.0, "rc": 0, "wait": None, "ignore": False, "send": []}
    options |= json.loads(Path(os.environ["FAKE_PLAYBOOK"]).read_text())
    if options["ignore"]:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(json.dumps({"argv": sys.argv[1:], "environment": sorted(os.environ)}))
    try:
        send(1, "run_started", {"playbook": sys.argv[-1]})
        for number, one in enumerate(options["send"]):
            send(number + 2, one["type"], one["data"], host=one["host"])
        first = len(options["send"]) + 2
        for number in range(options["events"]):
            send(number + first, "line", {"text": f"line {number}"})
            time.sleep(options["seconds"])
        while options["wait"] and not Path(options["wait"]).exists():
            time.sleep(0.01)
    except KeyboardInterrupt:
        send(last(options), "run_ended", {"rc": 99, "hosts": {}})
        return 99
    send(last(options), "run_ended", {"rc": options["rc"], "hosts": {}})
    return int(options["rc"])


def last(options: dict[str, Any]) -> int:
    return len(options["send"]) + int(options["events"]) + 2


def send(seq: int, kind: str, data: dict[str, object], **more: str) -> None:
    event = {"schema_version": 1, "collection_version": "0.1.0", "run": os.environ["MAGI_RUN_ID"], "seq": seq}
    event |= {"at": datetime.now(UTC).isoformat(), "type": kind, "check": "--check" in sys.argv, "data": data, **more}
    with open(os.environ["MAGI_EVENTS"], "a") as file:
        file.write(json.dumps(event) + "\n")


if __name__ == "__main__":
    sys.exit(main())
