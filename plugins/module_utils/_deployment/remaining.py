# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What a fleet still serves once some of its hosts have left."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def remaining_models(statuses: Mapping[str, Mapping[str, Any]], leaving: Collection[str]) -> dict[str, Any]:
    """Return where the models of the hosts that leave still run, and those that no other host has ready.

    statuses are status documents by host; a host without one serves nothing. The result is {"stays": {model: [host]},
    "gone": [model], "text": both, human-readable}.
    """
    deployed = {one["model_id"] for host in leaving for one in statuses.get(host, {}).get("servers", ())}
    stays: dict[str, list[str]] = {model: [] for model in sorted(deployed)}
    for host, status in statuses.items():
        for model in sorted({one["model_id"] for one in status["servers"] if one["is_ready"]} & deployed):
            stays[model] += [] if host in leaving else [host]
    gone = [model for model, hosts in stays.items() if not hosts]
    lines = [f"{model}: {', '.join(hosts) or 'on no other host'}" for model, hosts in stays.items()]
    listed = "\n".join(f"      {line}" for line in lines)
    text = f"models of {', '.join(leaving)} that run elsewhere:\n{listed}" if lines else "nothing is deployed there"
    return {"stays": {model: hosts for model, hosts in stays.items() if hosts}, "gone": gone, "text": text}
