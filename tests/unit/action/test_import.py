# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""import_servers: what is shown, what is written, and that no file is written over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleActionFail

SWAP = "models:\n  a:\n    cmd: llama-server -m /m/A-Q4_K_M.gguf -c 4096 -fa on --foo 3\n"


@pytest.fixture
def swap(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(SWAP)
    return path


def test_proposal_is_shown_and_nothing_is_written(run_action: Any, swap: Path) -> None:
    run = run_action("import_servers", {"source": str(swap)})
    assert not run.result["changed"] and [path.name for path in swap.parent.iterdir()] == ["config.yaml"]
    shown = "\n".join(run.lines)
    assert "--- profiles/imported.yml" in shown and "flash_attn: 'on'" in shown
    assert "warning  a: foo: llama-server 11669 has no such flag." in shown


def test_proposal_is_written_once_and_never_over_another_file(run_action: Any, swap: Path, tmp_path: Path) -> None:
    arguments = {"source": str(swap), "folder": str(tmp_path / "out"), "name": "mine"}
    checked = run_action("import_servers", arguments, check=True)
    assert checked.result["changed"] and not (tmp_path / "out").exists()
    run = run_action("import_servers", arguments)
    profile, variables = map(Path, run.result["written"])
    assert run.result["written"] == checked.result["written"]
    assert yaml.safe_load(profile.read_text())["enabled_models"][0]["model"] == "a-q4_k_m"
    assert yaml.safe_load(variables.read_text()) == {"registry_scan_paths": ["/m"]}
    assert not run_action("import_servers", arguments).result["changed"]
    variables.unlink()
    profile.write_text("mine: true\n")
    with pytest.raises(AnsibleActionFail, match=r"profiles/mine\.yml exists and would be another file.*import_name"):
        run_action("import_servers", arguments)
    assert profile.read_text() == "mine: true\n" and not variables.exists()


@pytest.mark.parametrize(
    ("name", "text", "model"),
    [
        ("preset.ini", "[x]\nmodel = /m/preset.gguf\n", "preset"),
        ("start.sh", "#!/bin/sh\nexec llama-server \\\n  -m '/m/My Model.gguf' -c 100\n", "my-model"),
    ],
)
def test_format_is_known_by_the_name(run_action: Any, tmp_path: Path, name: str, text: str, model: str) -> None:
    (tmp_path / name).write_text(text)
    run = run_action("import_servers", {"source": str(tmp_path / name)})
    assert str(run.result["profile"]["enabled_models"][0]).count(model)


def test_command_is_imported(run_action: Any) -> None:
    run = run_action("import_servers", {"command": "llama-server -m /m/a.gguf --port 8085"})
    assert run.result["profile"]["enabled_models"] == [{"model": "a", "port": 8085}]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "Set either import_from"),
        ({"source": "/none", "command": "llama-server -m /a"}, "Set either import_from"),
        ({"source": "/none"}, '"/none", which does not exist on the controller'),
        ({"command": "llama-server"}, "quote the command line"),
        ({"command": "llama-server -m /a", "name": "../x"}, r'import_name is "\.\./x"'),
        ({"source": "FILE", "format": "ollama"}, "is a file, and import_format ollama needs a folder"),
        ({"source": "FOLDER/odd.conf"}, "set import_format to llama-swap"),
        ({"source": "FOLDER"}, r"has no models\. Nothing was written"),
        ({"source": "FILE", "format": "models-preset"}, r"It is not an INI file|has no section"),
    ],
)
def test_what_is_wrong_is_named_with_the_variable(
    run_action: Any, swap: Path, arguments: dict[str, str], says: str
) -> None:
    (swap.parent / "odd.conf").write_text("")
    places = {"FILE": str(swap), "FOLDER": str(swap.parent), "FOLDER/odd.conf": str(swap.parent / "odd.conf")}
    with pytest.raises(AnsibleActionFail, match=says):
        run_action("import_servers", {key: places.get(value, value) for key, value in arguments.items()})
