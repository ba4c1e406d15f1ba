# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""How the reader of a text calls the collection's playbooks: by path in a checkout, by name where it is installed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ansible import context

COLLECTION = Path(__file__).resolve().parents[2]
# In the texts of modules: a host does not know how the run was called. A path or a longer name is not meant.
NAMED = re.compile(
    r"(?<![\w./-])(backup|console|decommission|distribute|export|gateway|import|logs|manifest|monitoring|plan|redis|restart"
    r"|restore|rollback|rollout|scan|site|start|status|stop|teardown|verify)\.yml(?![\w/-])"
)
# Keys of answers whose values are sentences; all others are data.
SENTENCES = frozenset({"detail", "drift", "ended", "error", "fix", "msg", "reason", "warned", "warnings"})


def are_called_by_path() -> bool:
    """Whether a playbook of this run is a file of ours. One that imports ours has to name magi.llama.site."""
    return any(_is_ours(str(path)) for path in context.CLIARGS.get("args") or ())


@cache
def _is_ours(path: str) -> bool:
    found = Path(path).resolve()
    return found.suffix == ".yml" and found.parent in (COLLECTION, COLLECTION / "playbooks")


def as_called(text: str) -> str:
    """Replace each playbook of a text (stop.yml) with what the reader of this run can call (magi.llama.stop)."""
    return text if ".yml" not in text or are_called_by_path() else NAMED.sub(r"magi.llama.\1", text)


def answer_as_called(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer of a module with as_called applied to its sentences."""
    return dict(answer) if are_called_by_path() else {key: _replaced(value, key) for key, value in answer.items()}


def _replaced(value: Any, key: str) -> Any:
    if isinstance(value, str):
        return as_called(value) if key in SENTENCES else value
    if isinstance(value, Mapping):
        # A mapping of sentences has them by a server's name.
        return {name: _replaced(one, key if key in SENTENCES else str(name)) for name, one in value.items()}
    return [_replaced(one, key) for one in value] if isinstance(value, list) else value
