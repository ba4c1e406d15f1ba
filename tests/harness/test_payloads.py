# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The payloads that runs of the tests keep are those that Ansible builds, and a change of a file builds them again."""

from __future__ import annotations

import base64
import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
from support.callbacks import payloads
from support.runs import BIN, CHECKOUT, ROOT, execute

MODULE = "ansible_collections.magi.llama.plugins.modules.server_info"


def call(folder: Path, **more: str) -> str:
    """The output of a module that is called on this host, with Ansible's notes on its payload."""
    words = ["localhost,", "-c", "local", "-m", "magi.llama.server_info", "-a", "state_dir=/nonexistent"]
    environment = {**CHECKOUT, "ANSIBLE_LOAD_CALLBACK_PLUGINS": "true", **more}
    done = execute([BIN / "ansible", "all", "-i", *words], folder, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def payload_files(cache: Path) -> set[Path]:
    return {path for path in cache.glob(f"*/{MODULE}-*") if path.suffix != ".lock"}


def contents(path: Path) -> dict[str, bytes]:
    """The files of a payload."""
    archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(pickle.loads(path.read_bytes()).zip_data)))
    return {name: archive.read(name) for name in archive.namelist()}


def test_payload_is_kept_until_a_file_changes(tmp_path: Path) -> None:
    # Code of another place: a module is loaded from there.
    shutil.copytree(ROOT / "plugins", tmp_path / "ansible_collections/magi/llama/plugins")
    shutil.copytree(ROOT / "meta", tmp_path / "ansible_collections/magi/llama/meta")
    shutil.copy(ROOT / "galaxy.yml", tmp_path / "ansible_collections/magi/llama")
    cache = tmp_path / "cache"
    settings = {"ANSIBLE_COLLECTIONS_PATH": str(tmp_path), "MAGI_PAYLOADS": str(cache)}
    first = call(tmp_path, **settings)
    [kept] = payload_files(cache)
    before = kept.stat().st_mtime_ns, contents(kept)
    assert call(tmp_path, **settings) == first
    assert (kept.stat().st_mtime_ns, contents(kept)) == before

    changed = tmp_path / "ansible_collections/magi/llama/plugins/module_utils/_core/errors.py"
    changed.write_text(f"{changed.read_text()}\n# Another line.\n")
    assert call(tmp_path, **settings) == first
    [other] = payload_files(cache) - {kept}
    differing = {name for name, data in contents(other).items() if before[1].get(name) != data}
    assert differing == {"ansible_collections/magi/llama/plugins/module_utils/_core/errors.py"}


def test_unused_payloads_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(payloads, "CACHE", tmp_path)
    monkeypatch.setattr(payloads.time, "time", lambda: (tmp_path / "new").stat().st_mtime + payloads.UNUSED_SECONDS - 1)
    os.utime(tmp_path / "old", (0, 0))
    payloads.forget_unused()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
