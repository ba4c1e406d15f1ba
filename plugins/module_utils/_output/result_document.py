# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The document that a playbook prints and writes: its result on all hosts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .._core.documents import Document, Fields, Map, Maybe
from .._core.text import visible_value
from .._plan.document import DIGEST
from .._plan.plan_hash import fleet_hash

# A rollout's result contains more than hosts, so it is a separate document.
KINDS = ("site", "plan", "scan", "status", "verify")
RESULT = Document(
    "result",
    1,
    Fields(
        {"collection_version": str, "kind": re.compile("|".join(KINDS)), "hosts": Map(dict)}, {"hash": Maybe(DIGEST)}
    ),
)


def result_document(kind: str, hosts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Wrap the hosts' results, by host name, in a result document; kind is the playbook's name."""
    own = {"hash": fleet_hash(hosts)} if kind == "plan" else {}
    return RESULT.stamp({"kind": kind, **own, "hosts": {name: dict(host) for name, host in hosts.items()}})


def to_text(document: Mapping[str, Any]) -> str:
    """The document as printed and written: ASCII only, the first line is { and the last line is }."""
    return json.dumps(visible_value(document), indent=2) + "\n"
