# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One engine and one bring-up of compose.yml for all tests of this folder."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import compose_stack
import docker_engine
import images
from support import checkout

# What the tests build and start is found by it, also after a run that was killed.
TAG = f"test-{checkout.name()}"
MODELS = checkout.ROOT / ".cache/models"


@contextlib.contextmanager
def using(variables: Mapping[str, str]) -> Iterator[None]:
    """The environment of the engine for as long as it is needed: later tests of this process have their own PATH."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def engine_variables() -> Iterator[dict[str, str]]:
    """The environment of an engine of this checkout."""
    if reason := docker_engine.lacks():
        pytest.skip(reason)
    with docker_engine.running() as variables:
        yield variables


@pytest.fixture(autouse=True)
def engine(engine_variables: dict[str, str]) -> Iterator[str]:
    """docker, with its environment for one test."""
    with using(engine_variables):
        yield "docker"


@pytest.fixture(scope="session")
def magi_image(engine_variables: dict[str, str]) -> str:
    return build(engine_variables, "magi")


@pytest.fixture(scope="session")
def server_image(engine_variables: dict[str, str]) -> str:
    return build(engine_variables, "llama-server")


def build(variables: Mapping[str, str], image: str) -> str:
    with using(variables):
        return images.build("docker", image, images.FROM_PACKAGES, f"{images.PREFIX}/{image}:{TAG}")


@pytest.fixture(scope="session")
def stack(
    engine_variables: dict[str, str], magi_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[compose_stack.Stack]:
    """All services, healthy, with a profile of the user's own. The tests run in the order of their file."""
    folder = tmp_path_factory.mktemp("compose")
    (folder / "profiles").mkdir()
    (folder / "profiles/mine.yml").write_text(PROFILE)
    password = folder / "redis_password"
    password.write_text("a-password-of-the-tests\n")
    for path in (*folder.parents, folder / "profiles", password):
        if path.is_relative_to(tmp_path_factory.getbasetemp()):
            path.chmod(0o755)
    first = checkout.ports("containers").start
    env = folder / "env"
    env.write_text(
        f"MAGI_IMAGE={magi_image}\nMODELS={MODELS}\nPROFILES={folder}/profiles\nREDIS_PASSWORD_FILE={password}\n"
        f"MAGI_PROFILE=mine\nMODEL_PORT_RANGE_START={first + 2}\nMODEL_PORT_RANGE_END={first + 9}\n"
        f"MAGI_GATEWAY_PORT={first}\nMAGI_CONSOLE_PORT={first + 1}\n"
        # The stream at the end has as long as its context.
        "MAGI_STOP_SECONDS=120\nMAGI_STOP_GRACE=180s\n"
    )
    files = (compose_stack.ROOT / "compose.yml",)
    found = compose_stack.Stack(["docker-compose"], "docker", env, f"magi-{checkout.name()}", files)
    with using(engine_variables):
        found.call("down", "--volumes", "--timeout", "1")
        found.call("up", "-d", "--no-build")
    try:
        yield found
    finally:
        with using(engine_variables):
            found.call("down", "--volumes", "--timeout", "5")
            # Old builds of the image; what the engine has cached of the last one is kept.
            subprocess.run(["docker", "image", "prune", "--force"], capture_output=True, check=False)


PROFILE = """\
description: Two of the models
enabled_models: [{tier: Q2}, {tier: Q4}]
parameters: {ctx_size: 2048, parallel: 2, n_gpu_layers: auto, threads: auto}
"""
