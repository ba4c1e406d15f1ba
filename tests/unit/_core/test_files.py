# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core import files


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


def test_leftover_of_killed_write_is_recognised(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "replace", lambda *paths: 1 / 0)
    monkeypatch.setattr(files.os, "unlink", lambda path: None)
    with pytest.raises(ZeroDivisionError):
        files.write_atomic(str(tmp_path / "a"), b"x", 0o644)
    (tmp_path / ".other.tmp").write_text("not ours")
    assert len(files.leftovers(str(tmp_path))) == 1
    assert files.leftovers(str(tmp_path / "none")) == []
