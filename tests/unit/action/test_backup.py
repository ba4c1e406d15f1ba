# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""backup, begin_run and restore: when a backup is written, what of it, and what is sent back to a host."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible.parsing.vault import VaultLib, VaultSecret
from ansible_collections.magi.llama.plugins.module_utils._archive import folder, state
from ansible_collections.magi.llama.plugins.module_utils._archive.state import StateFile
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import FILLED_IN
from ansible_collections.magi.llama.plugins.plugin_utils import backups

from .test_locks import HOST

RECORD = StateFile(
    "deployment.json",
    b'{"schema_version": 2, "collection_version": "0.2.0", "deployed": {"profile": "p", "service_manager": null, '
    b'"servers": []}, "intended": {}, "previous": null}',
)
KEYS = StateFile("api-keys", b"secret-of-the-servers\n")
LOST: dict[str, Any] = {"digest": ""}
BEGUN = {"holder": None, "ansible_facts": {"llama_host": HOST}}


def sent(*files: StateFile, known: str = "") -> dict[str, Any]:
    return {"changed": False, "state": state.to_answer(files, known)}


def newest(tmp_path: Path) -> str:
    return folder.newest(str(tmp_path / "backups/h")).state


@pytest.fixture
def call(run_action, tmp_path):
    """Runs an action on the host h of an inventory in tmp_path; lines of the output are in its result."""

    def run(name: str, answers: list[dict[str, Any]], check: bool = False, **arguments: Any) -> Any:
        given = {"state_dir": "/s", **arguments}
        return run_action(name, given, answers=answers, check=check, inventory_dir=str(tmp_path))

    return run


@pytest.fixture
def password(monkeypatch: pytest.MonkeyPatch) -> VaultLib:
    vault = VaultLib([("default", VaultSecret(b"of the vault"))])
    monkeypatch.setattr(backups, "VaultLib", lambda _secrets: vault)
    return vault


def test_backup_is_written_next_to_the_inventory_and_once(call, tmp_path):
    run = call("backup", [sent(RECORD)])
    assert run.result["changed"] and run.result["path"].startswith(f"{tmp_path}/backups/h/")
    assert run.calls == [("backup", {"state_dir": "/s", FILLED_IN: {"known": ""}})]
    assert folder.load(run.result["path"], "h").files == {"deployment.json": RECORD.content}
    again = call("backup", [sent(RECORD, known=newest(tmp_path))])
    assert again.calls[0][1][FILLED_IN] == {"known": state.digest_of([RECORD])}
    assert not again.result["changed"] and again.result["path"] == run.result["path"]
    assert len(os.listdir(tmp_path / "backups/h")) == 2


def test_check_writes_nothing(call, tmp_path):
    assert call("backup", [sent(RECORD)], check=True).result["changed"]
    assert not (tmp_path / "backups").exists()


def test_backup_is_written_again_where_the_newest_is_damaged(call):
    first = call("backup", [sent(RECORD)]).result["path"]
    Path(first).write_bytes(b"damaged")
    run = call("backup", [sent(RECORD)])
    assert run.calls[0][1][FILLED_IN] == {"known": ""} and run.result["path"] != first
    assert any(first in line and "truncated or was changed" in line for line in run.lines)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"digest": "0" * 64, "files": state.packed([RECORD])}, "does not have the digest"),
        ({"digest": "0" * 64, "files": [{"name": "../x", "data": ""}]}, "not used"),
        ({"digest": "x", "files": []}, "not used"),
    ],
)
def test_answers_that_are_not_a_state_are_refused(call, tmp_path, answer, error):
    with pytest.raises(AnsibleActionFail, match=error):
        call("backup", [{"changed": False, "state": answer}])
    assert not (tmp_path / "backups").exists()


def test_damaged_state_is_named_and_not_kept(call, tmp_path):
    damaged = sent(StateFile("deployment.json", b"{"))
    for check in (False, True):
        with pytest.raises(
            AnsibleActionFail, match=r"No backup was made of h: deployment.json is damaged .* no backup"
        ):
            call("backup", [damaged], check=check)
    assert not (tmp_path / "backups").exists()
    # A run or a restore may be what repairs it.
    run = call("begin_run", [{**damaged, **BEGUN}], user="llama", backup={})
    assert any("No backup was made of h: deployment.json is damaged" in line for line in run.lines)
    call("backup", [sent(RECORD)])
    run = call("restore", [damaged, {"changed": True, "written": ["/s/deployment.json"]}], at="latest")
    assert any("No backup was made of h: deployment.json is damaged" in line for line in run.lines)
    assert run.result["changed"]


