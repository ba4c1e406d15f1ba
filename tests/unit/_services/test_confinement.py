# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What supervisord and its servers inherit, and what the launch config gives a server."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from ansible_collections.magi.llama.plugins.module_utils._core.commands import run_command
from ansible_collections.magi.llama.plugins.module_utils._services import supervisor_driver, systemd
from ansible_collections.magi.llama.plugins.module_utils._services.table import all_managers

TEMPLATES = Path(__file__).parents[3] / "roles/servers/templates"


def test_supervisord_gains_no_privileges_and_writes_no_open_log():
    look = "import os; print(open('/proc/self/status').read(), open('/proc/self/limits').read(), oct(os.umask(0)))"
    before = os.umask(0)
    try:
        said = run_command([sys.executable, "-c", look], {}, before_exec=supervisor_driver._confined()).stdout
    finally:
        os.umask(before)
    assert re.search(r"NoNewPrivs:\s+1", said)
    assert re.search(r"Max core file size\s+0\s+0", said)
    assert said.endswith("0o27\n")


def test_server_under_supervisor_has_a_home_of_its_own():
    text = (TEMPLATES / "supervisor.program.conf.j2").read_text()
    assert "server.env | combine({'HOME': state_dir})" in text


def test_manager_says_whether_servers_come_back_after_a_reboot():
    assert {manager.name: manager.starts_at_boot for manager in all_managers()} == {
        "systemd": True,
        "supervisor": False,
        "container": True,
    }


def test_user_namespaces_are_used_only_where_the_kernel_allows_them(tmp_path):
    limit = tmp_path / "max_user_namespaces"
    for text, expected in (("1\n", True), ("0\n", False), ("", False)):
        limit.write_text(text)
        assert systemd.has_user_namespaces(str(limit)) is expected
    assert systemd.has_user_namespaces(str(tmp_path / "none")) is False
