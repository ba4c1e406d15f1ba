# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""export.yml on a real host: the command lines that run there, and nothing on the host is touched."""

from __future__ import annotations

from pathlib import Path

import yaml
from support.bed import Bed


def test_export_has_the_command_lines_that_run_and_changes_nothing(bed: Bed, tmp_path: Path) -> None:
    before, state = bed.pids(), {path: path.stat().st_mtime_ns for path in bed.state.rglob("*.json")}
    arguments = ("-e", "format=kubernetes", "-e", f"export_dir={tmp_path / 'out'}")
    checked = bed.run("export", *arguments, "--check", "--diff")
    checked.expect("kind: Deployment")
    assert not (tmp_path / "out").exists()
    bed.run("export", *arguments).expect("kubectl apply --kustomize")
    running = {name: list(process.argv) for name, process in bed.processes().items()}
    exported = {}
    for path in (tmp_path / "out/base").glob("llama-*.yaml"):
        deployment = next(yaml.safe_load_all(path.read_text()))
        if name := deployment["spec"]["template"]["metadata"].get("annotations", {}).get("magi.llama/server"):
            (container,) = deployment["spec"]["template"]["spec"]["containers"]
            exported[name] = container["args"]
    assert exported.keys() == running.keys()
    for name, argv in running.items():
        host = argv.index("--host") + 1
        assert [*exported[name][: host - 1], argv[host], *exported[name][host:]] == argv[1:]
    assert bed.pids() == before
    assert {path: path.stat().st_mtime_ns for path in bed.state.rglob("*.json")} == state
    bed.run("export", *arguments).expect("nothing to change")


def test_wrong_format_and_foreign_folder_are_named_before_anything_is_written(bed: Bed, tmp_path: Path) -> None:
    bed.run("export", "-e", "format=kubernets", code=2).expect("one of compose, quadlet, kubernetes", "did you mean")
    bed.run("export", code=2).expect("export needs the variable format")
    (tmp_path / "mine").write_text("mine")
    refused = bed.run("export", "-e", "format=compose", "-e", f"export_dir={tmp_path}", code=2)
    refused.expect("was not made by export.yml", "export_dir")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
