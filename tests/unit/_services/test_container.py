# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers as services: what differs from units of systemd, with recorded outputs of systemctl."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core import podman
from ansible_collections.magi.llama.plugins.module_utils._core.commands import Completed
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._runtime.prefix_manifest import write_manifest
from ansible_collections.magi.llama.plugins.module_utils._services import (
    container,
    container_driver,
    systemd,
    systemd_driver,
    table,
)
from ansible_collections.magi.llama.plugins.module_utils._services.base import SECOND_SIGTERM, ServiceStatus

TEMPLATES = Path(__file__).parents[3] / "roles/servers/templates"
RUNTIME = {"path": "/opt/magi-llama/runtime/bin/llama-server"}
# `systemctl show` of a unit from a quadlet, after a stop: two commands stop it.
STOPPED = """Id=magi-llama-a.service
LoadState=loaded
ActiveState=inactive
MainPID=0
ExecMainCode=1
ExecMainStatus=%s
Result=success
ExecStop={ path=/bin/sh ; argv[]=/bin/sh -c … ; ignore_errors=yes ; pid=7 ; code=exited ; status=%s }
ExecStop={ path=/usr/bin/podman ; argv[]=/usr/bin/podman rm -v -f -i a ; ignore_errors=no ; code=exited ; status=0 }
ActiveExitTimestampMonotonic=1000000
InactiveEnterTimestampMonotonic=3500000
"""


class Systemctl:
    """Records commands, and answers `systemctl show` with a text."""

    def __init__(self, shown: str = "") -> None:
        self.shown = shown
        self.calls: list[str] = []

    def __call__(self, command: Sequence[str], seconds: float = 60.0) -> Completed:
        self.calls.append(" ".join(command[:3]))
        return Completed(0, self.shown if "show" in command else "", "")


def test_launch_config_is_a_quadlet_of_this_deployment() -> None:
    manager = table.find_manager("container")
    assert manager.config_path("/state", "a") == "/etc/containers/systemd/magi-llama-a.container"
    assert manager.config_paths("/state", {"name": "a", "on_demand": {}}) == {
        "/etc/containers/systemd/magi-llama-a.container": "container.container.j2"
    }
    assert manager.managed("/state").marker == "\nEnvironment=MAGI_LLAMA_STATE=/state\n"
    # Each goes with the last of its own.
    assert manager.common_config_path("/state") != table.find_manager("systemd").common_config_path("/state")


def test_template_names_the_target_of_the_manager() -> None:
    text = (TEMPLATES / "container.container.j2").read_text()
    assert f"PartOf={container.CONTAINERS_TARGET}\n" in text
    assert f"WantedBy={container.CONTAINERS_TARGET}\n" in text


def test_auto_never_selects_containers() -> None:
    assert table.choose_manager("auto").name != "container"
    assert table.find_manager("container").runs_here() is False


def test_host_without_systemd_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd.Systemd, "runs_here", lambda self: False)
    with pytest.raises(MagiError, match=r"need systemd as PID 1.*set servers_service_manager to auto"):
        table.find_manager("container").check("/state")


def test_old_podman_is_refused_before_anything_is_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "podman").write_text("#!/bin/sh\necho podman version 4.3.1\n")
    (tmp_path / "podman").chmod(0o755)
    monkeypatch.setattr(systemd.Systemd, "runs_here", lambda self: True)
    monkeypatch.setattr(podman, "environment", lambda: {"PATH": str(tmp_path)})
    with pytest.raises(MagiError, match=r"podman 4\.3\.1 is too old .* or set servers_service_manager to systemd"):
        table.find_manager("container").check("/state")


def test_image_and_manager_have_to_fit() -> None:
    image = {**RUNTIME, "image": {"id": "1", "reference": "r/llama-server:1", "devices": [], "unset": []}}
    table.check_image(table.find_manager("container"), image)
    table.check_image(table.find_manager("systemd"), RUNTIME)
    with pytest.raises(table.ImageError, match="is not in a container image: set runtime_image"):
        table.check_image(table.find_manager("container"), RUNTIME)
    with pytest.raises(table.ImageError, match=r"r/llama-server:1, which systemd does not run: set .* to container"):
        table.check_image(table.find_manager("systemd"), image)


def test_servers_on_demand_are_refused() -> None:
    with pytest.raises(MagiError, match="Containers are not started on demand"):
        table.find_manager("container").on_demand_programs("/state")


