# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment of old, as the collection's variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from magi_container import settings
from magi_container.settings import SettingsError, inventory, read_settings, redis_configuration

ROOT = Path(__file__).resolve().parents[3]


def test_each_variable_of_the_environment_sets_the_collections() -> None:
    found = read_settings(
        {
            "MAGI_PROFILE": "production",
            "MODEL_SCAN_PATH": "/models:/more",
            "LLAMA_SERVER_PATH": "/opt/llama-server",
            "REGISTRY_PATH": "/data/r.json",
            "MODEL_PORT_RANGE_START": "9000",
            "MODEL_PORT_RANGE_END": "9003",
            "MODEL_MAX_STARTUP_TIME": "300",
            "MODEL_CONCURRENT_STARTS": "false",
        }
    )
    assert found.variables == {
        "profile": "production",
        "registry_scan_paths": ["/models", "/more"],
        "registry_path": "/data/r.json",
        "runtime_install_method": "existing",
        "runtime_binary_path": "/opt/llama-server",
        "servers_port_range_start": 9000,
        "servers_port_range_end": 9003,
        "servers_max_startup_time": 300,
        "servers_concurrent_starts": False,
    }


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    names = ("MAGI_PROFILE", "REGISTRY_PATH", "MODEL_MAX_STARTUP_TIME", "MODEL_CONCURRENT_STARTS", "MAGI_GATEWAY")
    assert read_settings(dict.fromkeys(names, "")) == read_settings({})


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("MODEL_PORT_RANGE_START", "eighty", "from 1 to 65535"),
        ("MODEL_PORT_RANGE_START", "8100", "set the last port of the range"),
        ("MODEL_PORT_RANGE_END", "65536", "from 1 to 65535"),
        ("MODEL_PORT_RANGE_END", "²", "from 1 to 65535"),
        ("MODEL_CONCURRENT_STARTS", "perhaps", "true or false"),
        ("MAGI_CONSOLE_PORT", "-1", "from 1 to 65535"),
        ("REDIS_PASSWORD_FILE", "/nowhere", "make docker-setup"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_fix(name: str, value: str, fix: str) -> None:
    with pytest.raises(SettingsError, match=fix) as error:
        read_settings({name: value})
    assert name.removesuffix("_START") in str(error.value)


def known_variables() -> set[str]:
    found = set(yaml.safe_load((ROOT / "meta/extra_vars.yml").read_text())["variables"])
    for path in ROOT.glob("roles/*/meta/argument_specs.yml"):
        for entry in yaml.safe_load(path.read_text())["argument_specs"].values():
            found |= set(entry["options"])
    return found


def variables_in(group: Any) -> set[str]:
    found = set(group.get("vars") or {})
    for variables in (group.get("hosts") or {}).values():
        found |= set(variables)
    for child in (group.get("children") or {}).values():
        found |= variables_in(child)
    return found


def test_the_inventory_has_variables_of_the_collection_only() -> None:
    every = {"MAGI_PROFILE": "full", "MODEL_MAX_STARTUP_TIME": "9", "MODEL_CONCURRENT_STARTS": "1", "MAGI_GATEWAY": "g"}
    found = inventory(read_settings(every), "172.18.0.3")
    given = {name for name in variables_in(found["all"]) if not name.startswith("ansible_")}
    assert given <= known_variables()
    children = found["all"]["children"]
    assert children["models"]["hosts"]["magi"]["servers_address"] == "172.18.0.3"
    assert children["gateways"]["hosts"]["gateway"]["ansible_host"] == "g"


def test_without_a_gateway_there_is_no_such_host() -> None:
    assert set(inventory(read_settings({}), "127.0.0.1")["all"]["children"]) == {"models"}


def test_a_secret_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("from the file\n")
    given = {"REDIS_PASSWORD": "from the environment", "REDIS_PASSWORD_FILE": str(tmp_path / "password")}
    assert read_settings(given).redis_password == "from the file"
    (tmp_path / "password").write_text("\n")
    with pytest.raises(SettingsError, match="empty"):
        read_settings(given)


def test_redis_without_a_password_is_refused() -> None:
    assert '\nrequirepass "s3cret"\n' in redis_configuration("s3cret")
    for password in ("", 'a"b', "a\\b", "a\nuser x on"):
        with pytest.raises(SettingsError, match="REDIS_PASSWORD"):
            redis_configuration(password)


def test_compose_passes_on_every_variable_that_the_entry_point_reads() -> None:
    composed = yaml.safe_load((ROOT / "compose.yml").read_text())
    example = (ROOT / ".env.example").read_text()
    given = set(composed["services"]["magi"]["environment"])
    assert {name for name in given if name.startswith("MODEL_")} == {
        *("MODEL_SCAN_PATH", "MODEL_PORT_RANGE_START", "MODEL_PORT_RANGE_END"),
        *("MODEL_MAX_STARTUP_TIME", "MODEL_CONCURRENT_STARTS"),
    }
    source = Path(settings.__file__).read_text()
    for name in given - {"MAGI_REDIS_URL", "REDIS_PASSWORD_FILE"}:
        assert f'"{name}"' in source, name
    for name in given - {"MAGI_REDIS_URL", "MAGI_GATEWAY"}:
        assert f"{name}=" in example, name


def test_limits_are_those_of_the_example_and_above_what_is_needed() -> None:
    services = yaml.safe_load((ROOT / "compose.yml").read_text())["services"]
    example = (ROOT / ".env.example").read_text().splitlines()
    # HAProxy's buffers for large requests have 16 MiB each.
    assert services["gateway"]["mem_limit"] == "${MAGI_GATEWAY_MEMORY:-2g}" and "MAGI_GATEWAY_MEMORY=2g" in example
    # A server has threads for each processor and each connection.
    assert services["magi"]["pids_limit"] == "${MAGI_PIDS:-32768}" and "MAGI_PIDS=32768" in example


def test_both_containers_with_requests_have_the_time_for_them() -> None:
    services = yaml.safe_load((ROOT / "compose.yml").read_text())["services"]
    for name in ("magi", "gateway"):
        assert services[name]["environment"]["MAGI_STOP_SECONDS"] == "${MAGI_STOP_SECONDS:-30}", name
        # The console's 10 s, and the 30 s of a stop besides.
        assert services[name]["stop_grace_period"] == "${MAGI_STOP_GRACE:-90s}", name
        assert services[name]["environment"]["MAGI_GATEWAY"] == "gateway.back", name


def test_everything_is_published_on_one_address_and_without_rights() -> None:
    composed = yaml.safe_load((ROOT / "compose.yml").read_text())
    for name, service in composed["services"].items():
        assert all(port.startswith("${MAGI_BIND:-127.0.0.1}:") for port in service.get("ports", [])), name
        assert (service["read_only"], service["cap_drop"], service["user"]) == (True, ["ALL"], "10001:10001")
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "mem_limit" in service and "pids_limit" in service and "healthcheck" in service
        # Only magi has a build: a registry's image of that name would be another's.
        assert service["pull_policy"] == "never", name
    assert composed["networks"]["back"] == {"internal": True}
    assert composed["services"]["redis"]["networks"] == ["back"]
