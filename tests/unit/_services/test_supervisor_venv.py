# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the host can make the virtual environment that supervisor from PyPI is installed in."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._services.host_facts import host_facts


@pytest.mark.parametrize(("code", "missing"), [(0, False), (1, True), (None, True)])
def test_missing_virtual_environment_is_a_fact_before_the_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None, missing: bool
) -> None:
    if code is not None:
        python = tmp_path / "python3"
        # As Debian's without python3-venv.
        python.write_text(f'#!/bin/sh\n[ "$2" = "import ensurepip, venv" ] && exit {code}\n')
        python.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    given = {"state_dir": "/s", "service_manager": "supervisor", "user": "root"}
    facts = host_facts(given, lambda _program: None)
    assert (facts["service_manager_missing"], facts["venv_missing"]) == (True, missing)


def test_host_with_supervisor_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    supervisord = tmp_path / "supervisord"
    supervisord.touch(0o755)
    given = {"state_dir": "/s", "service_manager": "supervisor", "user": "root"}
    assert "venv_missing" not in host_facts(given, lambda _program: str(supervisord))
