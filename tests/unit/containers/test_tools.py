# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""make docker-setup says what is wrong, and makes what it can; the names and labels of images."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import docker_setup
import images
import pytest
import yaml
from compose_stack import ROOT, read_env


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout's folder with one model, on a machine with Docker."""
    monkeypatch.setattr(docker_setup.compose_stack, "find_compose", lambda: ("docker", ["docker", "compose"]))
    (tmp_path / "models").mkdir()
    (tmp_path / "models/tiny.gguf").write_bytes(b"GGUF")
    return tmp_path


def fixes(folder: Path) -> list[str]:
    return [check.fix for check in docker_setup.prepare(folder) if check.fix]


def test_a_fresh_checkout_gets_env_folders_and_password(folder: Path) -> None:
    assert fixes(folder) == []
    assert read_env(folder / ".env") == read_env(ROOT / ".env.example")
    password = folder / "secrets/redis_password"
    assert stat.S_IMODE(password.stat().st_mode) == 0o444
    assert stat.S_IMODE(password.parent.stat().st_mode) == 0o700
    assert len(password.read_text().strip()) >= 32
    before = password.read_text()
    assert fixes(folder) == [] and password.read_text() == before


def test_the_password_of_env_is_what_redis_gets(folder: Path) -> None:
    (folder / ".env").write_text("REDIS_PASSWORD=of-the-user\n")
    assert fixes(folder) == []
    assert (folder / "secrets/redis_password").read_text() == "of-the-user\n"


def test_missing_and_unreadable_models_are_named(folder: Path) -> None:
    (folder / "models/tiny.gguf").chmod(0o600)
    assert fixes(folder) == [
        f"the container's user cannot read {folder}/models/tiny.gguf: chmod -R a+rX {folder}/models"
    ]
    (folder / "models/tiny.gguf").unlink()
    assert fixes(folder) == ["has no *.gguf file: put some there, or set MODELS in .env"]


def test_a_wrong_or_unknown_variable_of_env_is_named(folder: Path) -> None:
    (folder / ".env").write_text("MODEL_PORT_RANGE_START=many\n")
    assert fixes(folder) == ["MODEL_PORT_RANGE_START=many: set it to a whole number from 1 to 65535."]
    # It may be one of a Compose file of the user's own.
    (folder / ".env").write_text("MODEL_PORT_RANGE_STRAT=8080\nCOMPOSE_PROJECT_NAME=mine\n")
    [note] = [check.note for check in docker_setup.prepare(folder) if check.note or check.fix]
    assert note.startswith("compose.yml has no MODEL_PORT_RANGE_STRAT; see .env.example")


def test_a_link_that_the_container_cannot_follow_is_named(folder: Path) -> None:
    link = folder / "models/other.gguf"
    for target in ("nowhere.gguf", "../outside.gguf", str(folder / "models/tiny.gguf")):
        (folder / "outside.gguf").write_bytes(b"GGUF")
        link.symlink_to(target)
        assert fixes(folder) == [
            f"{link} is a link to {target}, which the container does not have: put the file there, or make it a relative "
            "link within the folder"
        ]
        link.unlink()
    link.symlink_to("tiny.gguf")
    assert fixes(folder) == []


def test_models_are_found_where_compose_finds_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    for value in ("~/models", "${HOME}/models", "./models"):
        (folder / ".env").write_text(f"MODELS={value}\n")
        assert f"models: {folder}/models, 1 files" in [check.text for check in docker_setup.prepare(folder)]
    assert not (folder / "~").exists()


def test_docker_waits_longer_than_requests_have(folder: Path) -> None:
    (folder / ".env").write_text("MAGI_STOP_SECONDS=120\nMAGI_STOP_GRACE=2m59s\n")
    assert fixes(folder) == ["MAGI_STOP_GRACE=2m59s is too short for MAGI_STOP_SECONDS=120: 180s."]
    (folder / ".env").write_text("MAGI_STOP_SECONDS=120\nMAGI_STOP_GRACE=3m\n")
    assert fixes(folder) == []
    (folder / ".env").write_text("MAGI_STOP_GRACE=90\n")
    assert fixes(folder) == ["MAGI_STOP_GRACE=90: set it to a duration such as 90s or 2m30s."]


def test_the_image_is_built_as_env_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[str]] = []
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(docker_setup.subprocess, "run", lambda command, **_: made.append(command[2:]) or done)
    docker_setup.build({"MAGI_IMAGE": "mine/magi:2", "MAGI_BASE": "debian:sid-slim"}, "", update=False)
    docker_setup.build({"MAGI_BASE": "debian:sid-slim"}, "packages", update=True)
    assert made == [
        ["--base", "debian:sid-slim", "--name", "mine/magi:2", "magi"],
        ["--base", "packages", "--name", "magi-llama/magi:latest", "--update", "magi"],
    ]


