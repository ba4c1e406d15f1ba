# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a deployment is kept, what is kept of it, and what a rollback changes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.ownership import MARK
from ansible_collections.magi.llama.plugins.module_utils._core.processes import Process
from ansible_collections.magi.llama.plugins.module_utils._deployment import rollback
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import Deployment, deployment_path
from ansible_collections.magi.llama.plugins.module_utils._deployment.rollback import RollbackError
from ansible_collections.magi.llama.plugins.module_utils._deployment.state_files import state_files
from ansible_collections.magi.llama.plugins.module_utils._health.observations import OBSERVED, observed_path
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import File, write_all
from ansible_collections.magi.llama.plugins.module_utils._services.table import find_manager

RUNTIME = "1111"


class Host:
    """A state directory with a deployment under supervisor, and a prefix with its llama-server."""

    def __init__(self, folder: Path) -> None:
        self.state_dir = str(folder / "state")
        self.prefix = folder / "runtime"

    def record(self, **revisions: str) -> dict:
        servers = [
            {
                "name": name,
                "model_id": name,
                "port": 8080,
                "argv": [f"{self.prefix}/bin/llama-server"],
                "env": {"MAGI_LLAMA_RUNTIME": RUNTIME, "MAGI_LLAMA_REVISION": revision},
                "revision": revision,
                "max_startup_time": 60,
            }
            for name, revision in revisions.items()
        ]
        return {"profile": "p", "service_manager": "supervisor", "start": None, "servers": servers}

    def deploy(self, **revisions: str) -> None:
        common = f"{self.state_dir}/supervisor/supervisord.conf"
        configs = [File(common, b"common"), *self.configs(**revisions)]
        write_all([*state_files(self.state_dir, self.record(**revisions))[0], *configs])

    def configs(self, **revisions: str) -> list[File]:
        return [
            File(
                find_manager("supervisor").config_path(self.state_dir, name),
                f'environment=MAGI_LLAMA_STATE="{self.state_dir}"\nrevision={revision}\n'.encode(),
            )
            for name, revision in revisions.items()
        ]

    def ready(self, **revisions: str) -> None:
        known = {
            name: {"pid": 1, "seconds_to_ready": 1.0, "ready_revision": revision}
            for name, revision in revisions.items()
        }
        Path(observed_path(self.state_dir)).write_text(json.dumps(OBSERVED.stamp({"servers": known})))

    def snapshot_if_good(self, **revisions: str) -> Deployment | None:
        """The snapshot that would be kept if these replaced the current deployment."""
        found = rollback.snapshot_if_good(self.state_dir, self.record(**revisions))
        if found is None:
            return None
        write_all(state_files(self.state_dir, self.record(**revisions), found)[0])
        return rollback.read_previous(self.state_dir)

    def kept_files(self) -> list[File]:
        return list(rollback.read_previous(self.state_dir).files)

    def manifest(self, part: str = "", **entries: object) -> None:
        folder = Path(f"{self.prefix}{part}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text(json.dumps({**MARK, **entries} if entries else {}))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_good_deployment_is_kept_with_its_files(host: Host) -> None:
    host.deploy(a="r1")
    host.ready(a="r1")
    kept = host.snapshot_if_good(a="r2")
    assert kept is not None
    assert kept.record == host.record(a="r1")
    texts = {os.path.basename(file.path): file.content.decode() for file in kept.files}
    assert sorted(texts) == ["a.conf", "supervisord.conf"]
    assert "revision=r1" in texts["a.conf"]


@pytest.mark.parametrize(
    ("ready", "next_revisions", "expected"),
    [
        ({"a": "r1", "b": "r1"}, {"a": "r2", "b": "r1"}, True),
        # Removing a server makes another deployment too.
        ({"a": "r1", "b": "r1"}, {"a": "r1"}, True),
        # The launched deployment is the same.
        ({"a": "r1", "b": "r1"}, {"a": "r1", "b": "r1"}, False),
        # b was never ready, or not with the recorded revision.
        ({"a": "r1"}, {"a": "r2", "b": "r2"}, False),
        ({"a": "r1", "b": "r0"}, {"a": "r2", "b": "r2"}, False),
        ({}, {"a": "r2"}, False),
    ],
)
def test_deployment_is_kept_only_if_good(host: Host, ready: dict, next_revisions: dict, expected: bool) -> None:
    host.deploy(a="r1", b="r1")
    host.ready(**ready)
    assert (host.snapshot_if_good(**next_revisions) is not None) == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"path": "/etc/cron.d/x"}, "names /etc/cron.d/x, which is not a launch config of this deployment"),
        ({"path": "{state}/supervisor/conf.d/../../x"}, "which is not a launch config"),
        ({"path": "{state}/supervisor/conf.d/other.conf"}, "other.conf, which is not a launch config"),
        ({"content": "[program:a]\ncommand=/bin/sh\nuser=root\n"}, "a.conf, which is not a launch config"),
        ({"program": "bin/llama-server"}, "names 'bin/llama-server', which is not the path of a program"),
        ({"program": "/opt/x/../../tmp/evil"}, "which is not the path of a program"),
    ],
)
def test_previous_deployment_with_foreign_paths_is_refused(host: Host, change: dict, said: str) -> None:
    host.deploy(a="r1")
    host.ready(a="r1")
    assert host.snapshot_if_good(a="r2") is not None
    path = Path(deployment_path(host.state_dir))
    content = json.loads(path.read_text())
    [config] = [file for file in content["previous"]["files"] if file["path"].endswith("/a.conf")]
    if "program" in change:
        content["previous"]["deployed"]["servers"][0]["argv"][0] = change["program"]
    else:
        config.update({key: value.replace("{state}", host.state_dir) for key, value in change.items()})
    path.write_text(json.dumps(content))
    with pytest.raises(RollbackError, match=re.escape(said)):
        rollback.read_previous(host.state_dir)


