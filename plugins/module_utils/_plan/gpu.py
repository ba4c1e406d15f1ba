# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The host's GPUs and their memory, from the vendors' own tools. Text in, typed values out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._core.errors import EstimateError

MIB = 1024 * 1024

# What has less is a processor's own graphics: it borrows the host's memory, so its servers take RAM.
SMALLEST_BYTES = 1024 * MIB

NVIDIA_COMMAND = [
    "nvidia-smi",
    "--query-gpu=index,uuid,name,memory.total,memory.free",
    "--format=csv,noheader,nounits",
]
ROCM_COMMAND = ["rocm-smi", "--showmeminfo", "vram", "--showproductname", "--json"]
AMD_COMMAND = ["amd-smi", "metric", "--mem-usage", "--json"]

# Newer ROCm names a card by its series and its model; older releases have one of them only, in other letters.
_ROCM_NAMES = ("card series", "card model", "device name")


@dataclass(frozen=True)
class Gpu:
    """One GPU with memory of its own. index is the vendor's, device llama-server's name for it, such as CUDA0.

    held_bytes is what our own running servers hold of it; holders are texts about the largest other processes there.
    """

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    vendor: str
    device: str = ""
    uuid: str = field(default="", compare=False)
    held_bytes: int = 0
    holders: tuple[str, ...] = ()

    @property
    def usable_bytes(self) -> int:
        """What our servers can have in all: what is free, and what they hold already."""
        return min(self.total_bytes, self.free_bytes + self.held_bytes)

    @property
    def label(self) -> str:
        """Its name for messages."""
        return f"{self.device or self.index} ({self.name})"


def parse_nvidia_smi(text: str) -> list[Gpu]:
    """The lines of NVIDIA_COMMAND, sizes in MiB.

    A GPU that shares the host's memory (Jetson, GB10) says [N/A] for it and is left out: its servers take RAM.
    """
    gpus = []
    for line in text.splitlines():
        # The name may hold a comma, nothing else does.
        fields = [field.strip() for field in line.split(",")]
        if len(fields) < 5 or not all(re.fullmatch(r"[0-9]{1,9}", fields[place]) for place in (0, -2, -1)):
            continue
        name = ", ".join(fields[2:-2])
        sizes = int(fields[-2]) * MIB, int(fields[-1]) * MIB
        gpus.append(Gpu(int(fields[0]), name, *sizes, "nvidia", uuid=fields[1]))
    return gpus


def parse_rocm_smi(text: str) -> list[Gpu]:
    """The JSON of ROCM_COMMAND, sizes in bytes. Warnings may stand before it."""
    gpus = []
    cards = _json(text)
    for card, values in cards.items() if isinstance(cards, dict) else ():
        number = re.fullmatch(r"card([0-9]{1,6})", card)
        if not number or not isinstance(values, dict):
            continue
        known = {str(key).lower(): str(value) for key, value in values.items()}
        total = _whole(known.get("vram total memory (b)"))
        used = _whole(known.get("vram total used memory (b)"))
        if total is None or used is None:
            continue
        name = next((known[key] for key in _ROCM_NAMES if known.get(key, "N/A") != "N/A"), "AMD GPU")
        gpus.append(Gpu(int(number.group(1)), name, total, max(0, total - used), "amd"))
    return sorted(gpus, key=lambda gpu: gpu.index)


def parse_amd_smi(text: str) -> list[Gpu]:
    """The JSON of AMD_COMMAND: a list of GPUs, in newer releases under gpu_data."""
    found = _json(text)
    entries = found.get("gpu_data") if isinstance(found, dict) else found
    gpus = []
    for entry in entries if isinstance(entries, list) else ():
        memory = entry.get("mem_usage") if isinstance(entry, dict) else None
        index = _whole(entry.get("gpu")) if isinstance(entry, dict) else None
        if index is None or not isinstance(memory, dict):
            continue
        total, free = _amount(memory.get("total_vram")), _amount(memory.get("free_vram"))
        if total is not None and free is not None:
            gpus.append(Gpu(index, "AMD GPU", total, free, "amd"))
    return gpus


