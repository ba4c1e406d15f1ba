# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of a host: when it is written, what is kept, and the migration of older versions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.documents import DocumentError
from ansible_collections.magi.llama.plugins.module_utils._deployment import record, state_files, version_1
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import DEPLOYMENT, RecordError
from ansible_collections.magi.llama.plugins.module_utils._health import observations
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import File, LaunchConfigError, write_all
from ansible_collections.magi.llama.plugins.module_utils._services.table import find_manager
from support.version_1 import NEW, OLD, recorded


@pytest.fixture
def old(tmp_path: Path) -> str:
    """A state directory of an older version."""
    for name in OLD:
        (tmp_path / name).write_text(json.dumps(recorded(name)))
    return str(tmp_path)


def names(state_dir: str) -> set[str]:
    return set(os.listdir(state_dir))


def known(state_dir: str) -> tuple[Any, ...]:
    """Everything that a run reads from the state."""
    return (
        record.read_record(state_dir),
        record.read_intended(state_dir),
        record.read_previous_deployment(state_dir),
        observations.ready_revisions(state_dir),
    )


def migrate(state_dir: str) -> None:
    write_all(*state_files.state_files(state_dir, record.read_record(state_dir)))


def test_state_of_older_version_is_read_without_writing(old: str) -> None:
    before = {name: (Path(old) / name).read_bytes() for name in OLD}
    now, intended, previous, ready = known(old)
    servers = recorded("servers.json")
    assert now == {key: servers[key] for key in ("profile", "service_manager", "start", "servers")}
    assert intended == {"tiny-llama-q3_k_m": "started", "tiny-llama-q2_k": "started"}
    assert previous.record["servers"] == recorded("previous.json")["record"]["servers"]
    assert [(file.path, file.content.decode(), file.mode) for file in previous.files] == [
        (file["path"], file["content"], file["mode"]) for file in recorded("previous.json")["files"]
    ]
    assert ready == {name: seen["revision"] for name, seen in recorded("ready.json").items()}
    assert {name: (Path(old) / name).read_bytes() for name in names(old)} == before


def test_migration_keeps_content_and_replaces_old_files(old: str) -> None:
    before = known(old)
    migrate(old)
    assert names(old) == set(NEW)
    assert known(old) == before
    assert {os.stat(Path(old) / name).st_mode & 0o777 for name in NEW} == {0o644}
    assert state_files.state_files(old, before[0]) == ([], [])


