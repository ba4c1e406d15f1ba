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
    given = flag_value(argv, "--device") or ""
    visible = [int(number) for number in _CUDA.findall(given)] or list(range(max(len(gpu_bytes), numbers[-1] + 1)))
    return Gpus(tuple(_renumbered(argv, visible, numbers)), tuple(numbers), names)


def _renumbered(argv: Sequence[str], visible: Sequence[int], numbers: Sequence[int]) -> list[str]:
    """The command line with the GPUs' places among `numbers`; visible are those that it has now, in its order."""
    found = list(argv)
    kept = [number for number in visible if number in numbers]
    for place, (flag, value) in enumerate(zip(argv, argv[1:]), 1):
        if flag in _DEVICE_FLAGS and value != NONE:
            left = [number for number in map(int, _CUDA.findall(value)) if number in numbers]
            found[place] = ",".join(f"CUDA{numbers.index(number)}" for number in left) or NONE
        elif flag in _BUFFER_FLAGS:
            found[place] = _CUDA.sub(lambda match: _buffer(int(match[1]), numbers), value)
        elif flag == "--tensor-split" and kept:
            shares = dict(zip(visible, [*re.split(r"[,/]", value), *["0"] * len(visible)]))
            found[place] = ",".join(shares[number].strip() for number in kept)
        elif flag == "--main-gpu" and value.isdecimal():
            main = visible[int(value)] if int(value) < len(visible) else None
            found[place] = str(kept.index(main)) if main in kept else "0"
    return found


def _buffer(number: int, numbers: Sequence[int]) -> str:
    return f"CUDA{numbers.index(number)}" if number in numbers else "CPU"
