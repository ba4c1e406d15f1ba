# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compose files, as docker-compose reads them, against the plan."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.magi.llama.plugins.module_utils._export.workloads import DEFAULT_IMAGE, HostPlan

from .conftest import SETTINGS, host_plan, program, run, server, written

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
KEY_COPY = "/run/user/$keys"


def read(folder: Path, host: str = "gpu-1") -> dict[str, Any]:
    """The project as docker-compose reads it, with the one variable that a user has to set."""
    command = [program("docker-compose"), "--file", f"{folder}/{host}/compose.yaml", "config", "--format", "json"]
    return dict(json.loads(run(*command, env={**ENVIRONMENT, "LLAMA_API_KEY_FILE": KEY_COPY})))


def as_run(words: list[str]) -> list[str]:
    return [word.replace("$$", "$") for word in words]


def test_every_planned_server_is_a_service_with_the_plans_figures(tmp_path: Path, plan: HostPlan) -> None:
    project = read(written(tmp_path, "compose", plan))
    wanted = {one["name"]: one for one in plan.plan["servers"][:3]}
    assert project["services"].keys() == {*wanted, "gateway"}
    for name, planned in wanted.items():
        made = project["services"][name]
        argv = as_run([*made["entrypoint"], *made["command"]])
        expected = [SETTINGS.binary, *planned["argv"][1:]]
        expected[6], expected[-1] = "0.0.0.0", "/run/secrets/llama/api-key"
        assert argv == expected
        resources = made["deploy"]["resources"]
        assert int(resources["limits"]["memory"]) == planned["memory_max_bytes"] == int(made["memswap_limit"])
        assert int(resources["reservations"]["memory"]) == planned["memory"]["ram_bytes"]
        (port,) = made["ports"]
        assert (port["host_ip"], port["target"], port["published"]) == (
            "127.0.0.1",
            planned["port"],
            str(planned["port"]),
        )
        models = {one["target"]: one for one in made["volumes"]}["/models"]
        assert models["read_only"] and models["source"] == "/models"
        assert made["read_only"] and made["cap_drop"] == ["ALL"] and made["user"] == "10001:10001"
        assert f"'ready' '{planned['port']}' '{planned['model_id']}'" in made["healthcheck"]["test"][1]
        assert made["stop_grace_period"] == "30s"
    devices = project["services"]["bge-m3"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["device_ids"] == ["0", "1"]


def test_image_that_no_registry_has_is_never_pulled(tmp_path: Path) -> None:
    for image, policy in ((DEFAULT_IMAGE, "never"), ("x:1", None)):
        settings = replace(SETTINGS, image=image)
        project = read(written(tmp_path / str(policy), "compose", host_plan(server("a", 8080)), settings=settings))
        assert project["services"]["a"].get("pull_policy") == policy


def test_key_is_a_secret_from_a_file_that_the_user_names(tmp_path: Path, plan: HostPlan) -> None:
    project = read(written(tmp_path, "compose", plan))
    # What it prints is a Compose file again.
    assert project["secrets"]["api-key"]["file"] == KEY_COPY.replace("$", "$$")
    assert "/etc/magi/" not in (tmp_path / "gpu-1/compose.yaml").read_text()
    command = [program("docker-compose"), "--file", f"{tmp_path}/gpu-1/compose.yaml", "config"]
    unset = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert unset.returncode and "LLAMA_API_KEY_FILE" in unset.stderr and "10001" in unset.stderr
    assert all(made["secrets"][0]["source"] == "api-key" for made in project["services"].values())
    without = read(written(tmp_path / "open", "compose", host_plan(server("a", 8080))))
    assert "secrets" not in without and "secrets" not in without["services"]["gateway"]


def test_each_host_has_a_project_of_its_own(tmp_path: Path) -> None:
    folder = written(tmp_path, "compose", host_plan(server("a", 8080), name="One.x"), host_plan(server("a", 8081)))
    assert read(folder, "One.x")["name"] == "llama-one-x" and read(folder)["name"] == "llama-gpu-1"


def test_server_that_is_called_gateway_does_not_replace_it(tmp_path: Path) -> None:
    folder = written(tmp_path, "compose", host_plan(server("gateway", 8080)))
    services = yaml.safe_load((folder / "gpu-1/compose.yaml").read_text())["services"]
    assert services.keys() == {"gateway", "gateway-server"}
    assert "gateway-server:8080" in (folder / "gpu-1/gateway/haproxy.cfg").read_text()


def test_server_that_others_reach_is_published_as_planned(tmp_path: Path) -> None:
    folder = written(tmp_path, "compose", host_plan(server("a", 8080, host="::1"), server("b", 8081, host="0.0.0.0")))
    services = yaml.safe_load((folder / "gpu-1/compose.yaml").read_text())["services"]
    assert services["a"]["ports"] == ["[::1]:8080:8080"] and services["b"]["ports"] == ["0.0.0.0:8081:8081"]


def test_words_that_are_numbers_in_other_versions_of_yaml_stay_as_planned(tmp_path: Path) -> None:
    numbers = ["1e6", "1e-05", "0123456789", "0o10", "1_000", "y"]
    one = server("a", 8080, env={f"N{place}": word for place, word in enumerate(numbers)})
    one["argv"] += numbers
    made = read(written(tmp_path, "compose", host_plan(one)))["services"]["a"]
    assert made["command"][-len(numbers) :] == numbers and list(made["environment"].values()) == numbers


def test_folders_that_servers_write_in_are_volumes_of_their_user(tmp_path: Path) -> None:
    one, two = server("a", 8080), server("prepare", 8081)
    one["argv"] += ["--slot-save-path", "/var/slots/", "--lookup-cache-dynamic", "/var/cache/lookup.bin"]
    project = read(written(tmp_path, "compose", host_plan(one, two)))
    made, prepare = project["services"]["a"], project["services"]["prepare"]
    volumes = {volume["target"]: volume["source"] for volume in made["volumes"] if volume["type"] == "volume"}
    assert volumes == {"/var/cache": "a-var-cache", "/var/slots": "a-var-slots"} and made["tmpfs"] == ["/tmp"]
    assert project["volumes"].keys() == {*volumes.values()} == {volume["source"] for volume in prepare["volumes"]}
    assert made["depends_on"]["prepare"]["condition"] == "service_completed_successfully"
    targets = [volume["target"] for volume in prepare["volumes"]]
    assert [*prepare["entrypoint"], *prepare["command"]] == ["chown", "10001:10001", *targets]
    assert prepare["cap_drop"] == ["ALL"] and prepare["cap_add"] == ["CHOWN"] and prepare["restart"] == "no"
    assert "depends_on" not in project["services"]["prepare-server"]
