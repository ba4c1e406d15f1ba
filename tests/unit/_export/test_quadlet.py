# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Quadlet files, as podman's generator reads them, against the plan."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._export.formats import FORMATS
from ansible_collections.magi.llama.plugins.module_utils._export.workloads import (
    DEFAULT_IMAGE,
    KEY_FILE,
    ExportError,
    HostPlan,
    workloads_of,
)

from .conftest import SETTINGS, host_plan, program, run, server, written

Units = dict[str, dict[str, list[str]]]


def generated(folder: Path) -> Units:
    """The units that podman generates of a folder: the settings of each by name. Fails where it refuses a file."""
    text = run(program("quadlet"), "-dryrun", "-no-kmsg-log", env={"QUADLET_UNIT_DIRS": str(folder)})
    found: Units = {}
    for name, body in re.findall(r"^---(\S+)---\n(.*?)(?=^---\S+---$|\Z)", text, re.DOTALL | re.MULTILINE):
        settings = found.setdefault(name, {})
        for key, value in re.findall(r"^([A-Z]\w+)=(.*)$", body, re.MULTILINE):
            settings.setdefault(key, []).append(value)
    return found


def command_of(unit: dict[str, list[str]]) -> list[str]:
    """The command line as systemd starts it: quotes and C escapes, then specifiers and variables."""
    (line,) = unit["ExecStart"]
    words = re.findall(r'((?:"(?:\\.|[^"\\])*"|[^\s"])+)', line)
    plain = [re.sub(r'"((?:\\.|[^"\\])*)"', lambda match: _unescaped(match[1]), word) for word in words]
    return [word.replace("%%", "%").replace("$$", "$") for word in plain]


def _unescaped(text: str) -> str:
    letters = {"n": "\n", "t": "\t"}
    return re.sub(r"\\(.)", lambda match: letters.get(match[1], match[1]), text)


def after(words: list[str], flag: str) -> list[str]:
    """The values of a flag that is written with = or as a word of its own."""
    joined = [word[len(flag) + 1 :] for word in words if word.startswith(f"{flag}=")]
    return joined + [value for word, value in zip(words, words[1:], strict=False) if word == flag]


def test_every_planned_server_is_a_unit_with_the_plans_figures(tmp_path: Path, plan: HostPlan) -> None:
    units = generated(written(tmp_path, "quadlet", plan) / "gpu-1")
    wanted = {one["name"]: one for one in plan.plan["servers"][:3]}
    names = {f"llama-{name}.service" for name in wanted}
    assert units.keys() == {*names, "llama-gateway.service", "llama-network.service"}
    for name, planned in wanted.items():
        unit = units[f"llama-{name}.service"]
        words = command_of(unit)
        place = words.index(SETTINGS.image)
        expected = list(planned["argv"][1:])
        expected[5], expected[-1] = "0.0.0.0", KEY_FILE
        assert words[place + 1 :] == expected
        options = words[:place]
        assert after(options, "--entrypoint") == [SETTINGS.binary]
        assert after(options, "--name") == [f"llama-{name}"]
        assert after(options, "--publish") == [f"127.0.0.1:{planned['port']}:{planned['port']}"]
        assert "type=bind,source=/models,destination=/models,ro=true" in after(options, "--mount")
        assert f"llama-key,type=mount,target={KEY_FILE},uid=10001,mode=0400" in after(options, "--secret")
        assert {"--read-only", "--security-opt=no-new-privileges"} <= set(options)
        assert after(options, "--cap-drop") == ["all"] and after(options, "--user") == ["10001:10001"]
        (health,) = after(options, "--health-cmd")
        assert ["ready", str(planned["port"]), planned["model_id"]] == shlex.split(health)[2:5]
        assert after(options, "-v") == [f"{tmp_path}/gpu-1/probe.sh:/run/magi-probe/probe.sh:ro"]
        assert unit["MemoryMax"] == [str(planned["memory_max_bytes"])]
        assert unit["MemoryLow"] == [str(planned["memory"]["ram_bytes"])]
        assert unit["TimeoutStartSec"] == ["120"] and unit["WantedBy"] == ["multi-user.target"]
    assert after(command_of(units["llama-bge-m3.service"]), "--device") == [
        "nvidia.com/gpu=0",
        "nvidia.com/gpu=1",
    ]


