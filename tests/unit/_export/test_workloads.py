# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is exported of a plan, and what is refused before anything is written."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.magi.llama.plugins.module_utils._export.formats import FORMATS, find_format
from ansible_collections.magi.llama.plugins.module_utils._export.workloads import ExportError, workloads_of

from .conftest import SETTINGS, host_plan, server


def test_lost_server_is_left_out_with_its_reason() -> None:
    lost = {"a": "its file was removed since the last deployment"}
    found, warnings = workloads_of([host_plan(server("a", 8080), server("b", 8081), lost=lost)], SETTINGS)
    assert [one.name for one in found] == ["b"] and warnings == [f"gpu-1: a is left out: {lost['a']}."]


def test_server_on_demand_listens_on_its_public_port() -> None:
    on_demand = server("a", 8080, on_demand={"port": 18080})
    on_demand["argv"][8] = "18080"
    (found,), (warning,) = workloads_of([host_plan(on_demand)], SETTINGS)
    assert found.argv[8] == "8080" and "on demand" in warning


def test_marks_of_the_hosts_deployment_do_not_come_along() -> None:
    (found,), _warnings = workloads_of([host_plan(server("a", 8080))], SETTINGS)
    assert found.env == (("XDG_CONFIG_HOME", "/nonexistent"),)


def test_cores_are_asked_for_as_the_plan_shares_them() -> None:
    host = host_plan(server("a", 8080), server("b", 8081))
    for busy, millis in ((None, 2000), (1, 1000), (5, 2000)):
        found, _warnings = workloads_of([replace(host, busy=busy)], SETTINGS)
        assert [one.cpu_millis for one in found] == [millis, millis]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"image": "Not An Image"}, "export_image is"),
        ({"gateway_image": ""}, "export_gateway_image is"),
        ({"claim": "My_Models"}, 'export_claim is "My_Models": set it to a name of lower-case letters'),
        ({"secret": "-"}, "export_secret is"),
    ],
)
def test_wrong_variable_is_named_with_an_example(change: dict[str, str], part: str) -> None:
    with pytest.raises(ExportError) as error:
        workloads_of([host_plan(server("a", 8080))], replace(SETTINGS, **change))
    assert part in str(error.value) and "such as" in str(error.value)


def test_plan_without_servers_and_keys_in_command_lines_are_refused() -> None:
    with pytest.raises(ExportError, match="nothing to export"):
        workloads_of([host_plan(server("a", 8080, action="stop"))], SETTINGS)
    open_key = server("a", 8080)
    open_key["argv"] += ["--api-key", "secret-word"]
    with pytest.raises(ExportError, match="servers_api_key_file") as error:
        workloads_of([host_plan(open_key)], SETTINGS)
    assert "secret-word" not in str(error.value)


def test_estimate_at_the_limit_is_refused() -> None:
    with pytest.raises(ExportError, match="a needs 5 bytes and may have 5"):
        workloads_of([host_plan(server("a", 8080, memory={"ram_bytes": 5}, memory_max_bytes=5))], SETTINGS)


def test_unknown_format_lists_those_that_there_are() -> None:
    with pytest.raises(ExportError) as error:
        find_format("kubernets")
    assert all(name in str(error.value) for name in FORMATS) and "did you mean kubernetes?" in str(error.value)


def test_link_to_a_file_that_the_container_lacks_is_refused() -> None:
    model = "/models/a.gguf"
    host = replace(host_plan(server("a", 8080)), roots=["/models"])
    for target, root, is_refused in (
        ("/data/a.gguf", "/models", True),
        ("/models/blobs/a", "/models", False),
        ("/data/blobs/a", "/data", False),
    ):
        found, _warnings = workloads_of([replace(host, real={model: target, "/models": root})], SETTINGS)
        for form in ("compose", "kubernetes"):
            if is_refused:
                with pytest.raises(
                    ExportError, match=f"gpu-1: a has {model}, a link to {target}.*add /data to registry"
                ):
                    FORMATS[form].render(found, SETTINGS)
            else:
                assert FORMATS[form].render(found, SETTINGS)
        assert FORMATS["endpoints"].render(found, SETTINGS)


@pytest.mark.parametrize("path", ["/models", "/models/slots", "/"])
def test_folder_to_write_in_among_the_models_is_refused(path: str) -> None:
    one = server("a", 8080)
    one["argv"] += ["--slot-save-path", path]
    found, _warnings = workloads_of([host_plan(one)], SETTINGS)
    with pytest.raises(ExportError, match=f"gpu-1: a writes in {path}, .*model folder /models read-only: set slot"):
        FORMATS["compose"].render(found, SETTINGS)
