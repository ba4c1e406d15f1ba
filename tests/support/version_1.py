# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Converts the state of a host back into the files of versions before deployment.json, as recorded.

The recorded files have paths, processes and digests of another host, so their layout is filled with this host's values.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parents[1] / "unit/_deployment/recorded"
OLD = ("servers.json", "previous.json", "ready.json")
NEW = ("deployment.json", "observed.json")


def recorded(name: str) -> Any:
    """A recorded file with plausible paths."""
    text = (RECORDED / name).read_text(encoding="utf-8")
    paths = {"STATE_DIR": "/srv/state", "MODELS": "/srv/models", "LLAMA_SERVER": "/opt/llama/bin/llama-server"}
    for word, path in paths.items():
        text = text.replace(f"@{word}@", path)
    return json.loads(text)


def layout(value: Any) -> Any:
    """The keys of a value in their order, at every depth; of a list, those of its first item."""
    if isinstance(value, dict):
        return [(key, layout(item)) for key, item in value.items()]
    return [layout(value[0])] if isinstance(value, list) and value else None


def without_newer(value: Any, recorded_value: Any) -> Any:
    """The value without the keys that were added since, at every depth; a list's first item is the pattern of all."""
    if isinstance(value, dict) and isinstance(recorded_value, dict):
        return {key: without_newer(value[key], recorded_value[key]) for key in recorded_value if key in value}
    if isinstance(value, list) and isinstance(recorded_value, list) and recorded_value:
        return [without_newer(item, recorded_value[0]) for item in value]
    return value


def put_back(state: Path) -> None:
    """Replace deployment.json and observed.json. Raises AssertionError if a layout differs from the recorded one."""
    deployment, observed = (json.loads((state / name).read_text(encoding="utf-8")) for name in NEW)
    record = {"schema_version": 1, **deployment["deployed"]}
    ready = {
        name: {"pid": seen["pid"], "seconds": seen["seconds_to_ready"], "revision": seen["ready_revision"]}
        for name, seen in observed["servers"].items()
        if "ready_revision" in seen
    }
    texts = {"servers.json": json.dumps(record, indent=2) + "\n", "ready.json": json.dumps(ready)}
    if deployment["previous"] is not None:
        before = {"schema_version": 1, **deployment["previous"]["deployed"]}
        previous = {"schema_version": 1, "record": before, "files": deployment["previous"]["files"]}
        texts["previous.json"] = json.dumps(previous, indent=2) + "\n"
    for name, text in texts.items():
        if name != "ready.json":
            text = json.dumps(without_newer(json.loads(text), recorded(name)), indent=2) + "\n"
        found, expected = layout(json.loads(text)), layout(recorded(name))
        if name == "ready.json":
            # Its keys are names.
            found, expected = found[0][1], expected[0][1]
        assert found == expected, (name, found, expected)
        (state / name).write_text(text, encoding="utf-8")
        os.chmod(state / name, 0o644)
    for name in NEW:
        (state / name).unlink()
    registry = state / "registry.json"
    if registry.exists():
        content = json.loads(registry.read_text(encoding="utf-8"))
        content.pop("collection_version")
        registry.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    put_back(Path(sys.argv[1]))