def test_previous_deployment_gives_no_more_rights_than_a_launch_config(host: Host) -> None:
    host.deploy(a="r1")
    host.ready(a="r1")
    assert host.snapshot_if_good(a="r2") is not None
    path = Path(deployment_path(host.state_dir))
    content = json.loads(path.read_text())
    for file, mode in zip(content["previous"]["files"], (0o4777, 0o600), strict=True):
        file["mode"] = mode
    path.write_text(json.dumps(content))
    assert [file.mode for file in host.kept_files()] == [0o644, 0o600]


def test_failed_attempts_keep_last_good_deployment(host: Host) -> None:
    host.deploy(a="r1")
    host.ready(a="r1")
    assert host.snapshot_if_good(a="r2") is not None
    host.deploy(a="r2")
    assert host.snapshot_if_good(a="r3") is None
    assert rollback.revisions(rollback.read_previous(host.state_dir).record) == {"a": "r1"}


@pytest.mark.parametrize("leftover", [False, True])
def test_configs_rewritten_for_the_same_revisions_keep_the_deployment_before(host: Host, leftover: bool) -> None:
    """As in the first run after an update of the collection, which changes a comment of the templates."""
    host.deploy(a="r1")
    host.ready(a="r1")
    assert host.snapshot_if_good(a="r2") is not None
    host.deploy(a="r2")
    host.ready(a="r2")
    for file in host.configs(a="r2"):
        Path(file.path).write_bytes(b"; older\n" + file.content)
    if leftover:
        # A launch config that no server of the record has is removed by the next run.
        write_all(host.configs(leftover="r0"))
    before = rollback.read_previous(host.state_dir)
    assert rollback.snapshot_if_good(host.state_dir, host.record(a="r2")) is None
    write_all([*state_files(host.state_dir, host.record(a="r2"))[0], *host.configs(a="r2")])
    assert rollback.read_previous(host.state_dir) == before
    assert rollback.revisions(rollback.deployment_before(host.state_dir).record) == {"a": "r1"}


def with_stand_in(record: dict) -> dict:
    """The record while a stand-in of its first server runs."""
    first = record["servers"][0]
    name = f"{first['name']}-surge"
    stand_in = {**first, "name": name, "port": 8081, "stands_in_for": first["name"]}
    return {**record, "servers": [*record["servers"], stand_in]}


def interrupted(host: Host, **revisions: str) -> None:
    """A run that was killed while a stand-in ran: it is in the record, and has a launch config."""
    host.deploy(**revisions)
    record = with_stand_in(host.record(**revisions))
    name = record["servers"][-1]["name"]
    configs = host.configs(**revisions, **{name: record["servers"][-1]["revision"]})
    write_all([*state_files(host.state_dir, record)[0], *configs])


@pytest.mark.parametrize("ready", [{"a": "r1", "a-surge": "r1"}, {"a": "r1"}])
def test_deployment_is_kept_without_stand_ins(host: Host, ready: dict) -> None:
    interrupted(host, a="r1")
    host.ready(**ready)
    found = rollback.snapshot_if_good(host.state_dir, with_stand_in(host.record(a="r2")))
    assert found is not None
    assert found.record["servers"] == host.record(a="r1")["servers"]
    assert sorted(os.path.basename(file.path) for file in found.files) == ["a.conf", "supervisord.conf"]


