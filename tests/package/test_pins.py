# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The packages that setup and CI install are pinned, and the pins work on any machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from support.pythons import ROOT, UV

LOCK = ROOT / "uv.lock"


def check_lock(folder: Path) -> bool:
    command = [UV, "lock", "--quiet", "--check", "--offline", "--default-index", "https://pypi.org/simple"]
    return subprocess.run(command, cwd=folder, stderr=subprocess.DEVNULL, check=False).returncode == 0


def test_lock_file_matches_requirements(tmp_path: Path) -> None:
    assert check_lock(ROOT)
    shutil.copy(LOCK, tmp_path)
    shutil.copytree(ROOT / "console", tmp_path / "console", ignore=shutil.ignore_patterns("node_modules"))
    requirements = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(requirements.replace('"yamllint>=', '"yamllint>=1000.'))
    assert not check_lock(tmp_path)


def test_lock_file_has_public_addresses_only() -> None:
    hosts = set(re.findall(r"\b([a-z]+://[^/\"]*)/", LOCK.read_text()))
    assert hosts == {"https://pypi.org", "https://files.pythonhosted.org"}


def test_locked_files_all_have_hashes() -> None:
    files = re.findall(r"\burl = .*", LOCK.read_text())
    assert files
    assert [line for line in files if not re.search(r'hash = "sha256:[0-9a-f]{64}"', line)] == []


def test_uv_pin_matches_lock_file() -> None:
    command = [UV, "export", "--quiet", "--frozen", "--only-group", "uv", "--no-header", "--no-annotate"]
    assert (ROOT / ".config/uv.txt").read_text() == subprocess.check_output(command, cwd=ROOT, text=True)