def test_process_is_the_child_of_the_monitor(tmp_path: Path) -> None:
    def process(pid: int, comm: str, children: str) -> None:
        (tmp_path / f"{pid}/task/{pid}").mkdir(parents=True)
        (tmp_path / f"{pid}/comm").write_text(f"{comm}\n")
        (tmp_path / f"{pid}/task/{pid}/children").write_text(children)

    process(10, "conmon", "12 ")
    process(20, "conmon", "")
    process(30, "podman", "31 ")
    assert [container_driver.child_of(pid, str(tmp_path)) for pid in (10, 20, 30, 40)] == [12, None, None, None]
    status = ServiceStatus("a", "running", 10)
    assert container_driver.with_child(status, str(tmp_path)).pid == 12
    assert container_driver.with_child(ServiceStatus("a", "stopped"), str(tmp_path)).pid is None


@pytest.mark.parametrize(
    ("status", "stop_code", "signal"), [(0, 0, "SIGTERM"), (0, 75, SECOND_SIGTERM), (137, 75, "SIGKILL")]
)
def test_stop_is_what_the_container_ended_with(status: int, stop_code: int, signal: str) -> None:
    shown = systemd_driver.parse_show(STOPPED % (status, stop_code))["magi-llama-a.service"]
    stopped = systemd_driver.stopped_of("a", {"MainPID": "10"}, shown)
    assert (stopped.signal, stopped.seconds) == (signal, 2.5)


def test_units_are_generated_before_they_are_looked_at() -> None:
    shown = "Id=magi-llama.containers.target\nLoadState=loaded\nUnitFileState=disabled\n\nId=magi-llama-a.service\n"
    run = Systemctl(shown + "LoadState=loaded\nUnitFileState=generated\n")
    container_driver.ContainerDriver(run).reload(["a"])
    assert run.calls[0] == "systemctl daemon-reload"
    # The generator enables servers, and systemctl cannot.
    assert run.calls[-1] == "systemctl enable --quiet"
    run = Systemctl(shown.replace("disabled", "enabled") + "LoadState=loaded\nUnitFileState=generated\n")
    container_driver.ContainerDriver(run).reload(["a"])
    assert "systemctl enable --quiet" not in run.calls


def test_servers_without_quadlet_are_found_by_their_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "QUADLET_FOLDER", str(tmp_path / "quadlets"))
    (tmp_path / "quadlets").mkdir()
    (tmp_path / "quadlets/magi-llama-b.container").write_text("")
    for name in ("magi-llama-a", "magi-llama-b", "other"):
        (tmp_path / f"{name}.service").write_text(f"[Unit]\nSourcePath={tmp_path}/quadlets/{name}.container\n")
    (tmp_path / "magi-llama-c.service").write_text("[Unit]\nSourcePath=/elsewhere\n")
    assert container._generated_without_source(str(tmp_path)) == ["a"]


def test_target_goes_with_the_last_quadlet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_driver, "QUADLET_FOLDER", str(tmp_path / "quadlets"))
    monkeypatch.setattr(container_driver, "UNIT_FOLDER", str(tmp_path))
    quadlet, target = tmp_path / "quadlets/magi-llama-b.container", tmp_path / container.CONTAINERS_TARGET
    quadlet.parent.mkdir()
    for path in (quadlet, target):
        path.write_text("")
    run = Systemctl()
    container_driver.ContainerDriver(run).retire_generated([], 1.0)
    assert target.exists()
    quadlet.unlink()
    container_driver.ContainerDriver(run).retire_generated([], 1.0)
    assert not target.exists()
    assert run.calls == ["systemctl disable --now"]


def test_images_that_others_have_loaded_are_kept(tmp_path: Path) -> None:
    for name, is_ours in (("1", True), ("2", False)):
        (tmp_path / name).mkdir()
        write_manifest(str(tmp_path / name), {"image": name, "fetched": is_ours})
    assert container._own_images([str(tmp_path / name) for name in ("1", "2", "none")]) == ["1"]


def test_template_has_the_limits_of_a_unit() -> None:
    unit, quadlet = ((TEMPLATES / name).read_text() for name in ("systemd.service.j2", "container.container.j2"))
    for key in ("OOMPolicy", "CPUWeight", "RestartPreventExitStatus", "Restart"):
        pattern = re.compile(rf"^{key}=.*$", re.MULTILINE)
        assert pattern.findall(unit) == pattern.findall(quadlet), key
