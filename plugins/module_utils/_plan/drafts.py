# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Servers before they have a port and threads: their flags, the memory that these take, and their layers on GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .._runtime.render_flags import known_parameters, valid_parameters
from .build_defaults import log_defaults, stop_defaults
from .exposure import exposure_defaults, refuse_powerful, refuse_sleep
from .gpu import used_gpus, vram_per_gpu
from .inputs import Host, Server, Settings
from .memory import computes_on_cpu, estimate, slot_context
from .memory_limits import FIT_MARGIN_BYTES, is_resident, on_gpus
from .offload import NAMES, Wish, assign_layers, layer_flags, layer_warning, number_of, running_layers
from .problems import Problems
from .profile import Model, Selected


@dataclass(frozen=True)
class Draft:
    """A server before its port and threads are known: its flags, and the memory that they take."""

    name: str
    selected: Selected
    parameters: dict[str, Any]
    canonical: dict[str, Any]
    memory: dict[str, Any] = field(default_factory=dict)
    on_cpu: bool = False

    @property
    def layers(self) -> int:
        """All layers of its model, with the output."""
        return len(self.selected.model["memory"].get("layers", ())) + 1

    @property
    def own_threads(self) -> int | None:
        """The number of threads that the profile sets; 0 for llama-server's default, None to share the cores."""
        value = str(self.canonical.get("threads"))
        if value == "auto":
            return None
        return int(value) if value.isdecimal() else 0


def make_draft(
    name: str,
    selected: Selected,
    runtime: Mapping[str, Any],
    settings: Settings,
    host: Host,
    companions: Mapping[str, int],
) -> tuple[Draft | None, list[str]]:
    """Return a server's flags and memory, or None and its errors."""
    model, problems = selected.model, Problems()
    flags = runtime.get("flags") or {}
    parameters = effective_parameters(model, selected.parameters)
    given, _wrong = known_parameters(parameters, flags)
    # Each is about flags of its own.
    parameters.update(exposure_defaults(given, flags, bool(settings.api_key_file)))
    parameters.update(problems.attempt(stop_defaults, given, flags, settings.stop_timeout) or {})
    parameters.update(log_defaults(given, flags))
    canonical, wrong = valid_parameters(parameters, flags)
    problems.add(*map(str, wrong))
    problems.attempt(refuse_powerful, {**selected.parameters, **canonical}, settings)
    problems.attempt(refuse_sleep, canonical, runtime)
    batch = problems.attempt(_whole_inputs, model, canonical, runtime) or {}
    draft = Draft(name, selected, {**parameters, **batch}, {**canonical, **batch})
    sized = problems.attempt(_sized, draft, runtime, host, companions)
    return None if problems.texts else sized, problems.texts


def _sized(draft: Draft, runtime: Mapping[str, Any], host: Host, companions: Mapping[str, int]) -> Draft:
    """Return the draft with the memory that its flags take. Raises EstimateError."""
    model, canonical = draft.selected.model, draft.canonical
    flags = runtime.get("flags") or {}
    # A build without the flag has no prompt cache.
    has_cache = not flags or "cache_ram" in flags
    gpus = len(used_gpus(canonical, host.gpus))
    memory = estimate(
        model["memory"],
        canonical if has_cache else {**canonical, "cache_ram": 0},
        kind=str(model["kind"]),
        gpus=gpus,
        build=runtime.get("build"),
        companion_bytes=companions.get(str(canonical.get("mmproj")), 0),
    )
    memory["gpu_bytes"] = vram_per_gpu(memory["vram_bytes"], memory["gpu_fixed_bytes"], canonical, host.gpus)
    on_cpu = host.cores is not None and computes_on_cpu(model["memory"], canonical, gpus)
    return replace(draft, memory=memory, on_cpu=on_cpu)


def offloaded(
    drafts: Sequence[Draft],
    runtime: Mapping[str, Any],
    settings: Settings,
    host: Host,
    companions: Mapping[str, int],
    orphans: Sequence[Server],
) -> tuple[list[Draft], list[str]]:
    """Return the drafts with the layers that fit on the GPUs where the profile leaves it to the plan, and warnings."""
    if settings.memory_overcommit:
        return list(drafts), []
    flags = runtime.get("flags") or {}

    def with_layers(draft: Draft, count: int) -> Draft:
        given = layer_flags(count, draft.layers, flags)
        if not given:
            return draft
        others = {key: value for key, value in draft.parameters.items() if key not in NAMES}
        changed = replace(draft, parameters={**others, **given}, canonical={**draft.canonical, **given})
        return _sized(changed, runtime, host, companions)

    users = [draft for draft in drafts if draft.memory["vram_bytes"]]
    wishes = [
        Wish(
            draft.name,
            draft.layers,
            lambda count, draft=draft: with_layers(draft, count).memory["gpu_bytes"],  # type: ignore[misc]
            number_of(next((draft.canonical[name] for name in NAMES if name in draft.canonical), None), draft.layers),
            running_layers(host.running[draft.name].argv, draft.layers) if draft.name in host.running else None,
        )
        for draft in users
    ]
    free = [gpu.usable_bytes - held for gpu, held in zip(host.gpus, on_gpus(orphans, host.gpus))]
    counts = assign_layers(wishes, free, FIT_MARGIN_BYTES)
    result = [with_layers(draft, counts[draft.name]) if draft.name in counts else draft for draft in drafts]
    short = [draft for draft in users if counts.get(draft.name, draft.layers) < draft.layers]
    return result, [layer_warning(draft.name, counts[draft.name], draft.layers) for draft in short]


def with_layers(
    drafts: Sequence[Draft],
    runtime: Mapping[str, Any],
    settings: Settings,
    host: Host,
    sizes: Mapping[str, int],
    orphans: Sequence[Server],
) -> tuple[list[Draft], list[str]]:
    """Return the drafts with layers on GPUs: those that run all the time first, each of the others next to them."""
    resident = [draft for draft in drafts if is_resident({"on_demand": draft.selected.on_demand})]
    placed, warnings = offloaded(resident, runtime, settings, host, sizes, orphans)
    found = {draft.name: draft for draft in placed}
    taken: list[Server] = [*orphans, *({"memory": draft.memory} for draft in placed)]
    for draft in drafts:
        if draft.name not in found:
            alone, more = offloaded([draft], runtime, settings, host, sizes, taken)
            found[draft.name] = alone[0]
            warnings += more
    return [found[draft.name] for draft in drafts], warnings


def effective_parameters(model: Model, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags implied by the model's kind and projector, overridden by the profile's parameters."""
    by_kind = {"embedding": {"embedding": True}, "reranker": {"reranking": True}}
    projector = {"mmproj": model["mmproj"]} if model.get("mmproj") else {}
    return {**by_kind.get(str(model["kind"]), {}), **projector, **parameters}


def _whole_inputs(model: Model, canonical: Mapping[str, Any], runtime: Mapping[str, Any]) -> dict[str, int]:
    """Batch sizes with which an embedding or reranker server takes inputs as long as a slot.

    llama-server refuses an input longer than one physical batch, by default 512 tokens. Sizes of the profile are kept.
    """
    flags = runtime.get("flags") or {}
    if model["kind"] not in ("embedding", "reranker") or not {"ubatch_size", "batch_size"} <= set(flags):
        return {}
    if canonical.get("ubatch_size") is not None:
        return {}
    tokens = slot_context(model["memory"], canonical, kind=str(model["kind"]), build=runtime.get("build"))
    given = canonical.get("batch_size")
    return {"ubatch_size": tokens, "batch_size": tokens} if given is None else {"ubatch_size": int(given)}