def test_stand_ins_make_no_other_deployment(host: Host) -> None:
    """What was deployed before the servers that are deployed again stays the one to return to."""
    interrupted(host, a="r2")
    host.ready(**{"a": "r2", "a-surge": "r2"})
    assert rollback.snapshot_if_good(host.state_dir, host.record(a="r2")) is None
    host.deploy(a="r2")
    assert rollback.snapshot_if_good(host.state_dir, with_stand_in(host.record(a="r2"))) is None


@pytest.mark.parametrize("damage", ["record", "config", "nothing"])
def test_incomplete_deployment_is_not_kept(host: Host, damage: str) -> None:
    if damage != "nothing":
        host.deploy(a="r1")
        host.ready(a="r1")
    if damage == "record":
        Path(deployment_path(host.state_dir)).write_text("{")
    if damage == "config":
        Path(host.state_dir, "supervisor", "supervisord.conf").unlink()
    assert rollback.snapshot_if_good(host.state_dir, host.record(a="r2")) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "nothing to roll back to.*deployment.json.*site.yml"),
        ("{", "is damaged"),
        ('{"schema_version": 1}', "is damaged"),
        ('{"schema_version": 2}', "nothing to roll back to"),
        ('{"schema_version": 2, "previous": {"deployed": {}}}', "is damaged"),
        ('{"schema_version": 99, "previous": null}', "newer magi.llama"),
    ],
)
def test_rollback_without_previous_fails(host: Host, text: str | None, message: str) -> None:
    os.makedirs(host.state_dir)
    if text is not None:
        Path(deployment_path(host.state_dir)).write_text(text)
    with pytest.raises(RollbackError, match=message):
        rollback.read_previous(host.state_dir)


@pytest.mark.parametrize(
    ("now", "before", "probed", "expected"),
    [
        # The binary is the same, according to the manifest or to its --version.
        ({"identity": RUNTIME}, {"identity": "0"}, None, []),
        ({}, {}, RUNTIME, []),
        ({"identity": "2"}, {"identity": RUNTIME}, "2", ["runtime"]),
        # Interrupted between the two renames.
        ({}, {"identity": RUNTIME}, None, ["runtime"]),
        ({"identity": "2"}, {"identity": "3"}, "2", "not kept any more"),
        ({}, {}, "2", "not managed here"),
        ({}, {}, None, "not managed here"),
    ],
)
def test_rollback_restores_kept_binary(
    host: Host, now: dict, before: dict, probed: str | None, expected: list[str] | str
) -> None:
    host.manifest("", **now)
    host.manifest(".previous", **before)
    deployment = Deployment(host.record(a="r1", b="r1"), ())
    if isinstance(expected, list):
        assert rollback.prefixes_to_restore(deployment, lambda path: probed) == [
            str(host.prefix.parent / name) for name in expected
        ]
        return
    with pytest.raises(RollbackError, match=expected):
        rollback.prefixes_to_restore(deployment, lambda path: probed)
    assert rollback.prefixes_to_restore(deployment, lambda path: probed, keep_binary=True) == []


@pytest.mark.parametrize(
    ("ready", "identity", "expected"),
    [({"a": "r1"}, RUNTIME, True), ({"a": "r0"}, RUNTIME, None), ({"a": "r1"}, "2", None)],
)
def test_prefix_is_recorded_as_good(host: Host, ready: dict, identity: str, expected: bool | None) -> None:
    host.deploy(a="r1")
    host.ready(**ready)
    host.manifest(identity=identity)
    rollback.note_good(host.state_dir, host.record(a="r1"))
    assert json.loads((host.prefix / "manifest.json").read_text()).get("good") == expected


@pytest.mark.parametrize(
    ("ready", "now", "before", "expected"),
    [
        # The run ended after installing the new llama-server and before writing its launch configs.
        ({"a": "r2"}, {"identity": "3"}, {"identity": RUNTIME}, "r2"),
        ({"a": "r2"}, {}, {"identity": RUNTIME}, "r2"),
        # Everything succeeded, or r2 never worked, or its llama-server is not kept.
        ({"a": "r2"}, {"identity": RUNTIME}, {"identity": "0"}, "r1"),
        ({"a": "r1"}, {"identity": "3"}, {"identity": RUNTIME}, "r1"),
        ({"a": "r2"}, {"identity": "3"}, {"identity": "0"}, "r1"),
    ],
)
def test_rollback_after_binary_change_restores_binary_only(
    host: Host, ready: dict, now: dict, before: dict, expected: str
) -> None:
    host.deploy(a="r1")
    host.ready(a="r1")
    assert host.snapshot_if_good(a="r2") is not None
    host.deploy(a="r2")
    host.ready(**ready)
    host.manifest("", **now)
    host.manifest(".previous", **before)
    deployment = rollback.deployment_before(host.state_dir)
    assert rollback.revisions(deployment.record) == {"a": expected}
    assert [file.path for file in deployment.files] == [file.path for file in host.kept_files()]
    # The restored state becomes the previous one, so a second rollback does not change it.
    write_all(state_files(host.state_dir, deployment.record, deployment)[0])
    assert rollback.read_previous(host.state_dir) == deployment


