# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""magi-container: the entry point. magi, gateway or redis; health NAME is the check of its health."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .health import CHECKS
from .settings import SettingsError, read_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 1 for a container that is not healthy, 2 for a setting that cannot be used."""
    parser = argparse.ArgumentParser(prog="magi-container", description="Run a container of the image magi.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in CHECKS:
        verbs.add_parser(name)
    verbs.add_parser("health").add_argument("name", choices=tuple(CHECKS))
    given = parser.parse_args(arguments)
    try:
        settings = read_settings(os.environ)
        if given.verb == "health":
            problem = CHECKS[given.name](settings)
            print(problem or "healthy")
            return 1 if problem else 0
        # Not for a check of health, which is called every few seconds.
        from .roles import ROLES

        return ROLES[given.verb](settings, os.environ)
    except SettingsError as error:
        print(f"magi-container: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
