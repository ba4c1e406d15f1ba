# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serve the page with a fleet that does not exist."""

from __future__ import annotations

import argparse
import time

from .api import serve


def main() -> None:
    """Serve until it is interrupted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--hosts", type=int, default=50)
    parser.add_argument("--changes", type=float, default=50.0, help="changes a second")
    args = parser.parse_args()
    api = serve(args.hosts, port=args.port)
    api.changes_per_second = args.changes
    print(api.url, flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
