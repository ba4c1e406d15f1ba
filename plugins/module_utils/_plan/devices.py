# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The GPUs that llama-server itself sees, with what they have free and who holds the rest."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .._core.commands import Completed
from .._core.gpu_processes import NVIDIA_APPS_COMMAND, parse_apps
from .._core.text import clean_text, format_bytes
from .gpu import MIB, SMALLEST_BYTES, Gpu, read_gpus

MAX_HOLDERS = 4
# Graphics that share the host's memory, by the names that drivers give them: their servers take RAM.
_SHARED = re.compile(r"\b(UHD|HD|Iris\S*( Xe)?) Graphics\b|\bRadeon (Vega \d+ )?Graphics\b|\bRadeon \d{3}M\b|llvmpipe")
_DEVICE = re.compile(r"^ {2}([A-Za-z]+)([0-9]{1,3}): (.{0,200}) \(([0-9]{1,9}) MiB, ([0-9]{1,9}) MiB free\)$", re.M)


def parse_devices(text: str) -> list[Gpu]:
    """The devices that llama-server's --list-devices prints, such as CUDA0, in its order.

    A card that two backends see is taken once, from the first of them, as llama-server does.
    """
    found: list[Gpu] = []
    backends: dict[str, str] = {}
    for backend, number, name, total, free in _DEVICE.findall(text):
        if backends.setdefault(name, backend) != backend:
            continue
        vendor = "nvidia" if backend == "CUDA" or "NVIDIA" in name else "amd" if backend == "ROCm" else backend.lower()
        label = clean_text(name)
        found.append(Gpu(int(number), label, int(total) * MIB, int(free) * MIB, vendor, f"{backend}{number}"))
    return found


def find_gpus(
    runtime: Mapping[str, Any],
    ask: Callable[[Sequence[str]], Completed],
    tool: Callable[[list[str]], str | None],
    own: Mapping[int, str],
    planned: Mapping[str, Sequence[int]],
    command_of: Callable[[int], str],
) -> tuple[list[Gpu], list[str]]:
    """The GPUs that llama-server will use, with their holders, and warnings.

    ask runs llama-server as the servers' user. tool returns what a vendor's tool prints, None where it is missing. own
    are the names of our running servers by pid, planned the bytes that each was planned to hold on each GPU, which
    count where no tool says what a process holds. Raises CommandTimeoutError for a GPU that does not answer.
    """
    cards = read_gpus(tool)
    devices = _asked(runtime, ask)
    if devices == [] and cards:
        return [], [
            f"This host has {len(cards)} GPUs ({cards[0].name} …) and {runtime['path']} sees none of them as the "
            "servers' user: its servers run on the CPU. Install a build for these GPUs or their driver, or add the "
            "user to the groups of /dev/dri and /dev/kfd (servers_user_groups)."
        ]
    gpus = cards if devices is None else _with_uuids(devices, cards)
    apps = parse_apps(tool(NVIDIA_APPS_COMMAND) or "") if gpus else []
    return [_with_holders(gpu, place, apps, own, planned, command_of) for place, gpu in enumerate(gpus)], []


def _asked(runtime: Mapping[str, Any], ask: Callable[[Sequence[str]], Completed]) -> list[Gpu] | None:
    """What llama-server lists; None where it is not installed yet, or cannot say."""
    if "list_devices" not in (runtime.get("flags") or {}):
        return None
    try:
        done = ask([str(runtime["path"]), "--list-devices"])
    except TimeoutError:
        raise
    except OSError:
        # A staged build that is moved into place after the plan.
        return None
    if done.code != 0:
        return None
    devices = parse_devices(f"{done.stdout}\n{done.stderr}")
    return [gpu for gpu in devices if gpu.total_bytes >= SMALLEST_BYTES and not _SHARED.search(gpu.name)]


def _with_uuids(devices: Sequence[Gpu], cards: Sequence[Gpu]) -> list[Gpu]:
    """The devices with the uuids of the cards of their names, which the vendor's tool lists in the same order."""
    left = list(cards)
    result = []
    for device in devices:
        card = next((card for card in left if card.name == device.name), None)
        if card is not None:
            left.remove(card)
        result.append(replace(device, uuid=card.uuid if card else ""))
    return result


def _with_holders(
    gpu: Gpu,
    place: int,
    apps: Sequence[tuple[str, int, int]],
    own: Mapping[int, str],
    planned: Mapping[str, Sequence[int]],
    command_of: Callable[[int], str],
) -> Gpu:
    here = [(pid, size) for uuid, pid, size in apps if uuid and uuid == gpu.uuid]
    if here:
        held = sum(size for pid, size in here if pid in own)
        others = sorted(((size, pid) for pid, size in here if pid not in own), reverse=True)[:MAX_HOLDERS]
        texts = tuple(f"pid {pid} ({command_of(pid)}) holds {format_bytes(size)}" for size, pid in others)
        return replace(gpu, held_bytes=held, holders=texts)
    names = set(own.values())
    return replace(
        gpu, held_bytes=sum(sizes[place] for name, sizes in planned.items() if name in names and place < len(sizes))
    )
