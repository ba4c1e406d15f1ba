# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""llama-server in a container image, with a fake podman."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.commands import Completed, run_command
from ansible_collections.magi.llama.plugins.module_utils._core.podman import PodmanError, require_podman
from ansible_collections.magi.llama.plugins.module_utils._plan.inputs import Settings
from ansible_collections.magi.llama.plugins.module_utils._plan.stand_ins import launch_revision
from ansible_collections.magi.llama.plugins.module_utils._runtime.install import Provision, ensure
from ansible_collections.magi.llama.plugins.module_utils._runtime.prefix import restore_previous
from ansible_collections.magi.llama.plugins.module_utils._runtime.prefix_manifest import read_manifest
from ansible_collections.magi.llama.plugins.module_utils._runtime.requests import ProviderError, Request

HELP = Path(__file__).parent / "outputs" / "help-11669.txt"
ONE, TWO = "1" * 64, "2" * 64
NAME = "registry.example.com/llama-server"


class Podman:
    """A podman with images by name, and those that a pull or an archive brings."""

    def __init__(self, folder: Path) -> None:
        self.version = "podman version 5.4.2\n"
        self.images: dict[str, str] = {}
        self.remote: dict[str, str] = {}
        self.archives: dict[str, tuple[str, str]] = {}
        self.env = ["PATH=/usr/bin", "LLAMA_ARG_HOST=0.0.0.0", "LD_LIBRARY_PATH=/opt/lib"]
        self.entrypoint: list[str] = ["/app/llama-server"]
        self.programs = {"/app/llama-server"}
        self.calls: list[str] = []
        self.asked: list[list[str]] = []
        self._folder = folder

    def __call__(self, argv: Sequence[str], environment: Mapping[str, str], seconds: float) -> Completed:
        if argv[0] != "podman":
            return self._wrapper(argv)
        command = [word for word in argv[1:] if not word.startswith("--")]
        verb = " ".join(command[:2]) if command and command[0] == "image" else " ".join(command[:1])
        self.calls.append(verb or "version")
        if not command:
            return Completed(0, self.version, "")
        if verb == "run":
            program = next(word.partition("=")[2] for word in argv if word.startswith("--entrypoint="))
            return Completed(0 if program in self.programs else 127, "", "")
        target = command[-1]
        known = self.images.get(target, target if target in self.images.values() else None)
        if verb == "image exists":
            return Completed(0 if known else 1, "", "")
        if verb == "image inspect":
            config = {"Env": self.env, "Entrypoint": self.entrypoint}
            return Completed(0, json.dumps([{"Id": known, "Config": config}]), "")
        if verb == "pull" and target in self.remote:
            self.images[target] = self.remote[target]
            return Completed(0, self.remote[target] + "\n", "")
        if verb == "load" and target in self.archives:
            name, self.images[name] = self.archives[target][0], self.archives[target][1]
            return Completed(0, f"Loaded image: {name}\n", "")
        return Completed(125, "", "Error: manifest unknown\n")

    def _wrapper(self, argv: Sequence[str]) -> Completed:
        """What the program in the prefix says, without podman."""
        self.asked.append(list(argv))
        text = "version: 0.7.0 (build 11669, commit 63248fc3e)\n" if argv[1] == "--version" else HELP.read_text()
        return Completed(0, text, "")


@pytest.fixture
def podman(tmp_path: Path) -> Podman:
    return Podman(tmp_path)


@pytest.fixture
def provided(tmp_path: Path, podman: Podman) -> Callable[..., Provision]:
    def provide(method: str = "auto", **changes: Any) -> Provision:
        values: dict[str, Any] = {
            "path": "/none",
            "prefix": str(tmp_path / "prefix"),
            "etc": str(tmp_path / "etc"),
            "dev": str(tmp_path / "dev"),
            "image": NAME,
            "image_devices": [],
        }
        return ensure(Request(**{**values, **changes}), method, podman)

    return provide


