# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Pythons of this machine, as uv finds them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UV = ROOT / ".cache/uv/bin/uv"


def search_path() -> str:
    """PATH with pyenv's interpreters appended: uv does not find them behind pyenv's shims."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    folders = [folder for folder in os.environ["PATH"].split(":") if folder != str(pyenv / "shims")]
    return ":".join([*folders, *(str(folder) for folder in sorted(pyenv.glob("versions/*/bin")))])


def find_pythons(versions: Iterable[str]) -> dict[str, Path]:
    """The interpreter of each installed version; nothing is downloaded."""
    environment = {**os.environ, "PATH": search_path()}
    found = {}
    for version in versions:
        command = [UV, "python", "find", "--system", "--no-project", "--no-python-downloads", version]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            found[version] = Path(answer.stdout.strip())
    return found