@pytest.mark.parametrize(("same_binary", "good"), [(False, False), (True, True)])
def test_deployment_without_token_is_not_good(host: Host, same_binary: bool, good: bool) -> None:
    host.deploy(a="r1")
    host.ready(a="r1")
    if same_binary:
        # The llama-server of the previous working deployment stays good, regardless of later launches.
        assert host.snapshot_if_good(a="r2") is not None
    host.deploy(a="r2")
    host.ready(a="r2")
    host.manifest(identity=RUNTIME)
    rollback.note_good(host.state_dir, host.record(a="r2"))
    rollback.note_bad(host.state_dir, ["a"], ["a"])
    assert not rollback.is_good(host.state_dir, host.record(a="r2"))
    assert host.snapshot_if_good(a="r3") is None
    assert json.loads((host.prefix / "manifest.json").read_text())["good"] == good
    # The seconds to ready are kept.
    known = {"pid": 1, "seconds_to_ready": 1.0, "refused_revision": "r2"}
    assert json.loads(Path(observed_path(host.state_dir)).read_text())["servers"] == {"a": known}
    # It becomes good once it answers with a token.
    rollback.note_answered(host.state_dir, ["a"])
    assert rollback.is_good(host.state_dir, host.record(a="r2"))
    assert json.loads((host.prefix / "manifest.json").read_text())["good"] is True


def process(name: str, revision: str) -> Process:
    env = {"MAGI_LLAMA_REVISION": revision}
    return Process(1, 1, name, ("/x", "--port", "1"), env, 0, 0.0, 0.0, 0)


def test_rollback_plan(host: Host) -> None:
    before = Deployment(host.record(a="r1", b="r1", c="r1"), ())
    now = host.record(a="r2", b="r1", d="r2")["servers"]
    running = {"a": process("a", "r2"), "b": process("b", "r1"), "e": process("e", "r2")}
    plan = {server["name"]: server for server in rollback.planned(before, now, running)}
    actions = {name: server["action"] for name, server in plan.items()}
    assert actions == {"a": "restart", "b": "keep", "c": "start", "d": "stop", "e": "stop"}
    assert plan["a"]["revision"] == "r1"


@pytest.mark.parametrize(
    ("now", "running", "refused"),
    [
        ({"a": "r1", "b": "r1"}, {"a": "r1", "b": "r1"}, True),
        # A rollback that was interrupted after it had written the files.
        ({"a": "r1", "b": "r1"}, {"a": "r1", "b": "r2"}, False),
        ({"a": "r1", "b": "r1"}, {"a": "r1"}, False),
        ({"a": "r1", "b": "r1"}, {"a": "r1", "b": "r1", "c": "r2"}, False),
        # The deployed one is another, which has not been launched.
        ({"a": "r1", "b": "r2"}, {"a": "r1", "b": "r1"}, False),
        ({"a": "r1"}, {"a": "r1", "b": "r1"}, False),
    ],
)
def test_rollback_to_what_runs_is_refused(host: Host, now: dict, running: dict, refused: bool) -> None:
    before, deployed = Deployment(host.record(a="r1", b="r1"), ()), host.record(**now)["servers"]
    servers = rollback.planned(before, deployed, {name: process(name, revision) for name, revision in running.items()})
    if not refused:
        rollback.refuse_current(host.state_dir, before, deployed, servers)
        return
    with pytest.raises(RollbackError, match=r"nothing to roll back to: .*deployment.json .*profile p.* is the one"):
        rollback.refuse_current(host.state_dir, before, deployed, servers)


def test_rollback_keeps_start_settings(host: Host) -> None:
    record = host.record(a="r1")
    assert rollback.starting(Deployment(record, ()))["concurrent"] is True
    record["start"] = {"concurrent": False, "max_startup_time": 9, "readiness_check_interval": 5}
    assert rollback.starting(Deployment(record, ())) == {
        "concurrent": False,
        "max_startup_time": 60,
        "readiness_check_interval": 5,
    }
