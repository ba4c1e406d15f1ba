# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What containers cannot have of a plan: refused before anything is written, or warned of."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .._core.links import is_below
from .workloads import DEFAULT_IMAGE, ExportError, Settings, Workload


def check_containers(workloads: Sequence[Workload], settings: Settings, *, share_gpus: bool) -> None:
    """Raise ExportError with all servers that cannot be containers. share_gpus: several may have the same GPU."""
    wrong = [
        f"{one.host}: {one.name} {one.gpu_fault} Set n_gpu_layers to 0 for it in the profile, or leave the host out "
        "with target."
        for one in workloads
        if one.gpu_fault
    ]
    wrong += [
        f"{one.host}: {one.name} has {path}, a link to {target}, which its container would lack: add "
        f"{os.path.dirname(target)} to registry_scan_paths, so that it is found there, or move it to the link's place."
        for one in workloads
        for path, target in one.strays
    ]
    wrong += [
        f"{one.host}: {one.name} writes in {path}, and its container has the model folder {folder} read-only: set "
        "slot_save_path, log_prompts_dir or lookup_cache_dynamic to a path outside of it."
        for one in workloads
        for path in one.writable
        for folder in one.folders
        if is_below(path, [folder]) or is_below(folder, [path])
    ]
    if settings.image == DEFAULT_IMAGE:
        wrong += [
            f"{one.host}: {one.name} is planned on GPUs, and {DEFAULT_IMAGE} computes on the CPU, where its "
            "memory limit is too low: set export_image to an image with a CUDA build of llama-server."
            for one in workloads
            if one.gpus
        ]
    if not share_gpus:
        wrong += _shared(workloads)
    if wrong:
        raise ExportError(f"Nothing was written. {' '.join(wrong)}")


def _shared(workloads: Sequence[Workload]) -> list[str]:
    """A sentence for each GPU that several servers have: a cluster gives a GPU to one Pod as a whole."""
    users: dict[tuple[str, int], list[str]] = {}
    for one in workloads:
        for number in one.gpu_numbers:
            users.setdefault((one.host, number), []).append(one.name)
    return [
        f"{host}: {' and '.join(names)} share CUDA{number}, and a Pod gets GPUs as a whole: give each server a GPU of "
        "its own (device in the profile), enable one of them only, or use format=compose."
        for (host, number), names in sorted(users.items())
        if len(names) > 1
    ]


def compose_notes(workloads: Sequence[Workload], _settings: Settings) -> list[str]:
    """Warnings: CUDA numbers the fastest GPU first and Docker by the bus, which differ where the GPUs do."""
    names: dict[str, set[str]] = {}
    for one in workloads:
        names.setdefault(one.host, set()).update(one.gpu_names)
    return [
        f"{host} has GPUs of several kinds ({', '.join(sorted(kinds))}), which llama-server and Docker may number "
        "otherwise: compare device_ids in its compose.yaml with nvidia-smi."
        for host, kinds in sorted(names.items())
        if len(kinds) > 1
    ]


def server_image(settings: Settings) -> str:
    """The image of a cluster's servers: a name that no node asks a public registry for unless one is given."""
    return f"localhost/{DEFAULT_IMAGE}" if settings.image == DEFAULT_IMAGE else settings.image


def kubernetes_notes(_workloads: Sequence[Workload], settings: Settings) -> list[str]:
    """A warning about an image that only the machine has that built it."""
    if settings.image != DEFAULT_IMAGE:
        return []
    return [
        f"The servers' image is {server_image(settings)}, which no registry has: load what make images builds into "
        "every node under this name, or push it to a registry of yours and set export_image to its name there."
    ]
