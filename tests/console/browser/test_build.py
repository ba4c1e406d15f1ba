# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The built page in the package is what its sources give, and small."""

from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path

import pytest
from support.pythons import ROOT, UV

PAGE = ROOT / "console/page"
STATIC = ROOT / "console/src/magi_llama_console/static"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(not (PAGE / "node_modules/.ready").exists(), reason="make page has not run: node 20.19 is missing")
def test_built_page_is_what_its_sources_give(tmp_path: Path) -> None:
    # Types of the API come from console/openapi.json, so this also finds what the page no longer gets.
    subprocess.run(["npm", "run", "--silent", "check"], cwd=PAGE, check=True, stdout=subprocess.DEVNULL)
    command = ["npx", "--no-install", "vite", "build", "--logLevel", "warn", "--outDir", str(tmp_path), "--emptyOutDir"]
    subprocess.run(command, cwd=PAGE, check=True)
    built, committed = files(tmp_path), files(STATIC)
    assert sorted(built) == sorted(committed), "run make page and commit console/src/magi_llama_console/static"
    assert {name for name in built if built[name] != committed[name]} == set(), "run make page and commit"


def test_built_page_is_small_and_keeps_to_its_policy() -> None:
    built = files(STATIC)
    assert sum(map(len, built.values())) < 300_000
    html = built["index.html"].decode()
    assert re.findall(r"\bstyle=|\bon\w+=|<script>|<style", html) == []
    assert set(re.findall(r'(?:src|href)="([^"]*)"', html)) >= {"./theme.js", "./icon.svg"}
    assert re.findall(r'(?:src|href)="(?:https?:)?//[^"]*"', html) == []


def test_wheel_has_the_page_and_is_below_1_megabyte(tmp_path: Path) -> None:
    command = [UV, "build", "--quiet", "--wheel", "--offline", "--package", "magi-llama-console", "--out-dir", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 1_000_000
    with zipfile.ZipFile(wheel) as archive:
        packed = {name.split("static/", 1)[1] for name in archive.namelist() if "/static/" in name and name[-1] != "/"}
    assert packed == set(files(STATIC))


def test_pinned_packages_are_exact_and_hashed() -> None:
    manifest = (PAGE / "package.json").read_text()
    versions = re.findall(r'^    "[^"]+": "([\d^~*><][^"]*)"', manifest, re.M)
    assert versions and all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions)
    lock = (PAGE / "package-lock.json").read_text()
    assert lock.count('"integrity": "sha512-') == lock.count('"node_modules/')
    assert '"resolved"' not in lock
