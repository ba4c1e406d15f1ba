# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import sys

import pytest
from ansible import context
from ansible.utils.context_objects import CLIArgs
from ansible_collections.magi.llama.plugins.plugin_utils.this_run import this_run


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"args": ("site.yml",)}, "site.yml"),
        ({"args": ("/srv/play/site.yml", "playbooks/verify.yml")}, "site.yml verify.yml"),
        ({"args": ("magi.llama.rollout",)}, "magi.llama.rollout"),
        ({"args": "all"}, "ansible"),
        ({}, "ansible"),
    ],
)
def test_run_is_named_after_its_playbooks(monkeypatch, given, name):
    monkeypatch.setattr(context, "CLIARGS", CLIArgs(given))
    # Values of options are not playbooks.
    monkeypatch.setattr(sys, "argv", ["/usr/bin/ansible", "site.yml", "-i", "fleet/hosts.yml", "-e", "@vars.yml"])
    assert this_run("h")["playbook"] == name
