# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The account of the servers: one that exists is not changed, and root is only used where that is permitted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._services.host_facts import HostError, refuse_user
from support.runs import BIN, CHECKOUT, execute

# Records how it was called; every Linux has the user that it is called for.
FAKE = """#!/bin/sh
if [ "$1" = --help ]; then echo "  -a, --append"; else echo "${0##*/} $*" >> "$CALLS"; fi
"""
EXISTING = "daemon"


def calls(folder: Path, user: str, exists: bool, root: bool, groups: list[str]) -> list[str]:
    """How useradd and usermod are called by the role's tasks."""
    programs = folder / "programs"
    programs.mkdir()
    for name in ("useradd", "usermod"):
        (programs / name).write_text(FAKE)
        (programs / name).chmod(0o755)
    (folder / "calls").touch()
    host = {"user": user, "user_exists": exists, "root": root, "service_manager_missing": False, "sets_groups": True}
    play: dict[str, Any] = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "environment": {"PATH": f"{programs}:/usr/bin:/bin", "CALLS": str(folder / "calls")},
        "vars": {"servers_state_dir": str(folder / "state"), "servers_user": user, "servers_user_groups": groups},
        "tasks": [
            {"ansible.builtin.set_fact": {"llama_host": host, "cacheable": True}},
            {"ansible.builtin.import_role": {"name": "magi.llama.servers", "tasks_from": "install.yml"}},
        ],
    }
    (folder / "play.yml").write_text(json.dumps([play]))
    env = CHECKOUT
    done = execute([BIN / "ansible-playbook", "-i", "localhost,", folder / "play.yml"], folder, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "calls").read_text().splitlines()


def test_existing_user_gets_groups_and_no_other_change(tmp_path: Path) -> None:
    assert calls(tmp_path, EXISTING, True, True, ["bin"]) == [f"usermod -a -G bin {EXISTING}"]


def test_existing_user_without_groups_is_not_touched(tmp_path: Path) -> None:
    assert calls(tmp_path, EXISTING, True, True, []) == []


def test_connecting_user_without_root_gets_no_groups(tmp_path: Path) -> None:
    assert calls(tmp_path, EXISTING, True, False, ["bin"]) == []


def test_missing_user_is_created_without_login(tmp_path: Path) -> None:
    [made] = calls(tmp_path, "magi-test-missing", False, True, [])
    assert made.startswith("useradd ") and "-s /usr/sbin/nologin" in made and "-M" in made


def test_root_as_servers_user_is_refused_unless_permitted() -> None:
    facts = {"root": True, "user": "root", "user_exists": True, "service_manager": "supervisor"}
    with pytest.raises(HostError, match=r"servers_user is root.* servers_allow_root to true"):
        refuse_user(facts, allow_root=False)
    refuse_user(facts, allow_root=True)
    refuse_user({**facts, "user": EXISTING}, allow_root=False)
