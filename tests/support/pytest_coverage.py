# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pytest plugin that prints coverage with --cov, one line for each folder of plugins/."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("_cov") or not config.getoption("cov_source", None):
        return
    from coverage import Coverage

    coverage = Coverage(config_file=config.rootpath / "pyproject.toml")
    coverage.load()
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name in sorted(coverage.get_data().measured_files()):
        _, statements, _, missing, _ = coverage.analysis2(name)
        for folder in (str(Path(name).parent.relative_to(config.rootpath)), "all"):
            counts[folder][0] += len(statements)
            counts[folder][1] += len(statements) - len(missing)
    terminalreporter.write_line("")
    terminalreporter.write_line("coverage of plugins/ within pytest, in lines")
    for folder, (statements, covered) in sorted(counts.items(), key=lambda entry: (entry[0] == "all", entry[0])):
        share = f"{covered / statements:4.0%}" if statements else "   -"
        terminalreporter.write_line(f"  {share}  {covered:5} of {statements:5}  {folder}")