def test_gateway_finds_the_servers_by_the_names_of_their_containers(tmp_path: Path, plan: HostPlan) -> None:
    folder = written(tmp_path, "quadlet", plan) / "gpu-1"
    words = command_of(generated(folder)["llama-gateway.service"])
    assert after(words, "--publish") == ["127.0.0.1:8070:8070", "127.0.0.1:8071:8071"]
    assert after(words, "-v") == [f"{folder}/gateway:/etc/magi-gateway:ro"]
    assert after(words, "--network") == ["llama"] and words[-1] == "/etc/magi-gateway/start.sh"
    config = (folder / "gateway/haproxy.cfg").read_text()
    assert "llama-qwen3-8b-q4_k_m-2:8081" in config and "llama-bge-m3:8082" in config


def test_second_signal_is_podmans_and_comes_within_the_stop_time(tmp_path: Path) -> None:
    unit = generated(written(tmp_path, "quadlet", host_plan(server("a", 8080))))["llama-a.service"]
    assert "kill -TERM" in unit["ExecStop"][0] and unit["TimeoutStopSec"] == ["45"]
    assert after(command_of(unit), "--stop-timeout") == ["20"]


def test_words_with_meanings_for_systemd_reach_the_server_as_planned(tmp_path: Path) -> None:
    nasty = [
        "a b",
        "100%",
        "%h",
        "${HOME}",
        'say "hi"',
        "back\\slash",
        "ends with \\",
        "a\n[Service]\nUser=root",
        "#",
    ]
    one = server("a", 8080, env={"NASTY": "100% of $HOME"})
    one["argv"] += nasty
    words = command_of(generated(written(tmp_path, "quadlet", host_plan(one)))["llama-a.service"])
    assert words[-len(nasty) :] == nasty and "NASTY=100% of $HOME" in after(words, "--env")


def test_empty_word_at_which_podmans_generator_ends_a_command_line_is_refused(tmp_path: Path) -> None:
    one = server("a", 8080)
    one["argv"] += ["--chat-template-kwargs", "", "--metrics"]
    with pytest.raises(ExportError, match=r"gpu-1: a: --chat-template-kwargs has an empty value"):
        written(tmp_path, "quadlet", host_plan(one))


def test_folders_that_a_server_writes_in_are_volumes_of_its_user(tmp_path: Path) -> None:
    one = server("a", 8080)
    one["argv"] += ["--slot-save-path", "/var/slots/"]
    words = command_of(generated(written(tmp_path, "quadlet", host_plan(one)))["llama-a.service"])
    assert "type=volume,source=llama-a-var-slots,destination=/var/slots,U=true" in after(words, "--mount")


def test_image_that_no_registry_has_is_never_pulled(tmp_path: Path) -> None:
    settings = replace(SETTINGS, image=DEFAULT_IMAGE)
    words = command_of(
        generated(written(tmp_path, "quadlet", host_plan(server("a", 8080)), settings=settings))["llama-a.service"]
    )
    assert f"localhost/{DEFAULT_IMAGE}" in words and "--pull=never" in words


def test_names_without_a_registry_are_warned_of() -> None:
    workloads, _warnings = workloads_of([host_plan(server("a", 8080))], SETTINGS)
    (text,) = FORMATS["quadlet"].notes(workloads, SETTINGS)
    assert "llama-server:1 and haproxy:3.2" in text and "export_image" in text
    full = replace(SETTINGS, image=DEFAULT_IMAGE, gateway_image="localhost/haproxy:3.2")
    assert FORMATS["quadlet"].notes(workloads, full) == []


def test_folder_that_cannot_be_mounted_is_refused(tmp_path: Path) -> None:
    host = replace(host_plan(server("a,b", 8080)), roots=["/models,old"])
    argv = host.plan["servers"][0]["argv"]
    argv[argv.index("--model") + 1] = "/models,old/a.gguf"
    with pytest.raises(
        ExportError, match=r"gpu-1: a,b: The path '/models,old' cannot be mounted .* Nothing was written"
    ):
        written(tmp_path, "quadlet", host)
