# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""podman on a host: its version, and its images."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from .commands import SECONDS, Completed, Run, run_command
from .errors import MagiError

# The first podman with quadlets, units that systemd generates from files in QUADLET_FOLDER.
FIRST_VERSION = (4, 4)
QUADLET_FOLDER = "/etc/containers/systemd"
# In llama-server's prefix: a folder that containers have at the place of the program's, so that a server's command line
# is the same inside. Its llama-server is a link to the one of the image.
LINK_FOLDER = "image-bin"
# A large image takes minutes to load from a disk or a network.
FETCH_SECONDS = 3600.0
IMAGE_ID = re.compile(r"[0-9a-f]{64}")
# What podman needs of the caller's environment to reach a registry.
_PASSED = re.compile(r"(?:https?|no|all)_proxy|REGISTRY_AUTH_FILE|CONTAINERS_\w+|XDG_RUNTIME_DIR", re.IGNORECASE)
_WHICH = "Install podman 4.4 or newer (Debian 13, Ubuntu 24.04, Fedora 38, RHEL 9.2 and newer have it)"
_OTHERWISE = "or set servers_service_manager to systemd."


class PodmanError(MagiError):
    """Raised for a podman that is missing, too old, or fails: a sentence with the fix."""


def environment() -> dict[str, str]:
    """Return the environment that podman is run with: nothing of a llama-server's."""
    passed = {name: value for name, value in os.environ.items() if _PASSED.fullmatch(name)}
    return {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root", **passed}


def podman(*arguments: str, run: Run = run_command, seconds: float = SECONDS) -> Completed:
    """Run podman. Raises PodmanError if it is missing, CommandTimeoutError."""
    try:
        return run(["podman", *arguments], environment(), seconds)
    except FileNotFoundError as error:
        raise PodmanError(f"podman is missing on this host. {_WHICH}, {_OTHERWISE}") from error


def require_podman(run: Run = run_command) -> str:
    """Return the version of the host's podman. Raises PodmanError where it has no quadlets."""
    said = podman("--version", run=run)
    found = re.search(r"\b(\d+)\.(\d+)[^\s]*", said.stdout)
    if said.code or not found:
        raise PodmanError(f"podman --version failed: {last_line(said)}. Run it by hand on the host.")
    if (int(found[1]), int(found[2])) < FIRST_VERSION:
        raise PodmanError(f"podman {found[0]} is too old for containers as services. {_WHICH}, {_OTHERWISE}")
    return found[0]


def image_of(reference: str, run: Run = run_command) -> dict[str, Any] | None:
    """Return what podman knows of an image, by its name or id; None if it is not in the host's storage."""
    if podman("image", "exists", reference, run=run).code:
        return None
    said = podman("image", "inspect", reference, run=run)
    try:
        [found] = json.loads(said.stdout)
        if IMAGE_ID.fullmatch(found["Id"]):
            return dict(found)
    except (ValueError, KeyError, TypeError):
        pass
    raise PodmanError(f"podman image inspect {reference} failed: {last_line(said)}.")


def last_line(said: Completed) -> str:
    """Return the last line that podman printed."""
    lines = [line.strip() for line in f"{said.stdout}\n{said.stderr}".splitlines() if line.strip()]
    return lines[-1][:500] if lines else f"exit code {said.code}"
