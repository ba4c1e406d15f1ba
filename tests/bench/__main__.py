# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m bench [PART …]`: run all parts or the given ones, print a table and write bench.json.

Goals are informative.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from pathlib import Path

from bench.measure import ROOT, BenchError, Row, say, table, write_json
from support import reaper

PARTS = ("headers", "runs", "fleet", "threads", "gateway", "changes", "distribute")


def main() -> int:
    # Everything that the bench starts is stopped when it ends. SIGTERM raises an exception, so results are written.
    reaper.begin()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; by default all")
    parts = parser.parse_args().parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    rows: list[Row] = []
    failed = False
    try:
        for part in parts:
            say(f"bench: {part}")
            try:
                rows += importlib.import_module(f"bench.{part}").measure()
            except BenchError as error:
                failed = True
                print(f"bench {part}: {error}", file=sys.stderr)
            print(f"\n{part}\n{table([row for row in rows if row.part == part])}\n", flush=True)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        if rows:
            write_json(Path(os.environ.get("MAGI_BENCH_JSON", ROOT / "bench.json")), rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
