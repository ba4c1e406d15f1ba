# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""llama-server in a container image, pinned by the image's id: for servers that run as containers.

The prefix has a program that runs the image's llama-server, so that it is asked for its version and flags like any
other. Its text has the image's id, so the identity of llama-server follows from the image.
"""

from __future__ import annotations

import glob
import grp
import os
import posixpath
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..._core.commands import Run
from ..._core.device_groups import device_groups, gpu_nodes
from ..._core.digests import file_digest
from ..._core.files import write_atomic
from ..._core.podman import FETCH_SECONDS, LINK_FOLDER, image_of, last_line, podman, require_podman
from ..._core.processes import STRAY_VARIABLE
from ..._core.text import quoted, redact
from ..prefix import PREFIX_LAYOUT, provide
from ..prefix_manifest import note_in_manifest, previous_prefix, read_manifest, staged_prefix
from ..requests import Provided, ProviderError, Request

NVIDIA_DEVICES = "nvidia.com/gpu=all"
# Where builds put it, where the image's entry point is another program.
_PROGRAMS = ("/usr/bin/llama-server", "/usr/local/bin/llama-server", "/app/llama-server")
_PROGRAM = re.compile(r"(?:/[\w.+-]+)+")
_REFERENCE = re.compile(r"[A-Za-z0-9][\w.:/@+-]*")
_DEVICE = re.compile(r"[\w./=:+-]+")
_ASK_SECONDS = 60
# A user without rights, no network and nothing writable: it only says what it is.
_CONFINED = (
    *("--rm", "--pull=never", "--network=none", "--read-only", "--cap-drop=all", "--user=65534:65534"),
    *("--security-opt=no-new-privileges", "--security-opt=label=disable", "--pids-limit=0", "--no-healthcheck"),
    *("--log-driver=none", f"--timeout={_ASK_SECONDS}"),
)


def image(request: Request, run: Run) -> Provided:
    """Load or pull the image, and write the program that runs its llama-server into the prefix."""
    _check_request(request)
    require_podman(run)
    known = [read_manifest(place(request.prefix)) for place in (str, staged_prefix, previous_prefix)]
    archive = _digest_of_archive(request)
    found = _present(request, archive, known, run)
    devices = _devices(request)
    warnings = _missing_specification(request, devices)
    path = os.path.join(request.prefix, "bin", "llama-server")
    if found is None and request.check:
        fact = {"id": "", "reference": _named(request), "devices": devices, "unset": []}
        note = f"the image {_named(request)} is not on the host yet"
        return Provided(path, note, installed=False, changed=True, warnings=warnings, image=fact)
    is_ours = found is None or any(one.get("image") == found["Id"] and one.get("fetched") for one in known)
    if found is None:
        request.confirm()
        found = _load(request, run) if request.image_archive else _pull(request, run)
    fact = {"id": found["Id"], "reference": _named(request), "devices": devices, "unset": _stray_names(found)}
    wanted = {"layout": PREFIX_LAYOUT, "method": "image", "image": found["Id"], "devices": devices}

    def fill(new: str) -> dict[str, Any]:
        program = _program_of(found, run)
        text = _script(found["Id"], program, devices, fact["unset"])
        for folder in ("bin", LINK_FOLDER):
            os.mkdir(os.path.join(new, folder))
        write_atomic(os.path.join(new, "bin", "llama-server"), text.encode(), 0o755)
        os.symlink(program, os.path.join(new, LINK_FOLDER, "llama-server"))
        return {**wanted, "reference": fact["reference"], "archive_sha256": archive, "fetched": is_ours}

    text = f"{_named(request)} ({found['Id'][:12]})"
    provided = provide(request, wanted, fill, (f"{request.prefix} is for the image {text}", f"the image {text}"))
    if archive and not request.check and read_manifest(request.prefix).get("image") == found["Id"]:
        # The same image by another name or from another archive: it need not be loaded again.
        note_in_manifest(request.prefix, reference=fact["reference"], archive_sha256=archive)
    return replace(provided, image=fact, warnings=warnings)


def _named(request: Request) -> str:
    return redact(request.image or str(request.image_archive))


def _check_request(request: Request) -> None:
    if not request.image and not request.image_archive:
        raise ProviderError(
            "runtime_image names no image: set it to one with llama-server, such as "
            "registry.example.com/llama-server@sha256:…, or runtime_image_archive to a file of podman save on the host."
        )
    if request.image and not _REFERENCE.fullmatch(request.image):
        raise ProviderError(f"runtime_image is {quoted(redact(request.image))}, which is not the name of an image.")
    wrong = [device for device in request.image_devices or () if not _DEVICE.fullmatch(device)]
    if wrong:
        raise ProviderError(
            f"runtime_image_devices has {quoted(wrong[0])}: name devices as podman does, such as {NVIDIA_DEVICES} or "
            "/dev/dri."
        )


def _digest_of_archive(request: Request) -> str | None:
    if not request.image_archive:
        return None
    try:
        return file_digest(request.image_archive)
    except OSError as error:
        if request.check:
            # Another task of the real run may put it there.
            return None
        raise ProviderError(
            f"runtime_image_archive {request.image_archive} cannot be read on the host: {error.strerror}. Copy the "
            "file of podman save there."
        ) from error


def _present(
    request: Request, archive: str | None, known: Sequence[Mapping[str, Any]], run: Run
) -> dict[str, Any] | None:
    """The image that is wanted, if it is in the host's storage."""
    if request.image_archive:
        # An archive names its images, and a tag may be another image's by now: what was loaded from it counts.
        loaded = next((one["image"] for one in known if archive and _is_from(one, archive, request)), None)
        return image_of(str(loaded), run) if loaded else None
    reference = str(request.image)
    if request.upgrade and not request.check and "@" not in reference and not reference.startswith("localhost/"):
        return None
    return image_of(reference, run)


