# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What server_plan and wait_for_health ask of this host: as which user, and what they do with the answers."""

from __future__ import annotations

import grp
import json
import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.magi.llama.plugins.module_utils._core.commands import UNPRIVILEGED, Completed, User
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import record_of
from ansible_collections.magi.llama.plugins.module_utils._deployment.state_files import state_files
from ansible_collections.magi.llama.plugins.module_utils._health.outcome import Outcome
from ansible_collections.magi.llama.plugins.module_utils._models.registry_file import Kept
from ansible_collections.magi.llama.plugins.module_utils._models.scan import scan
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import validate
from ansible_collections.magi.llama.plugins.module_utils._runtime.probe import PROBE_ENVIRONMENT, PROBE_SECONDS
from ansible_collections.magi.llama.plugins.modules import server_plan, wait_for_health
from support import gguf_files as make

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root asks as another user")
USER = "daemon"


class Host:
    """A state directory and a model that every user can read, with the modules as Ansible runs them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder.chmod(0o755)
        (folder / "models").mkdir(mode=0o755)
        self.model = make.small_model(folder / "models/a.gguf")
        self.model.chmod(0o644)
        self.registry = scan([str(folder / "models")], Kept()).content
        self.state_dir = str(folder)
        self._capsys = capsys

    def run(self, module: Any, **arguments: Any) -> dict[str, Any]:
        with patch_module_args({"state_dir": self.state_dir, **arguments}), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return result

    def plan(self, **flags: Any) -> dict[str, Any]:
        return self.run(
            server_plan,
            registry_path="/nonexistent",
            registry=self.registry,
            profile=validate("p", "p.yml", {"enabled_models": ["a"]}),
            runtime={"path": "/bin/llama-server", "flags": flags, "identity": "x"},
            service_manager="supervisor",
            port_range_start=47110,
            port_range_end=47115,
            restart_triggers={"user": USER, "user_groups": ["bin"]},
        )

    def deploy(self, planned: dict[str, Any], **memory: int) -> None:
        """Write the record of a plan; memory are changes of its servers' estimates."""
        record = record_of(planned["ansible_facts"]["llama_plan"], "supervisor")
        for server in record["servers"]:
            server["memory"].update(memory)
        for file in state_files(self.state_dir, record, configs=[])[0]:
            Path(file.path).write_bytes(file.content)


@pytest.fixture
def host(capsys: pytest.CaptureFixture[str]) -> Iterator[Host]:
    # pytest's own folder is closed to other users.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Host(Path(folder), capsys)


def test_plan_stops_at_a_model_file_that_the_servers_user_cannot_read(host: Host) -> None:
    assert "failed" not in host.plan()
    host.model.chmod(0)
    stopped = host.plan()
    assert stopped["failed"] is True
    assert f"The servers' user {USER} cannot read {host.model} (server a). Nothing was changed." in stopped["msg"]


@needs_root
def test_plan_reports_a_process_with_our_mark_under_another_user(host: Host) -> None:
    host.deploy(host.plan())
    marks = {"MAGI_LLAMA_STATE": host.state_dir, "MAGI_LLAMA_SERVER": "a"}
    with subprocess.Popen(["/bin/sleep", "60"], env=marks, user=UNPRIVILEGED) as foreign:
        try:
            planned = host.plan()
        finally:
            foreign.kill()
    says = "has the mark of this deployment, but it runs as another user (uid 65534)"
    warnings = planned["ansible_facts"]["llama_plan"]["warnings"]
    assert [text for text in warnings if text.startswith(f"pid {foreign.pid} (/bin/sleep 60) {says}")]
    # It is not taken for the server.
    assert planned["drift"] == {"a": "to start, not running"}


@needs_root
def test_plan_asks_for_gpus_as_the_servers_user(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may see a GPU that the servers' user cannot open, and a variable of the caller's may hide one."""
    asked = []

    def run_command(argv: Sequence[str], env: Mapping[str, str], seconds: float, *, user: User | None) -> Completed:
        asked.append((list(argv), env, seconds, user))
        return Completed(0, "Available devices:\n  CUDA0: NVIDIA H100 (81559 MiB, 80000 MiB free)\n", "")

    monkeypatch.setattr(server_plan, "run_command", run_command)
    monkeypatch.setattr(server_plan, "device_groups", lambda: ["games"])
    planned = host.plan(list_devices={"spelling": "--list-devices", "value": False})
    [(argv, env, seconds, user)] = asked
    assert (argv, env, seconds) == (["/bin/llama-server", "--list-devices"], PROBE_ENVIRONMENT, PROBE_SECONDS)
    entry = pwd.getpwnam(USER)
    assert user is not None and (user.uid, user.gid) == (entry.pw_uid, entry.pw_gid)
    # The role's further groups, and those of the devices.
    assert {grp.getgrnam(name).gr_gid for name in ("bin", "games")} <= set(user.groups)
    [server] = planned["ansible_facts"]["llama_plan"]["servers"]
    assert server["memory"]["vram_bytes"] > 0 and server["env"]["MAGI_LLAMA_DEVICES"] == "CUDA0 (NVIDIA H100)"


@pytest.mark.parametrize(("held", "state"), [({}, "on_cpu"), ({os.getpid(): 1 << 30}, "ready")])
def test_wait_for_health_checks_that_servers_are_on_their_gpu(
    host: Host, monkeypatch: pytest.MonkeyPatch, held: dict[int, int], state: str
) -> None:
    host.deploy(host.plan(), vram_bytes=1 << 30)
    ready = Outcome("a", 8080, "Q4", os.getpid(), "ready", True, True, 1.0)
    monkeypatch.setattr(wait_for_health, "wait", lambda _servers, **_options: [ready])
    monkeypatch.setattr(wait_for_health, "held_bytes", lambda _tool: held)
    result = host.run(wait_for_health, timeout=1)
    assert [server["state"] for server in result["servers"]] == [state]
    assert result.get("failed", False) is (state == "on_cpu")
