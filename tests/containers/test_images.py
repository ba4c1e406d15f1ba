# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images: small, without rights, and with what they contain."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import images
import pytest
from support import checkout

from .conftest import build

MODELS = checkout.ROOT / ".cache/models"
MAX_BYTES = 150_000_000


def inspect(engine: str, name: str) -> dict:
    done = subprocess.run([engine, "inspect", name], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)[0]


def test_llama_server_is_small(engine: str, server_image: str) -> None:
    assert images.image_size(engine, server_image) <= MAX_BYTES


def test_images_name_their_build_user_and_health(engine: str, server_image: str, magi_image: str) -> None:
    for name in (server_image, magi_image):
        config = inspect(engine, name)["Config"]
        assert config["Labels"]["magi.llama-server"].startswith("version: ")
        assert config["Labels"]["org.opencontainers.image.revision"] == images.revision()
        assert (config["User"], config["StopSignal"]) == ("10001:10001", "SIGTERM")
        assert config["Entrypoint"][0] == "/usr/bin/tini" and config["Healthcheck"]["Test"]


@pytest.mark.parametrize("image", ["llama-server", "magi"])
def test_the_list_of_packages_names_llama_cpp(engine: str, server_image: str, magi_image: str, image: str) -> None:
    path = images.write_sbom(engine, image, {"llama-server": server_image, "magi": magi_image}[image])
    document = json.loads((checkout.ROOT / path).read_text())
    names = {one["name"] for one in document["packages"]}
    assert {"llama.cpp-tools", "tini"} <= names
    assert ("magi.llama" in names) == (image == "magi")


@pytest.fixture(scope="module")
def vulkan_image(engine_variables: dict[str, str]) -> str:
    return build(engine_variables, "llama-server-vulkan")


def test_the_variant_for_vulkan_has_its_backend_and_drivers(engine: str, vulkan_image: str) -> None:
    document = json.loads((checkout.ROOT / images.write_sbom(engine, "llama-server-vulkan", vulkan_image)).read_text())
    assert {"libggml0-backend-vulkan", "mesa-vulkan-drivers"} <= {one["name"] for one in document["packages"]}


@pytest.mark.parametrize("variant", ["server_image", "vulkan_image"])
def test_server_runs_without_rights_on_a_read_only_root(
    engine: str, variant: str, request: pytest.FixtureRequest
) -> None:
    server_image = request.getfixturevalue(variant)
    model = sorted(MODELS.glob("*.gguf"))[0].name
    command = [engine, "run", "--detach", "--network", "none", "--read-only", "--cap-drop", "ALL"]
    command += ["--security-opt", "no-new-privileges", "--tmpfs", "/tmp", "--memory", "512m", "--pids-limit", "128"]
    command += ["--volume", f"{MODELS}:/models:ro", server_image, "--model", f"/models/{model}", "--ctx-size", "512"]
    name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        deadline = time.monotonic() + 120
        while (state := inspect(engine, name)["State"])["Health"]["Status"] != "healthy":
            assert time.monotonic() < deadline and state["Running"], state
            time.sleep(0.5)
        status = Path(f"/proc/{state['Pid']}/status").read_text()
        assert "\nUid:\t10001\t" in status and "\nCapEff:\t0000000000000000\n" in status
        subprocess.run([engine, "stop", "--time", "20", name], capture_output=True, check=True)
        assert inspect(engine, name)["State"]["ExitCode"] == 0
    finally:
        subprocess.run([engine, "rm", "--force", name], capture_output=True, check=False)
