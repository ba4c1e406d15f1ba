# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The list of words that are not written here: codespell refuses each, in hidden folders too."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_listed_word_is_refused_in_hidden_folders_too(tmp_path: Path) -> None:
    listed = [line.partition("->")[0] for line in (ROOT / ".config/words.txt").read_text().splitlines()]
    (tmp_path / ".config").mkdir()
    shutil.copy(ROOT / ".config/words.txt", tmp_path / ".config")
    for folder in (".github", ".ci", "docs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file.yml").write_text("".join(f"This {word}, at its place.\n" for word in listed))
    command = [Path(sys.executable).parent / "codespell", "--toml", ROOT / "pyproject.toml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = [line.partition(": ")[2].partition(" ==> ")[0] for line in done.stdout.splitlines()]
    assert sorted(found) == sorted(listed * 3)
