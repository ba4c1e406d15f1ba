# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The GPUs of a server's container: which of the host's, and the command line with the numbers that they have there.

A container sees only its own GPUs, by the bus, and llama-server numbers these from 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .._core.argv import flag_value
from .._plan.differences import DEVICES

NONE = "none"
_DEVICE_FLAGS = ("--device", "--device-draft", "--spec-draft-device")
_BUFFER_FLAGS = ("--override-tensor", "--override-tensor-draft", "--spec-draft-override-tensor")
_LABEL = re.compile(r"(?:^|, )([A-Za-z]*)([0-9]+) \(((?:(?!, [A-Za-z]*[0-9]+ \().)*)\)")
_CUDA = re.compile(r"\bCUDA([0-9]+)")
# A tool of the vendor, which was asked where llama-server is not installed yet, only numbers its GPUs.
_NVIDIA = re.compile(r"NVIDIA|Tesla|GeForce|Quadro|GRID|RTX", re.IGNORECASE)


@dataclass(frozen=True)
class Gpus:
    """numbers are those of the host's GPUs, argv has the container's; fault says why it cannot be, as a sentence's end.

    names are the GPUs' own, such as NVIDIA L4.
    """

    argv: tuple[str, ...]
    numbers: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    fault: str = ""


def gpus_of(argv: Sequence[str], env: Mapping[str, str], gpu_bytes: Sequence[int]) -> Gpus:
    """argv and env as planned, gpu_bytes what the server takes on each GPU of its host."""
    count = sum(1 for size in gpu_bytes if size)
    labels = _LABEL.findall(str(env.get(DEVICES) or ""))
    if not count:
        return Gpus(tuple(_renumbered(argv, [], [])))
    names = tuple(name for _backend, _number, name in labels)
    if len(labels) != count:
        return Gpus(tuple(argv), fault="is on GPUs that the plan does not name.")
    if not all(backend == "CUDA" or (not backend and _NVIDIA.search(name)) for backend, _number, name in labels):
        return Gpus(tuple(argv), fault=f"is on {labels[0][0]}{labels[0][1]} ({names[0]}), and only CUDA is exported.")
    used = {int(number) for _backend, number, _name in labels}
    draft = [flag_value(argv, flag) or "" for flag in _DEVICE_FLAGS[1:]]
    numbers = sorted(used | {int(number) for text in draft for number in _CUDA.findall(text)})
    count = max(len(gpu_bytes), numbers[-1] + 1)
    visible = _names(flag_value(argv, "--device") or "") or [f"CUDA{number}" for number in range(count)]
    return Gpus(tuple(_renumbered(argv, visible, numbers)), tuple(numbers), names)


def _names(value: str) -> list[str]:
    """The devices of --device, an empty list if it leaves out all."""
    return [name.strip() for name in value.split(",") if name.strip() not in ("", NONE)]


def _renumbered(argv: Sequence[str], visible: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """The command line with the GPUs' places among `numbers`; visible are the devices that it has now, in its order."""
    found = list(argv)
    kept = [name for name in visible if _placed(name, numbers)]
    for place, (flag, value) in enumerate(zip(argv, argv[1:]), 1):
        if flag in _DEVICE_FLAGS and value != NONE:
            found[place] = ",".join(filter(None, (_placed(name, numbers) for name in _names(value)))) or NONE
        elif flag in _BUFFER_FLAGS:
            found[place] = _CUDA.sub(lambda match: _placed(match[0], numbers) or "CPU", value)
        elif flag == "--tensor-split" and kept:
            shares = dict(zip(visible, [*re.split(r"[,/]", value), *["0"] * len(visible)]))
            found[place] = ",".join(shares[name].strip() for name in kept)
        elif flag == "--main-gpu" and value.isdecimal() and visible:
            main = visible[int(value) if int(value) < len(visible) else 0]
            found[place] = str(kept.index(main)) if main in kept else "0"
    return found


def _placed(name: str, numbers: Sequence[int]) -> str:
    """A device's name in the container; empty for a GPU that it does not see. Others, such as RPC0, stay."""
    match = _CUDA.fullmatch(name)
    if not match:
        return name
    return f"CUDA{numbers.index(int(match[1]))}" if int(match[1]) in numbers else ""
