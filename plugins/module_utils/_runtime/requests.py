# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What is asked of those that provide a llama-server, and what they answer."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._core.commands import Completed, Run
from .._core.device_groups import gpu_nodes
from .._core.errors import MagiError
from .._core.text import redact

KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
)
PACKAGE_NAME = "llama.cpp-tools"
# Debian has no CUDA backend; Vulkan serves every vendor's GPUs.
GPU_PACKAGES = ("libggml0-backend-vulkan", "libvulkan1")
CLEAN_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "HOME": "/nonexistent",
}
QUICK_SECONDS = 60.0
DOWNLOAD_SECONDS = 1800.0
CONNECT_SECONDS = 60.0


class ProviderError(MagiError):
    """Raised if an installation method does not work on this host."""


class MissingError(ProviderError):
    """Raised if there is no binary at the given path."""


def _no_objection() -> None:
    """A run without a lock may change the host at any time."""


@dataclass(frozen=True)
class Request:
    """The role's request. etc, dev, keyrings and package_path are parameters for tests.

    image_devices are the devices that containers get; None for those of the host's GPUs.
    owner is a user besides root who may own the binary at path; ask runs a llama-server to find out what it is.
    confirm raises LockError if this run must not change the host any more.
    """

    path: str
    prefix: str
    portable_suite: str = "forky"
    portable_mirror: str | None = None
    release_url: str | None = None
    release_sha256: str | None = None
    image: str | None = None
    image_archive: str | None = None
    image_devices: Sequence[str] | None = None
    upgrade: bool = False
    stage: bool = False
    install_if_missing: bool = True
    check: bool = False
    owner: str | None = None
    ask: Run | None = None
    confirm: Callable[[], None] = _no_objection
    etc: str = "/etc"
    keyrings: Sequence[str] = KEYRINGS
    package_path: str = "/usr/bin/llama-server"
    dev: str = "/dev"

    @property
    def gpu_packages(self) -> tuple[str, ...]:
        """The packages with the backend for the host's GPUs; empty where it has none."""
        return GPU_PACKAGES if gpu_nodes(self.dev) else ()


@dataclass(frozen=True)
class Provided:
    """Where the binary is (or will be, if installed is false) and what was changed to provide it.

    image has the id, the name and the devices of a container image, and variables of it that are not passed on.
    staged_dir is the folder with the new prefix until it is moved into place; with discard it is removed after probing.
    """

    path: str
    note: str
    installed: bool = True
    changed: bool = False
    staged_dir: str | None = None
    discard: bool = False
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    image: Mapping[str, Any] | None = None


Provider = Callable[[Request, Run], Provided]


def secrets_in(url: str) -> list[str]:
    """Return the part of a URL that must not be shown: the user and password before the host."""
    credentials = urllib.parse.urlsplit(url).netloc.rpartition("@")[0]
    return [credentials] if credentials else []


def last_lines(done: Completed) -> str:
    """Return the last lines that a command printed; only error lines, if there are any."""
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "Err:", "W: GPG", "W: Failed"))]
    return redact(" | ".join((errors or lines)[-4:])) or f"exit code {done.code}"
