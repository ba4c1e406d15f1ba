# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file of tokens: what an import adds and removes, and changes at the same time."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from magi_llama_console.tokens import add_token, digest, import_tokens, read_tokens, remove_token


def given(*names: str, role: str = "read") -> list[dict[str, str]]:
    return [{"name": name, "role": role, "sha256": digest(name)} for name in names]


def names(path: Path) -> list[str]:
    return [one.name for one in read_tokens(path)]


def test_token_that_the_inventory_has_no_longer_is_removed_by_the_import(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    add_token(path, "by-hand", "operate")
    assert import_tokens(path, given("alice", "bob"))
    assert not import_tokens(path, given("alice", "bob"))
    assert import_tokens(path, given("alice"))
    assert names(path) == ["by-hand", "alice"]
    # Made again at the command line it is not the inventory's any more.
    add_token(path, "alice", "read")
    assert import_tokens(path, []) is False
    assert names(path) == ["by-hand", "alice"]


def test_token_of_an_older_file_becomes_the_inventorys_and_keeps_its_sessions(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    old = {"name": "alice", "role": "read", "sha256": digest("alice"), "created_at": "2026-01-01T00:00:00.000Z"}
    path.write_text(json.dumps({"schema_version": 1, "tokens": [old]}))
    assert import_tokens(path, given("alice"))
    assert [(one.created_at, one.origin) for one in read_tokens(path)] == [(old["created_at"], "inventory")]
    assert import_tokens(path, [])
    assert names(path) == []


def test_wrong_token_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    import_tokens(path, given("alice"))
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        import_tokens(path, [*given("bob"), {"name": "carol", "sha256": "x"}])
    assert names(path) == ["alice"]


def test_changes_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    threads = [threading.Thread(target=add_token, args=(path, f"user{number}", "read")) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names(path)) == sorted(f"user{number}" for number in range(20))
    assert remove_token(path, "user0") and not remove_token(path, "user0")