@pytest.fixture(params=range(1, 6))
def dying(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process dies at one of its renames or removals."""
    calls: list[str] = []

    def step(real: Any) -> Any:
        def call(*arguments: Any) -> None:
            calls.append(real.__name__)
            if len(calls) == request.param:
                raise KeyboardInterrupt
            real(*arguments)

        return call

    with monkeypatch.context() as context:
        context.setattr(os, "replace", step(os.replace))
        context.setattr(os, "unlink", step(os.unlink))
        yield
    assert len(calls) >= request.param


def test_migration_interrupted_is_lossless_and_completed_by_next_run(
    old: str, dying: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = known(old)
    with pytest.raises(KeyboardInterrupt):
        migrate(old)
    monkeypatch.undo()
    assert known(old) == before
    # The controller sees that the file must be written.
    assert state_files.deployed(old, "supervisor") != state_files.planned(old, before[0], [])
    migrate(old)
    assert known(old) == before
    assert names(old) == set(NEW)


def test_migration_failing_keeps_old_files(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: (Path(old) / name).read_bytes() for name in OLD}

    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LaunchConfigError, match="No space left on device"):
        migrate(old)
    assert {name: (Path(old) / name).read_bytes() for name in names(old)} == before


def test_observations_alone_are_migrated_when_written(old: str) -> None:
    observations.note_seconds(old, {"tiny-llama-q2_k": (7, 0.5)})
    assert names(old) == {"servers.json", "previous.json", "observed.json"}
    content = json.loads((Path(old) / "observed.json").read_text())
    seen = recorded("ready.json")["tiny-llama-q2_k"]
    assert content["servers"]["tiny-llama-q2_k"] == {
        "pid": seen["pid"],
        "seconds_to_ready": seen["seconds"],
        "ready_revision": seen["revision"],
        "started": {"pid": 7, "seconds_to_ready": 0.5},
    }


def test_observations_of_version_1_are_renamed_at_every_depth() -> None:
    seen = {"pid": 1, "seconds": None, "refused": "r1", "started": {"pid": 2, "seconds": 0.1}}
    assert observations.migrated_version_1({"a": seen, "b": 1}) == {
        "a": {
            "pid": 1,
            "seconds_to_ready": None,
            "refused_revision": "r1",
            "started": {"pid": 2, "seconds_to_ready": 0.1},
        },
        "b": 1,
    }
    assert observations.migrated_version_1([]) == {}


def test_record_without_start_is_migrated() -> None:
    content = {key: value for key, value in recorded("servers.json").items() if key != "start"}
    assert version_1.migrated_record(content)["start"] is None


@pytest.mark.parametrize("name", ["servers.json", "previous.json"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(schema_version=2), "newer magi.llama"),
        (lambda content: content.pop("schema_version"), "lacks schema_version"),
        (lambda content: servers_of(content)[0].update(name="../x"), r"servers\[0\].name is '../x'"),
        (lambda content: servers_of(content)[0].update(port="8080"), r"port is '8080', not a whole number"),
        (lambda content: servers_of(content)[0].pop("argv"), "lacks argv"),
    ],
)
def test_state_of_older_version_with_wrong_value_is_refused(old: str, name: str, change: Any, message: str) -> None:
    content = recorded(name)
    change(content)
    (Path(old) / name).write_text(json.dumps(content))
    read = record.read_record if name == "servers.json" else record.read_previous_deployment
    with pytest.raises(RecordError, match=message):
        read(old)


def servers_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    return list(content.get("record", content)["servers"])


def test_damaged_part_does_not_affect_the_other(old: str) -> None:
    migrate(old)
    path = Path(old) / "deployment.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "deployed": []}))
    with pytest.raises(record.DamagedRecordError, match="is damaged"):
        record.read_record(old)
    previous = record.read_previous_deployment(old)
    assert previous is not None
    # It is kept when the next run writes the record.
    write_all(*state_files.state_files(old, content["deployed"]))
    assert record.read_previous_deployment(old) == previous


def test_collection_version_change_alone_writes_nothing(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate(old)
    now = record.read_record(old)
    digests = state_files.deployed(old, "supervisor")
    for module in ("_core.documents", "_deployment.state_files"):
        path = f"ansible_collections.magi.llama.plugins.module_utils.{module}.COLLECTION_VERSION"
        monkeypatch.setattr(path, "9.9.9")
    assert DEPLOYMENT.stamp({})["collection_version"] == "9.9.9"
    assert state_files.state_files(old, now) == ([], [])
    assert state_files.deployed(old, "supervisor") == digests == state_files.planned(old, now, [])
    # The version is written together with another change.
    state_files.note_intended(old, {"tiny-llama-q2_k": "stopped"})
    assert json.loads((Path(old) / "deployment.json").read_text())["collection_version"] == "9.9.9"


def test_other_mode_or_missing_version_is_written(old: str) -> None:
    migrate(old)
    now, path = record.read_record(old), Path(old) / "deployment.json"
    os.chmod(path, 0o600)
    assert [file.path for file in state_files.state_files(old, now)[0]] == [str(path)]
    assert state_files.deployed(old, "supervisor") == {}
    os.chmod(path, 0o644)
    content = json.loads(path.read_text())
    del content["collection_version"]
    path.write_text(json.dumps(content))
    assert [file.path for file in state_files.state_files(old, now)[0]] == [str(path)]
    assert state_files.deployed(old, "supervisor") == {}


def test_intention_is_recorded_and_replaced_by_next_plan(old: str) -> None:
    state_files.note_intended(old, {"tiny-llama-q2_k": "stopped"})
    assert names(old) == set(NEW)
    assert record.read_intended(old) == {"tiny-llama-q3_k_m": "started", "tiny-llama-q2_k": "stopped"}
    now = record.read_record(old)
    assert state_files.deployed(old, "supervisor") != state_files.planned(old, now, [])
    migrate(old)
    assert state_files.deployed(old, "supervisor") == state_files.planned(old, now, [])
    assert set(record.read_intended(old).values()) == {"started"}


def test_intention_not_writable_does_not_stop_the_run(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_arguments: Any, **_more: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", read_only)
    state_files.note_intended(old, {"tiny-llama-q2_k": "stopped"})
    assert names(old) == set(OLD)


def test_record_with_path_as_name_is_not_written(tmp_path: Path) -> None:
    server = {**recorded("servers.json")["servers"][0], "name": "../../etc/x"}
    with pytest.raises(DocumentError, match=r"servers\[0\].name is '../../etc/x'"):
        state_files.state_files(str(tmp_path), {**record.empty_record(), "servers": [server]})


def test_observations_of_newer_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "observed.json").write_text('{"schema_version": 3}')
    with pytest.raises(observations.ObservedError, match=r"observed.json: The observed was written by a newer"):
        observations.ready_revisions(str(tmp_path))


def test_stand_in_that_is_dropped_leaves_the_same_deployment(tmp_path: Path) -> None:
    own = {"name": "a", "model_id": "a", "port": 8080, "argv": ["/usr/bin/llama-server"]}
    stand_in = {**own, "name": "a-surge", "port": 8099, "stands_in_for": "a"}
    content = {"profile": "p", "service_manager": "supervisor", "servers": [own, stand_in]}
    folder = str(tmp_path)
    manager = find_manager("supervisor")
    text = manager.managed(folder).marker.encode()
    files = [File(manager.config_path(folder, name), text) for name in ("a", "a-surge")]
    write_all([*state_files.state_files(folder, content, configs=files)[0], *files])
    assert state_files.drop_stand_ins(folder, ["a"]) == content
    assert state_files.drop_stand_ins(folder, ["a-surge"]) == {**content, "servers": [own]}
    assert record.read_record(folder) == {**content, "servers": [own]}
    assert record.read_intended(folder) == {"a": "started"}
    assert list(record.read_configs(folder)) == [files[0].path]
    assert [os.path.exists(file.path) for file in files] == [True, False]
    # The next run has nothing to write.
    assert state_files.deployed(folder, "supervisor") == state_files.planned(
        folder, {**content, "servers": [own]}, files[:1]
    )