def _json(text: str) -> Any:
    """The JSON in a tool's output, from its first bracket on; an empty dict where there is none."""
    start = re.search(r"[\[{]", text)
    try:
        return json.JSONDecoder().raw_decode(text, start.start())[0] if start else {}
    except (ValueError, RecursionError):
        return {}


def _whole(value: Any) -> int | None:
    return int(value) if re.fullmatch(r"[0-9]{1,18}", str(value)) else None


def _amount(value: Any) -> int | None:
    """{"value": 24560, "unit": "MB"} in bytes; AMD's MB are MiB."""
    if not isinstance(value, Mapping):
        return None
    units = {"B": 1, "KB": 1024, "MB": MIB, "GB": 1024 * MIB}
    number, unit = _whole(value.get("value")), units.get(str(value.get("unit")))
    return None if number is None or unit is None else number * unit


def read_gpus(run: Callable[[list[str]], str | None]) -> list[Gpu]:
    """All GPUs of the host that can hold a model. `run` gives a command's output, None where it is missing or fails."""
    nvidia = parse_nvidia_smi(run(NVIDIA_COMMAND) or "")
    amd = parse_rocm_smi(run(ROCM_COMMAND) or "") or parse_amd_smi(run(AMD_COMMAND) or "")
    return [gpu for gpu in (*nvidia, *amd) if gpu.total_bytes >= SMALLEST_BYTES]


def vram_per_gpu(vram_bytes: int, fixed_bytes: int, flags: Mapping[str, Any], gpus: Sequence[Gpu]) -> list[int]:
    """What a server takes on each GPU, in their order, of vram_bytes in all; fixed_bytes of it on every GPU it uses.

    As llama-server splits: by tensor_split, else by the GPUs' memory, over those that device names; on main_gpu alone
    where split_mode is none. flags are long flags in snake_case.
    """
    if not gpus or vram_bytes <= 0:
        return [0] * len(gpus)
    used = used_gpus(flags, gpus)
    if str(flags.get("split_mode")) == "none":
        main = _whole(str(flags.get("main_gpu", 0))) or 0
        used = used[main : main + 1] or used[:1]
    given = _shares(flags.get("tensor_split"))
    shares = {place: float(gpus[place].total_bytes) for place in used}
    if sum(given[: len(used)]) > 0:
        shares = dict(zip(used, [*given, *([0.0] * len(used))]))
    fixed = min(fixed_bytes, vram_bytes // len(used))
    divisible = vram_bytes - fixed * len(used)
    total = sum(shares.values())
    return [fixed + int(divisible * shares[place] / total) if place in shares else 0 for place in range(len(gpus))]


def _shares(value: Any) -> list[float]:
    """The proportions of --tensor-split: numbers with commas or slashes between them. Raises EstimateError."""
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    texts = [part.strip() for part in re.split(r"[,/]", text)] if value not in (None, "") else []
    if not all(re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?|\.[0-9]{1,9}", text) for text in texts):
        raise EstimateError(f"tensor_split is {str(value)[:80]!r}: it must be a list of numbers, such as 3,1.")
    return [float(text) for text in texts]


def used_gpus(flags: Mapping[str, Any], gpus: Sequence[Gpu]) -> list[int]:
    """The places of the GPUs that device (CUDA0,CUDA2 and the like) names; of all of them without it."""
    given = str(flags.get("device") or "")
    if given == "none":
        return []
    names = [name.strip() for name in given.split(",") if re.search(r"[A-Za-z][0-9]", name)]
    if not names:
        return list(range(len(gpus)))
    # A tool of the vendor only numbers them.
    known = {gpu.device or re.sub(r"[0-9]+$", "", names[0]) + str(place): place for place, gpu in enumerate(gpus)}
    unknown = [name for name in names if name not in known]
    if unknown:
        listed = ", ".join(gpu.label for gpu in gpus[:8])
        raise EstimateError(f"device is {given[:80]}, and {unknown[0]} is not a GPU of this host, which has {listed}.")
    return [known[name] for name in names]
