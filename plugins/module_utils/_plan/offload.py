# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""How many layers of each server are put on the GPUs, where the profile leaves it to the plan (n_gpu_layers: auto).

llama-server's own --fit moves layers to the CPU without a word, where a GPU is fuller than expected. So what fits is
planned here and rendered as a number, or as "all", with which too little memory fails at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._core.argv import flag_value

# The number for a server that does not use the GPUs at all: even without layers there it would hold some memory.
NO_GPU = -1
NAMES = ("n_gpu_layers", "gpu_layers")


@dataclass(frozen=True)
class Wish:
    """A server and the memory that it needs on each GPU with so many layers there.

    layers are all of its layers with the output. own is the number that its profile sets, running the one that its
    process has; None for neither.
    """

    name: str
    layers: int
    need: Callable[[int], Sequence[int]]
    own: int | None = None
    running: int | None = None


def assign_layers(wishes: Sequence[Wish], free: Sequence[int], margin: int) -> dict[str, int]:
    """Return the layers on GPUs of each server whose profile sets no number, by name.

    free are the bytes of each GPU for these servers. Servers are served in their order, and each gets what fits. A
    margin is kept free on each GPU for those that are to be started; so a little less free memory restarts none.
    """
    left = list(free)
    for wish in wishes:
        if wish.own is not None:
            left = [size - need for size, need in zip(left, wish.need(wish.own))]
    result = {}
    for wish in wishes:
        if wish.own is None:
            count = _fitting(wish, left, margin)
            result[wish.name] = count
            if count != NO_GPU:
                left = [size - need for size, need in zip(left, wish.need(count))]
    return result


def _fitting(wish: Wish, left: Sequence[int], margin: int) -> int:
    def fits(count: int, spare: int) -> bool:
        # What a GPU does not get any of may be as full as it likes.
        return all(need == 0 or need + spare <= size for need, size in zip(wish.need(count), left))

    if fits(wish.layers, 0 if wish.running == wish.layers else margin):
        return wish.layers
    if wish.running is not None and 0 <= wish.running < wish.layers and fits(wish.running, 0):
        return wish.running
    if not fits(0, margin):
        return NO_GPU
    low, high = 0, wish.layers - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle, margin) else (low, middle - 1)
    return low


def layer_flags(count: int, layers: int, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that put so many of a model's layers on the GPUs; empty for a build without the flag."""
    name = next((name for name in NAMES if not flags or name in flags), None)
    if name is None:
        return {}
    if count == NO_GPU:
        return {name: 0, **({"device": "none"} if not flags or "device" in flags else {})}
    # Older builds only take a number.
    takes_words = not flags or bool(flags[name].get("auto"))
    return {name: "all" if count >= layers and takes_words else count}


def number_of(value: Any, layers: int) -> int | None:
    """A value of n_gpu_layers as a number of layers; None where it is left to the plan."""
    text = str(value)
    if value is None or text in ("auto", ""):
        return None
    if text == "all" or not text.isdecimal():
        return layers
    return min(int(text), layers)


def running_layers(argv: Sequence[str], layers: int) -> int | None:
    """The layers that a running server puts on the GPUs by its command line; None where that has no number."""
    if flag_value(argv, "--device") == "none":
        return NO_GPU
    given = flag_value(argv, "--n-gpu-layers") or flag_value(argv, "--gpu-layers")
    return number_of(given, layers)


def layer_warning(name: str, count: int, layers: int) -> str:
    """The text about a server that does not fit on the GPUs."""
    on_gpu = "none" if count in (0, NO_GPU) else str(count)
    return (
        f"{name}: {on_gpu} of its {layers} layers fit into what the GPUs have free. The others are in RAM and computed "
        "on the CPU, which is several times slower. Lower ctx_size, choose a smaller quantization or free the GPUs, or "
        "set n_gpu_layers: all, which fails instead."
    )