def test_without_an_engine_the_status_is_1(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/docker_setup.py"), "--folder", str(tmp_path), "--no-build"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/nonexistent"})
    assert done.returncode == 1 and "install docker.io and docker-compose" in done.stdout


def test_make_goes_on_where_nothing_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "tests/containers").mkdir(parents=True)
    (tmp_path / "tests/containers/docker_engine.py").write_text("")
    command = ["make", "-s", "-f", str(ROOT / "Makefile"), "-o", ".venv/.ready", "VENV=.venv"]
    (tmp_path / "python").symlink_to(sys.executable)
    subprocess.run([*command, f"BIN={tmp_path}", ".cache/docker/.ready"], cwd=tmp_path, check=True)
    assert (tmp_path / ".cache/docker/.ready").exists()


def test_labels_name_the_build_of_llama_server() -> None:
    found = images.labels_of("magi", "0.1.0", "debian:forky-slim", "version: 0.7.0")
    assert found["magi.llama-server"] == "version: 0.7.0"
    assert found["org.opencontainers.image.base.name"] == "debian:forky-slim"


class Engine:
    """An engine whose commands succeed: what was called, without options of builds that do not change."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        self.calls: list[list[str]] = []
        monkeypatch.setattr(images, "CACHE", cache)
        monkeypatch.setattr(images.os, "geteuid", lambda: 0)
        monkeypatch.setattr(images.shutil, "which", lambda name: name)
        monkeypatch.setattr(images, "recipe", lambda packages: ["{target}", *packages])
        monkeypatch.setattr(images, "server_build", lambda *_: "version: 1")
        monkeypatch.setattr(images, "run", self._run)
        monkeypatch.setattr(
            images.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "", "")
        )

    def _run(self, *command: str) -> str:
        self.calls.append([*command])
        if command[0] == "mmdebstrap":
            Path(command[1]).write_text("packages of today")
        return ""

    def builds(self) -> list[set[str]]:
        return [{"--pull", "--no-cache"} & set(call) for call in self.calls if "build" in call]


def test_an_update_takes_the_newest_base_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = Engine(monkeypatch, tmp_path)
    images.build("docker", "magi", "debian:forky-slim", "mine:1", update=True)
    # The second build only adds labels to the first.
    assert engine.builds() == [{"--pull", "--no-cache"}, set()]
    engine.calls.clear()
    images.build("docker", "magi", "debian:forky-slim", "mine:1")
    assert engine.builds() == [set(), set()]


def test_an_update_installs_the_packages_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = Engine(monkeypatch, tmp_path)
    images.build("docker", "magi", images.FROM_PACKAGES, "mine:1")
    assert [call[0] for call in engine.calls] == ["docker", "docker"]
    engine.calls.clear()
    images.build("docker", "magi", images.FROM_PACKAGES, "mine:1", update=True)
    assert [call[0] for call in engine.calls] == ["mmdebstrap", "docker", "docker", "docker"]
    assert engine.calls[1][1] == "import" and engine.builds() == [set(), set()]
    assert [path.read_text() for path in tmp_path.iterdir()] == ["packages of today"]


def test_each_image_has_a_list_of_packages_in_order() -> None:
    for path in (ROOT / "containers/packages").glob("*.txt"):
        names = path.read_text().split()
        assert names == sorted(names) and "tini" in names and "llama.cpp-tools" in names, path.name


def test_images_have_the_programs_of_their_checks() -> None:
    for path in (ROOT / "containers/packages").glob("llama-server-*.txt"):
        assert "wget" in path.read_text().split(), path.name
    assert "exec wget" in (ROOT / "containers/llama-server.Containerfile").read_text()


def test_a_change_of_our_files_keeps_the_layer_of_packages_and_makes_no_volumes() -> None:
    lines = (ROOT / "containers/magi.Containerfile").read_text().splitlines()
    final = lines[lines.index("FROM scratch") :]
    assert final[1] == "COPY --from=system / /"
    assert not [line for line in lines[: lines.index("FROM scratch")] if line.startswith("COPY plugins")]
    assert [line for line in final if line.startswith("COPY plugins")]
    # One without a name would be left behind by each container that does not mount something there.
    assert not [line for line in lines if line.startswith("VOLUME")]


def test_what_docker_setup_makes_is_in_no_repository_artifact_or_image(folder: Path) -> None:
    docker_setup.prepare(folder)
    made = {path.name for path in folder.iterdir()}
    assert made == {".env", "models", "profiles", "secrets"}
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {f"/{name}" if name == ".env" else f"/{name}/" for name in made} <= set(ignored)
    left_out = yaml.safe_load((ROOT / "galaxy.yml").read_text())["build_ignore"]
    # .* is one of them.
    assert made - {".env"} <= set(left_out)
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