def test_image_is_pulled_once_and_pinned_by_its_id(
    tmp_path: Path, podman: Podman, provided: Callable[..., Provision]
) -> None:
    podman.remote[NAME] = ONE
    first = provided()
    assert (first.method, first.changed, first.fact["build"]) == ("image", True, 11669)
    assert first.fact["image"] == {"id": ONE, "reference": NAME, "devices": [], "unset": ["LLAMA_ARG_HOST"]}
    script = (tmp_path / "prefix/bin/llama-server").read_text()
    assert f'{ONE} "$@"' in script
    assert "--unsetenv=LLAMA_ARG_HOST" in script
    assert os.readlink(tmp_path / "prefix/image-bin/llama-server") == "/app/llama-server"
    podman.calls.clear()
    second = provided()
    assert (second.changed, second.fact["identity"]) == (False, first.fact["identity"])
    assert "pull" not in podman.calls


def test_other_digest_is_another_llama_server_and_another_revision(
    podman: Podman, provided: Callable[..., Provision], tmp_path: Path
) -> None:
    podman.images.update({f"{NAME}@sha256:a": ONE, f"{NAME}@sha256:b": TWO})
    facts = [provided(image=f"{NAME}@sha256:{letter}").fact for letter in "ab"]
    assert facts[0]["identity"] != facts[1]["identity"]
    settings = Settings(str(tmp_path), "container")
    revisions = {
        launch_revision(["/p/bin/llama-server"], {"MAGI_LLAMA_RUNTIME": str(fact["identity"])}, settings)
        for fact in facts
    }
    assert len(revisions) == 2


def test_update_keeps_the_image_before_for_the_way_back(
    podman: Podman, provided: Callable[..., Provision], tmp_path: Path
) -> None:
    podman.remote[NAME] = ONE
    provided()
    podman.remote[NAME] = TWO
    assert provided().fact["image"]["id"] == ONE
    assert provided(upgrade=True).fact["image"]["id"] == TWO
    assert read_manifest(str(tmp_path / "prefix"))["image"] == TWO
    restore_previous(str(tmp_path / "prefix"))
    assert read_manifest(str(tmp_path / "prefix"))["image"] == ONE


def test_new_image_is_staged_before_a_server_is_stopped(
    podman: Podman, provided: Callable[..., Provision], tmp_path: Path
) -> None:
    podman.images.update({"a": ONE, "b": TWO})
    provided(image="a")
    staged = provided(image="b", stage=True)
    assert (staged.fact["staged"], staged.fact["image"]["id"]) == (True, TWO)
    assert read_manifest(str(tmp_path / "prefix"))["image"] == ONE
    placed = provided(image="b")
    assert (placed.changed, placed.fact["identity"]) == (True, staged.fact["identity"])


def test_archive_is_loaded_once(podman: Podman, provided: Callable[..., Provision], tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(b"image")
    podman.archives[str(archive)] = ("localhost/llama-server:one", ONE)
    assert provided(image=None, image_archive=str(archive)).fact["image"]["id"] == ONE
    # The tag is another image's now, and the archive is the same.
    podman.images = {"localhost/llama-server:one": TWO, "x": ONE}
    podman.calls.clear()
    assert provided(image=None, image_archive=str(archive)).changed is False
    assert "load" not in podman.calls


def test_other_name_in_the_same_archive_is_another_image(
    podman: Podman, provided: Callable[..., Provision], tmp_path: Path
) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(b"images")
    names = {"localhost/llama-server:cpu": ONE, "localhost/llama-server:vulkan": TWO, "localhost/same:1": TWO}

    def ensured(name: str) -> tuple[Any, bool]:
        podman.archives[str(archive)] = (name, names[name])
        podman.calls.clear()
        return provided(image=name, image_archive=str(archive)).fact["image"]["id"], "load" in podman.calls

    assert ensured("localhost/llama-server:cpu") == (ONE, True)
    assert ensured("localhost/llama-server:vulkan") == (TWO, True)
    assert ensured("localhost/llama-server:vulkan") == (TWO, False)
    # The same image by another name is loaded once, too.
    assert [ensured("localhost/same:1")[1] for _ in range(2)] == [True, False]


def test_archive_without_the_named_image_names_what_it_has(
    podman: Podman, provided: Callable[..., Provision], tmp_path: Path
) -> None:
    (tmp_path / "image.tar").write_bytes(b"")
    podman.archives[str(tmp_path / "image.tar")] = ("localhost/other:1", ONE)
    with pytest.raises(ProviderError, match=r"has localhost/other:1, and not registry.example.com/llama-server"):
        provided(image_archive=str(tmp_path / "image.tar"))


def test_check_mode_neither_pulls_nor_loads(podman: Podman, provided: Callable[..., Provision], tmp_path: Path) -> None:
    podman.remote[NAME] = ONE
    outcome = provided(check=True, stage=True)
    assert (outcome.fact["installed"], outcome.changed) == (False, True)
    assert outcome.fact["image"]["reference"] == NAME
    assert podman.calls == ["version", "image exists"]
    assert provided(check=True, image_archive=str(tmp_path / "none.tar")).fact["installed"] is False


def test_program_is_found_where_the_entry_point_is_another(
    podman: Podman, provided: Callable[..., Provision], tmp_path: Path
) -> None:
    podman.images[NAME] = ONE
    podman.entrypoint, podman.programs = ["/entry.sh"], {"/usr/local/bin/llama-server"}
    provided()
    assert os.readlink(tmp_path / "prefix/image-bin/llama-server") == "/usr/local/bin/llama-server"
    podman.images[NAME], podman.programs = TWO, set()
    with pytest.raises(ProviderError, match="has no llama-server as its entry point, and none at /usr/bin"):
        provided()


def test_image_that_cannot_be_pulled_is_an_error_with_the_ways(provided: Callable[..., Provision]) -> None:
    with pytest.raises(ProviderError, match=r"could not be pulled: Error: manifest unknown.*runtime_image_archive"):
        provided()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image": None}, "runtime_image names no image"),
        ({"image": "-v /:/host x"}, "is not the name of an image"),
        ({"image_devices": ["/dev/dri --privileged"]}, "runtime_image_devices has"),
    ],
)
def test_settings_that_are_no_names_are_refused(
    podman: Podman, provided: Callable[..., Provision], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ProviderError, match=says):
        provided("image", **changes)
    assert podman.calls == []