def _is_from(manifest: Mapping[str, Any], archive: str, request: Request) -> bool:
    """Whether a prefix is for the image of this archive that is asked for: it may have several."""
    # Without a name the reference is the archive's path, which may be another by now.
    named, reference = _named(request) if request.image else None, str(manifest.get("reference"))
    return manifest.get("archive_sha256") == archive and (None if reference.startswith("/") else reference) == named


def _load(request: Request, run: Run) -> dict[str, Any]:
    said = podman("load", "--quiet", "--input", str(request.image_archive), run=run, seconds=FETCH_SECONDS)
    names = re.findall(r"^Loaded image(?:s|\(s\))?: *(\S+)", said.stdout, re.MULTILINE)
    if said.code or not names:
        raise ProviderError(
            f"{request.image_archive} could not be loaded: {last_line(said)}. It must be a file of podman save or "
            "docker save."
        )
    if request.image and request.image not in names:
        raise ProviderError(
            f"{request.image_archive} has {', '.join(names)}, and not {request.image}: set runtime_image to one of "
            "these, or leave it empty."
        )
    return _required(request.image or names[-1], run)


def _pull(request: Request, run: Run) -> dict[str, Any]:
    said = podman("pull", "--quiet", str(request.image), run=run, seconds=FETCH_SECONDS)
    if said.code:
        raise ProviderError(
            f"{_named(request)} could not be pulled: {redact(last_line(said))}. Log in with podman login as root, or "
            "copy it to the host and set runtime_image_archive."
        )
    return _required(str(request.image), run)


def _required(reference: str, run: Run) -> dict[str, Any]:
    found = image_of(reference, run)
    if found is None:
        raise ProviderError(f"podman has no image {reference}, which it has just fetched: see podman images.")
    return found


def _stray_names(found: Mapping[str, Any]) -> list[str]:
    """Variables of the image that llama-server would obey: the plan's command line alone decides."""
    text = "\n".join((found.get("Config") or {}).get("Env") or [])
    return sorted(set(STRAY_VARIABLE.findall(text)))


def _program_of(found: Mapping[str, Any], run: Run) -> str:
    """The image's llama-server: its entry point, or where builds put it."""
    config = found.get("Config") or {}
    words = [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])][:1]
    named = [word for word in words if _PROGRAM.fullmatch(word) and posixpath.basename(word).startswith("llama-server")]
    if named:
        return str(named[0])
    for program in _PROGRAMS:
        if podman("run", *_CONFINED, f"--entrypoint={program}", str(found["Id"]), "--version", run=run).code == 0:
            return program
    raise ProviderError(
        f"The image {found['Id'][:12]} has no llama-server as its entry point, and none at {', '.join(_PROGRAMS)}: set "
        "runtime_image to an image with llama-server."
    )


def _script(identity: str, program: str, devices: Iterable[str], unset: Iterable[str]) -> str:
    """The program that runs the image's llama-server, to ask it what it is."""
    options = [*_CONFINED, *(f"--unsetenv={name}" for name in unset), *(f"--device={device}" for device in devices)]
    options += [f"--group-add={grp.getgrnam(name).gr_gid}" for name in (device_groups() if devices else ())]
    words = ["podman", "run", *options, f"--entrypoint={program}", identity]
    lines = " \\\n    ".join(map(shlex.quote, words))
    return f'#!/bin/sh\n# Ansible managed (magi.llama): llama-server of a container image\nexec {lines} "$@"\n'


def _devices(request: Request) -> list[str]:
    """The devices of GPUs that containers get: those that are named, or all that the host has."""
    if request.image_devices is not None:
        return list(request.image_devices)
    nodes = gpu_nodes(request.dev)
    found = [NVIDIA_DEVICES] if _has_nvidia_specification(request) else []
    folders = {os.path.join(request.dev, name) for name in ("dri", "kfd")}
    used = {folder for folder in folders if any(node == folder or node.startswith(f"{folder}/") for node in nodes)}
    return found + sorted(used)


def _has_nvidia_specification(request: Request) -> bool:
    places = [os.path.join(request.etc, "cdi"), "/run/cdi"]
    return any(glob.glob(os.path.join(glob.escape(place), "*nvidia*")) for place in places)


def _missing_specification(request: Request, devices: Sequence[str]) -> list[str]:
    has_nvidia = any("nvidia" in os.path.basename(node) for node in gpu_nodes(request.dev))
    if not has_nvidia or any(device.startswith("nvidia.com/") for device in devices):
        return []
    return [
        "This host has NVIDIA GPUs and no CDI specification of them, so containers run on the CPU: install the NVIDIA "
        "Container Toolkit and run nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml."
    ]
