# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The site of the documentation builds without a warning, with all of the reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_site_builds_without_warning() -> None:
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": folders, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections")}
    command = [sys.executable, ROOT / "docs/build_site.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    pages = {path.stem for path in (ROOT / ".cache/docs/html/reference").glob("*.html")}
    expected = {f"{path.stem}_module" for path in (ROOT / "plugins/modules").glob("*.py")}
    expected |= {f"{path.stem}_filter" for path in (ROOT / "plugins/filter").glob("*.yml")}
    expected |= {f"{path.name}_role" for path in (ROOT / "roles").iterdir()}
    assert expected <= pages
