# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Explain what a profile names and the host lacks: missing models, lost files, and nothing left to run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .._core.argv import flag_value
from .._models.names import other_quantization, slug
from .inputs import Host, PlanError, Settings
from .profile import Model, matches, misspelled, nearest


def lost_servers(
    missing: Mapping[str, str], registry: Mapping[str, Any], profile: Mapping[str, Any], host: Host
) -> dict[str, str]:
    """Return {server: reason} for deployed servers that the profile enables but whose model file is gone or broken.

    A missing or broken file does not mean that the server is unwanted: a download or mount may be in progress.
    """
    known = {str(model["id"]) for model in registry["models"]}
    selectors = [entry["selector"] for entry in profile["enabled_models"] if entry["model"] is None]
    lost = {}
    for server in host.record:
        as_model = {**server, "id": server["model_id"]}
        is_wanted = server["model_id"] in missing or any(matches(selector, as_model) for selector in selectors)
        if server["model_id"] not in known and is_wanted:
            path = flag_value(server["argv"], "--model") or "?"
            broken = [entry["reason"] for entry in registry["rejected"] if entry["path"] == path]
            lost[str(server["name"])] = f"{path} was rejected ({broken[0]})" if broken else f"{path} is gone"
    return lost


def refuse_lost(lost: Mapping[str, str], profile: Mapping[str, Any], settings: Settings) -> None:
    """Raise PlanError with servers_strict if the model of a deployed server is missing."""
    if not settings.strict or not lost or settings.prune:
        return
    listed = "; ".join(f"{name}: {why}" for name, why in lost.items())
    raise PlanError(
        f'profile "{profile["name"]}" ({profile["source"]}): servers_strict is set, and deployed servers lack their '
        f"model: {listed}. Nothing was changed. Bring the files back, or remove the servers with -e servers_prune=true."
    )


def lost_part(
    lost: Mapping[str, str], moved: Mapping[str, str], missing: Mapping[str, str], known_elsewhere: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Return the plan's part about servers that the profile wants and the host cannot have; empty if there are none.

    A model that another host has may well be meant for that one only.
    """
    found = {name: why for name, why in lost.items() if name not in moved}
    absent = {name: key for name, key in missing.items() if name not in known_elsewhere and name not in lost}
    found.update({name: f"no such model on this host; {key} names it" for name, key in absent.items()})
    return {"lost": found} if found else {}


def missing_models(
    missing: Mapping[str, str],
    registry: Mapping[str, Any],
    profile: Mapping[str, Any],
    host: Host,
    known_elsewhere: Sequence[str],
    known_from_manifest: Sequence[str] = (),
) -> tuple[list[str], list[str]]:
    """Return warnings for named models that this host lacks and that have no running server, and errors.

    A name that differs in a letter or two from that of a model on this host is a typing error, unless another host has
    such a model, the manifest has it, a broken file has its name, it was deployed here before, or it is that model in
    another quantization.
    """
    warnings: list[str] = []
    errors: list[str] = []
    where = f'profile "{profile["name"]}" ({profile["source"]})'
    for model_id, key in missing.items():
        deployed = [server for server in host.record if server["model_id"] == model_id]
        broken = [entry for entry in registry["rejected"] if slug(str(entry["path"])) == model_id]
        if broken:
            why = f"{broken[0]['path']} was rejected: {broken[0]['reason']}"
        elif deployed:
            why = "file was removed since the last deployment"
        elif model_id in known_elsewhere:
            why = "other hosts of this run have it, this one does not"
        elif model_id in known_from_manifest:
            why = "the manifest lists it, so another host may have it"
        else:
            ids = [str(model["id"]) for model in registry["models"]]
            others = [name for name in ids if other_quantization(model_id, name)]
            if others:
                why = f"it has another quantization ({nearest(model_id, others)})"
            elif misspelled(model_id, ids):
                errors.append(f'{where}: {key}: unknown model "{model_id}" on this host: {nearest(model_id, ids)}')
                continue
            else:
                why = f"no similar model id on this host ({nearest(model_id, ids)})"
        if not any(server["name"] in host.running for server in deployed):
            warnings.append(f'{where}: {key}: model "{model_id}" is missing on this host: {why}; skipped.')
    return warnings, errors


def nothing_left(profile: Mapping[str, Any], models: Sequence[Model], warnings: Sequence[str]) -> str:
    where = f'profile "{profile["name"]}" ({profile["source"]})'
    said = re.findall(r"[^\s\"(),?]+", " ".join(warnings))
    unsaid = [model for model in models if model["id"] not in said]
    if models and not unsaid:
        return " ".join([*warnings, f"{where}: enables no model of this host."])
    have = ", ".join(f"{model['id']} ({model.get('tier')})" for model in unsaid[:10]) or "none"
    more = f" and {len(unsaid) - 10} more" if len(unsaid) > 10 else ""
    also = "also " if len(unsaid) < len(models) else ""
    return " ".join([*warnings, f"{where}: enables no model of this host, which {also}has: {have}{more}."])
