# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The artifact, and a folder in which it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import release
from support import reaper
from support.pythons import ROOT
from support.runs import BIN, execute

REPOSITORY = "https://example.org/magi/llama"


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as a release is."""
    return release.build(ROOT, release.derive_addresses(REPOSITORY), tmp_path_factory.mktemp("artifact"))


@pytest.fixture(scope="module")
def installed(artifact: Path) -> Iterator[Path]:
    """A folder with the collection, and nothing else. Its path is short, for supervisord's socket."""
    with reaper.temporary_folder("magi-") as folder:
        command = [BIN / "ansible-galaxy", "collection", "install", "--offline", "-p", folder / "collections", artifact]
        done = execute(command, folder, ANSIBLE_COLLECTIONS_PATH=str(folder / "collections"))
        assert (done.returncode, done.stderr) == (0, "")
        yield folder
