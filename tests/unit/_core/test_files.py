# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core import files
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import File, write_all


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("/var/lib/magi-llama", "/var/lib/magi-llama"),
        ("/var/lib/magi-llama/", "/var/lib/magi-llama"),
        ("//var//lib/./magi-llama//", "/var/lib/magi-llama"),
        ("~/state/", "~/state"),
        ("/", "/"),
        ("//", "/"),
    ],
)
def test_path_with_redundant_slashes_is_equal(given, plain):
    assert files.plain_path(given) == plain


def test_leftover_of_killed_write_is_recognised(tmp_path):
    killed = files.write_temporary(str(tmp_path / "a"), b"x", 0o644)
    os.close(killed.descriptor)
    (tmp_path / ".other.tmp").write_text("not ours")
    assert files.leftovers(str(tmp_path)) == [killed.path]
    assert files.leftovers(str(tmp_path / "none")) == []


def test_temporary_file_of_another_run_stays_while_it_is_written(tmp_path):
    killed = files.write_temporary(str(tmp_path / "a"), b"x", 0o644)
    os.close(killed.descriptor)
    other = files.write_temporary(str(tmp_path / "b"), b"other", 0o644)
    assert files.leftovers(str(tmp_path)) == [killed.path]
    write_all([File(str(tmp_path / "c"), b"mine")])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["c", os.path.basename(other.path)])
    os.replace(other.path, tmp_path / "b")
    files.discard(other)
    assert (tmp_path / "b").read_bytes() == b"other"


def test_folders_are_open_to_the_servers_user_under_a_closed_umask(tmp_path):
    mask = os.umask(0o077)
    try:
        files.write_atomic(str(tmp_path / "state" / "conf" / "one.json"), b"{}", 0o644)
    finally:
        # Unchanged for what follows.
        assert os.umask(mask) == 0o077
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "state").rglob("*")}
    assert modes == {"conf": 0o755, "one.json": 0o644}
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o755