def test_devices_follow_from_the_host(podman: Podman, provided: Callable[..., Provision], tmp_path: Path) -> None:
    podman.images[NAME] = ONE
    (tmp_path / "dev/dri").mkdir(parents=True)
    for name in ("dri/renderD128", "nvidia0"):
        (tmp_path / "dev" / name).write_text("")
    outcome = provided(image_devices=None)
    assert outcome.fact["image"]["devices"] == [str(tmp_path / "dev/dri")]
    assert "nvidia-ctk cdi generate" in outcome.fact["warnings"][-1]
    (tmp_path / "etc/cdi").mkdir(parents=True)
    (tmp_path / "etc/cdi/nvidia.yaml").write_text("")
    outcome = provided(image_devices=None)
    assert outcome.fact["image"]["devices"] == ["nvidia.com/gpu=all", str(tmp_path / "dev/dri")]
    assert not [text for text in outcome.fact["warnings"] if "nvidia-ctk" in text]


def test_script_runs_podman_with_the_words_as_given(
    podman: Podman, provided: Callable[..., Provision], tmp_path: Path
) -> None:
    podman.images[NAME] = ONE
    provided()
    (tmp_path / "podman").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "podman").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    script = str(tmp_path / "prefix/bin/llama-server")
    said = subprocess.run([script, "--alias", "a b"], env=environment, capture_output=True, text=True, check=True)
    words = said.stdout.splitlines()
    assert words[-3:] == [ONE, "--alias", "a b"]
    assert {"--cap-drop=all", "--network=none", "--read-only", "--user=65534:65534"} <= set(words)


# --- podman -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("podman version 4.3.1", "podman 4.3.1 is too old for containers as services. Install podman 4.4 or newer"),
        ("podman version 3.0.1-dev", "podman 3.0.1-dev is too old"),
        ("nonsense", "podman --version failed: nonsense"),
    ],
)
def test_podman_without_quadlets_is_refused_in_one_sentence(podman: Podman, text: str, says: str) -> None:
    podman.version = text
    with pytest.raises(PodmanError, match=says):
        require_podman(podman)


@pytest.mark.parametrize("version", ["4.4.0", "4.10.0", "5.4.2", "10.0.0-rc1"])
def test_podman_with_quadlets_is_taken(podman: Podman, version: str) -> None:
    podman.version = f"podman version {version}\n"
    assert require_podman(podman) == version


def test_missing_podman_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(argv: Sequence[str], environment: Mapping[str, str], seconds: float) -> Completed:
        return run_command(["/nonexistent/podman"], environment, seconds)

    with pytest.raises(PodmanError, match=r"podman is missing on this host\. Install podman 4\.4 or newer"):
        require_podman(none)