def test_lost_state_is_named_where_there_is_a_backup(call):
    assert call("backup", [{"changed": False, "state": LOST}]).lines == []
    call("backup", [sent(RECORD)])
    [line] = call("backup", [{"changed": False, "state": LOST}]).lines
    assert "h has no state, but a backup of 2" in line and "at=latest brings its ports back" in line


def test_folder_that_cannot_be_written_is_an_error_where_it_was_chosen_or_needed(call, tmp_path, monkeypatch):
    call("backup", [sent(RECORD)])

    def store(*_arguments: Any) -> str:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(folder, "store", store)
    now = sent(StateFile(RECORD.name, RECORD.content.replace(b'"p"', b'"q"')))
    error = (
        r"Read-only file system. Nothing was changed on the host. Set backup_dir to a folder that you can write to, "
    )
    for own in ({}, {"dir": str(tmp_path / "own")}):
        with pytest.raises(AnsibleActionFail, match=f"{error}from where .*restore"):
            call("backup", [now], **own)
    with pytest.raises(AnsibleActionFail, match=f"{error}from where .*restore"):
        call("restore", [now], at="latest")
    with pytest.raises(AnsibleActionFail, match=f"{error}or backup_before_changes to false"):
        call("begin_run", [{**now, **BEGUN}], user="llama", backup={"dir": str(tmp_path / "own")})
    run = call("begin_run", [{**now, **BEGUN}], user="llama", backup={})
    assert any("Set backup_dir" in line and "Nothing was changed" not in line for line in run.lines)


def test_keys_are_encrypted_and_restored(call, password, tmp_path):
    path = call("backup", [sent(RECORD, KEYS)], keys=True, api_key_file="auto").result["path"]
    files = folder.load(path, "h").files
    assert password.decrypt(files["api-keys.vault"]) == KEYS.content
    unchanged = {"changed": False, "written": ["/s/api-keys"]}
    arguments = {"keys": True, "api_key_file": "auto", "at": "latest"}
    run = call("restore", [sent(RECORD, KEYS, known=newest(tmp_path)), unchanged], **arguments)
    assert state.unpacked(run.calls[1][1][FILLED_IN]["files"]) == [RECORD, KEYS]
    # Keys are left alone where they are not asked for.
    run = call("restore", [sent(RECORD), unchanged], at="latest")
    assert state.unpacked(run.calls[1][1][FILLED_IN]["files"]) == [RECORD]


def test_keys_without_vault_password_are_an_error_before_the_host_is_asked(call):
    with pytest.raises(AnsibleActionFail, match="give the run a vault password"):
        call("backup", [], keys=True)


def test_keys_of_another_password_are_refused(call, password, monkeypatch):
    call("backup", [sent(RECORD, KEYS)], keys=True)
    other = VaultLib([("default", VaultSecret(b"another"))])
    monkeypatch.setattr(backups, "VaultLib", lambda _secrets: other)
    with pytest.raises(AnsibleActionFail, match="cannot be decrypted"):
        call("restore", [], keys=True, at="latest")


def test_run_keeps_a_backup_under_its_lock_and_in_the_same_call(call, tmp_path):
    answer = {**sent(RECORD), **BEGUN}
    arguments = {"user": "llama", "backup": {"registry_path": "/r"}}
    run = call("begin_run", [answer], **arguments)
    [(called, asked)] = run.calls
    assert called == "begin_run" and asked[FILLED_IN]["known"] == "" and asked["backup"]["registry_path"] == "/r"
    assert newest(tmp_path) == state.digest_of([RECORD]) and "state" not in run.result
    with pytest.raises(AnsibleActionFail, match="not used"):
        call("begin_run", [{**answer, "state": {"digest": "0" * 64, "files": state.packed([RECORD])}}], **arguments)


