# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What servers expose: defaults of each build, and parameters that give clients power over the host."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._plan.exposure import (
    exposure_defaults,
    refuse_powerful,
    refuse_sleep,
)
from ansible_collections.magi.llama.plugins.module_utils._plan.inputs import PlanError, Settings
from ansible_collections.magi.llama.plugins.module_utils._runtime.help_text import parse_help
from ansible_collections.magi.llama.plugins.module_utils._runtime.render_flags import render_flags
from ansible_collections.magi.llama.plugins.module_utils._runtime.special_flags import MANAGED_FLAGS, is_powerful

OUTPUTS = Path(__file__).parents[1] / "_runtime/outputs"
CLOSED = {"cors_origins": "localhost", "slots": False, "metrics": True}


def flags(build):
    return parse_help((OUTPUTS / f"help-{build}.txt").read_text())


@pytest.mark.parametrize(
    ("parameters", "has_keys", "expected"),
    [
        ({}, False, CLOSED),
        ({}, True, {"cors_origins": "localhost"}),
        # What a profile says counts.
        ({"slots": True}, False, {"cors_origins": "localhost"}),
        ({"slots": False, "cors_origins": "*"}, False, {"metrics": True}),
        ({"metrics": False}, False, {"cors_origins": "localhost", "slots": False}),
    ],
)
def test_server_is_closed_by_default(parameters, has_keys, expected):
    assert exposure_defaults(parameters, flags("11669"), has_keys) == expected


def test_closed_server_has_the_flags_of_its_build():
    known = flags("11669")
    argv = render_flags(exposure_defaults({}, known, False), known)
    assert argv == ["--cors-origins", "localhost", "--metrics", "--no-slots"]
    # In this build slots are off by default.
    older = flags("2025-older")
    assert render_flags(exposure_defaults({}, older, False), older) == []
    assert exposure_defaults({}, {}, False) == {}


POWERFUL = {
    **{"tools": "all", "tools_runtime": "x", "agent": True, "mcp_servers_config": "/x", "mcp_servers_json": "{}"},
    **{"ui_mcp_proxy": True, "webui_mcp_proxy": True, "media_path": "/x", "path": "/x", "rpc": "10.0.0.1:50052"},
    **{"slot_save_path": "/x", "log_prompts_dir": "/x", "video_ffmpeg_dir": "/x", "props": True, "no_agent": False},
    # Of builds to come.
    **{"exec_timeout": 3, "tool_shell": "sh", "plugins": "x", "upload_dir": "/x", "cache_folder": "/x"},
}


@pytest.mark.parametrize("name", POWERFUL)
def test_powerful_parameter_is_refused_by_family(name):
    parameters = {name: POWERFUL[name]}
    with pytest.raises(PlanError, match=f'"{name}": gives everyone .* servers_api_key_file'):
        refuse_powerful(parameters, Settings("/s", "systemd", allow_powerful=True))
    with pytest.raises(PlanError, match=f'"{name}": gives clients .* servers_allow_powerful'):
        refuse_powerful(parameters, Settings("/s", "systemd", api_key_file="/k"))
    refuse_powerful(parameters, Settings("/s", "systemd", api_key_file="/k", allow_powerful=True))


@pytest.mark.parametrize("runtime", [{"version": "0.5.9"}, {"version": None, "build": 9061}, {"version": "9305"}])
def test_sleep_is_refused_below_its_fix(runtime):
    runtime = {"flags": {"x": {}}, **runtime}
    with pytest.raises(PlanError, match=r'"sleep_idle_seconds": .*CVE-2026-43631.* update it to 0\.6\.0'):
        refuse_sleep({"sleep_idle_seconds": 60}, runtime)
    # Off, which is the default.
    refuse_sleep({"sleep_idle_seconds": -1}, runtime)
    refuse_sleep({}, runtime)
    for version in ("0.6.0", "0.10.1", "1.0.0"):
        refuse_sleep({"sleep_idle_seconds": 60}, {**runtime, "version": version})
    refuse_sleep({"sleep_idle_seconds": 60}, {"version": None, "flags": {}})


def test_powerful_parameter_that_is_off_is_not_refused():
    refuse_powerful({"agent": False, "no_agent": True, "tools": None, "ui_mcp_proxy": "off"}, Settings("/s", "systemd"))


def test_families_match_only_powerful_flags_of_known_builds():
    known = {name for build in ("11669", "2025-older", "ik_llama") for name in flags(build)}
    assert {name for name in known if is_powerful(name, True)} - set(MANAGED_FLAGS) == {
        *("agent", "log_prompts_dir", "mcp_servers_config", "mcp_servers_json", "media_path", "path", "props", "rpc"),
        *("slot_save_path", "tools", "tools_runtime", "ui_mcp_proxy", "video_ffmpeg_dir"),
    }
