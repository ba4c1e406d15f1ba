# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run tells people."""

from __future__ import annotations

from ansible_collections.magi.llama.plugins.module_utils import _report


def test_the_runtime_is_told_with_its_method_and_why_not_another() -> None:
    runtime = {
        "path": "/usr/bin/llama-server",
        "installed": True,
        "version": "0.7.0",
        "build": 11669,
        "source": "package",
    }
    tried = [
        {"method": "existing", "result": "there is none at /x/y. Set z."},
        {"method": "package", "result": "it is installed"},
    ]
    assert _report.runtime_lines(runtime, tried) == [
        "llama-server 0.7.0 (build 11669), /usr/bin/llama-server, method package",
        "      not existing: there is none at /x/y",
    ]
    absent = {**runtime, "installed": False, "version": None, "build": None}
    assert _report.runtime_lines(absent, [])[0].startswith("llama-server not installed yet, /usr/bin/llama-server")