def test_run_writes_keys_once_the_backup_is_kept(call, tmp_path, monkeypatch):
    """A second call: where the backup fails, the host still has its keys."""
    arguments = {"user": "llama", "validate_launch": True, "api_key_file": "auto", "backup": {}}
    written = {"changed": True, "holder": None, "ansible_facts": {"llama_host": {**HOST, "api_key_stamp": "1.2.3"}}}
    run = call("begin_run", [{**BEGUN, **sent(RECORD), "changed": True}, written], **arguments)
    [(_first, asked), (_second, again)] = run.calls
    assert asked["backup"] and "backup" not in again and again["api_key_file"] == "auto"
    assert again[FILLED_IN]["run"] == asked[FILLED_IN]["run"]
    assert run.result["changed"] and run.result["ansible_facts"] == written["ansible_facts"]
    # Nothing new to keep: the first call has written them.
    call("begin_run", [{**BEGUN, **sent(RECORD, known=newest(tmp_path)), "changed": True}], **arguments)

    def store(*_arguments: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder, "store", store)
    with pytest.raises(AnsibleActionFail, match="Nothing was changed on the host"):
        call("begin_run", [{**BEGUN, **sent(RECORD), "changed": True}], **arguments)


def test_run_in_check_mode_says_only_what_is_lost(call, tmp_path):
    call("backup", [sent(RECORD)])
    answer = {"changed": False, "state": LOST, **BEGUN}
    run = call("begin_run", [answer], check=True, user="llama", backup={})
    assert any("h has no state" in line for line in run.lines)


def test_restore_keeps_the_present_state_and_sends_the_chosen_one(call, tmp_path):
    call("backup", [sent(RECORD)])
    now = StateFile(RECORD.name, RECORD.content.replace(b'"p"', b'"q"'))
    run = call("restore", [sent(now), {"changed": True, "written": ["/s/deployment.json"]}], at="latest")
    [(_backup, _asked), (called, asked)] = run.calls
    assert called == "restore" and state.unpacked(asked[FILLED_IN]["files"]) == [RECORD]
    assert asked[FILLED_IN]["run_id"] and run.result["changed"]
    assert newest(tmp_path) == state.digest_of([now])


def test_restore_removes_no_backup_that_it_restores(call, tmp_path):
    chosen = call("backup", [sent(RECORD)]).result["path"]
    now = StateFile(RECORD.name, RECORD.content.replace(b'"p"', b'"q"'))
    failed = {"failed": True, "msg": "The disk is full."}
    keep = {"last": 1, "daily": 0, "weekly": 0, "monthly": 0}
    at = os.path.basename(chosen).removesuffix(folder.SUFFIX)
    run = call("restore", [sent(now), failed], at="latest", keep=keep)
    assert run.result["msg"] == f"The disk is full. Try again with at={at}: latest is the present state."
    assert newest(tmp_path) == state.digest_of([now])
    run = call("restore", [sent(now, known=newest(tmp_path)), {"changed": True, "written": []}], at=at, keep=keep)
    assert state.unpacked(run.calls[1][1][FILLED_IN]["files"]) == [RECORD]


@pytest.mark.parametrize("at", ["latest", "20260101T000000Z"])
def test_restore_without_such_a_backup_asks_no_host(call, at):
    with pytest.raises(AnsibleActionFail, match="There is no backup in"):
        call("restore", [], at=at)


def test_restore_refuses_a_truncated_archive_by_name(call):
    path = call("backup", [sent(RECORD)]).result["path"]
    Path(path).write_bytes(Path(path).read_bytes()[:-9])
    with pytest.raises(AnsibleActionFail, match=f"{path} is not used: it is truncated or was changed"):
        call("restore", [], at="latest")


def test_database_of_the_console_has_a_folder_of_its_own(run_action, call, tmp_path):
    call("backup", [sent(RECORD)])
    answer = sent(StateFile("console.db", b"SQLite format 3\0"))
    run = run_action("backup", {"console_database": "/c/console.db"}, answers=[answer], inventory_dir=str(tmp_path))
    assert run.result["path"].startswith(f"{tmp_path}/backups/h/console/")
    assert len(folder.times(str(tmp_path / "backups/h"))) == 1
