# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/events.md has every type of event, with an example that is valid."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ansible_collections.magi.llama.plugins.module_utils._output.event import DATA, EVENT, load_event
from support.schemas import errors

PAGE = Path(__file__).parents[2] / "docs/events.md"
ROW = re.compile(r"^\| `(\w+)` \| [^|]+ \| `(\{.*?\})`(?:,[^|`]*(?:`[^`]*`)?[^|]*)? \|$", re.MULTILINE)
# Their documents have pages and schemas of their own.
DOCUMENTS = ("plan", "status", "rollout")


def test_page_has_every_type_in_the_order_of_the_schema() -> None:
    assert [kind for kind, _example in ROW.findall(PAGE.read_text())] == list(DATA)


def test_examples_are_valid() -> None:
    for number, (kind, example) in enumerate(ROW.findall(PAGE.read_text()), 1):
        if kind in DOCUMENTS:
            assert example == f'{{"{kind}": {{…}}}}'
            continue
        head = {"at": "2026-11-27T18:00:00.123Z", "run": "r", "seq": number, "type": kind, "check": False}
        event = EVENT.stamp({**head, "data": json.loads(example)})
        assert errors("event", event) == []
        load_event(event)


def test_example_of_a_line_is_valid() -> None:
    [block] = re.findall(r"^```json\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert errors("event", json.loads(block)) == []
