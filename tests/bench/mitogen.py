# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same run with Mitogen's strategy, which keeps one Python process on a host instead of one for each call."""

from __future__ import annotations

import subprocess
import sys

from bench.measure import CACHE, ROOT, controller_environment, say

FOLDER = CACHE / "mitogen"


def environment() -> dict[str, str] | None:
    """What makes ansible-playbook use it, installed once in a folder of its own; None if it cannot be installed."""
    plugins = FOLDER / "ansible_mitogen" / "plugins" / "strategy"
    if not plugins.exists():
        say("installing Mitogen")
        uv = ROOT / ".cache" / "uv" / "bin" / "uv"
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", FOLDER, "mitogen"]
        if subprocess.run(command, check=False).returncode:
            return None
    return {
        "ANSIBLE_STRATEGY_PLUGINS": str(plugins),
        "ANSIBLE_STRATEGY": "mitogen_linear",
        "PYTHONPATH": f"{controller_environment()['PYTHONPATH']}:{FOLDER}",
    }
