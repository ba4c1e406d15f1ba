# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The formats of export.yml: one entry each, by the name that users give."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .checks import compose_notes, kubernetes_notes
from .compose import compose_files
from .cyclonedx import cyclonedx_files, cyclonedx_notes
from .kubernetes import kubernetes_files
from .lists import (
    endpoints_files,
    file_sd_files,
    file_sd_notes,
    litellm_files,
    litellm_notes,
    llama_swap_files,
    reach_notes,
)
from .quadlet import quadlet_files, quadlet_notes
from .workloads import ExportError, Settings, Workload

Render = Callable[[Sequence[Workload], Settings], Mapping[str, Any]]


Notes = Callable[[Sequence[Workload], Settings], list[str]]


def _no_notes(_workloads: Sequence[Workload], _settings: Settings) -> list[str]:
    return []


@dataclass(frozen=True)
class Format:
    """render returns files by path: text, or the content of a file of JSON or YAML; use says what to do with them.

    notes returns warnings of what the format cannot have of the plan.
    """

    render: Render
    use: str
    notes: Notes = _no_notes


FORMATS: dict[str, Format] = {
    "compose": Format(compose_files, "cd FOLDER/HOST && docker compose up --detach", compose_notes),
    "quadlet": Format(quadlet_files, "on HOST: cp -r FOLDER/HOST /etc/containers/systemd/llama", quadlet_notes),
    "kubernetes": Format(kubernetes_files, "kubectl apply --kustomize FOLDER/overlays/claim", kubernetes_notes),
    "endpoints": Format(endpoints_files, "read FOLDER/endpoints.json", reach_notes),
    "file_sd": Format(file_sd_files, "name FOLDER/*.json in file_sd_configs of prometheus.yml", file_sd_notes),
    "litellm": Format(litellm_files, "litellm --config FOLDER/litellm.yaml", litellm_notes),
    "llama-swap": Format(llama_swap_files, "on HOST: llama-swap --config FOLDER/HOST/llama-swap.yaml"),
    "cyclonedx": Format(cyclonedx_files, "give FOLDER/bom.json to what reads bills of materials", cyclonedx_notes),
}


def find_format(name: str) -> Format:
    """Raises ExportError for a name that the table lacks."""
    try:
        return FORMATS[name]
    except KeyError:
        near = difflib.get_close_matches(name, FORMATS, 1)
        meant = f"; did you mean {near[0]}?" if near else "."
        raise ExportError(
            f'format is "{name}": there are {", ".join(FORMATS)}{meant} Nothing was written. Set it with -e '
            f"format={(near or list(FORMATS))[0]}."
        ) from None
