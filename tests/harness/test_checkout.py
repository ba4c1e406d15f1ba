# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two checkouts on one machine use different names, ports, nodes and folders."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support import checkout, reaper
from support.bed import free_ports

# The files that a second checkout needs for its nodes.
FILES = ("tests/nodes/nodes.py", "tests/support/checkout.py", "tests/support/reaper.py")


def test_names_and_ports_of_two_checkouts_differ(tmp_path: Path) -> None:
    # Both paths end in the same folder name, as with clones of one repository.
    seen = []
    for number in (1, 2):
        script = tmp_path / str(number) / "magi/tests/support/checkout.py"
        script.parent.mkdir(parents=True)
        shutil.copy(checkout.__file__, script)
        for _again in range(2):
            answers = [("name",), *(("port", part) for part in checkout.PARTS)]
            seen.append(tuple(subprocess.check_output([script, *words], text=True).strip() for words in answers))
    # This frees their ports.
    shutil.rmtree(tmp_path)
    first, first_again, second, second_again = seen
    assert (first, second) == (first_again, second_again)
    assert not set(first) & set(second)
    assert first[0].startswith("magi-") and second[0].startswith("magi-")


def test_blocks_of_ports_are_disjoint_and_reused_after_their_checkout_is_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "blocks"
    roots = [tmp_path / f"checkout-{number}" for number in range(checkout.BLOCKS + 1)]
    for root in roots:
        root.mkdir()
    *most, last = roots
    blocks = [checkout.claim_block(root, folder) for root in most]
    assert sorted(blocks) == list(range(checkout.BLOCKS))
    with pytest.raises(RuntimeError, match="all 50 blocks of ports are taken"):
        checkout.claim_block(last, folder)
    most[7].rmdir()
    assert checkout.claim_block(last, folder) == blocks[7]
    assert checkout.claim_block(most[8], folder) == blocks[8]


def test_parts_of_a_block_do_not_overlap() -> None:
    parts = sorted(checkout.PARTS.values())
    assert all(offset + count <= following for (offset, count), (following, _) in itertools.pairwise(parts))
    assert sum(parts[-1]) <= checkout.BLOCK_PORTS
    # The kernel gives ephemeral ports to any client.
    assert checkout.FIRST_PORT + checkout.BLOCKS * checkout.BLOCK_PORTS <= 32768


def test_free_ports_of_two_processes_differ() -> None:
    mine = free_ports(10)
    code = "from support.bed import free_ports; print(free_ports(10))"
    search = f"{checkout.ROOT}/tests:{checkout.ROOT}/collections"
    answer = subprocess.check_output([sys.executable, "-c", code], env={"PYTHONPATH": search}, text=True)
    assert {mine, int(answer)} <= set(checkout.ports("beds"))
    assert abs(mine - int(answer)) >= 10


def test_molecule_by_hand_has_its_ephemeral_folder_in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOLECULE_EPHEMERAL_DIRECTORY", "ANSIBLE_HOME"):
        monkeypatch.delenv(name, raising=False)
    molecule = Path(sys.executable).with_name("molecule")
    done = subprocess.run(
        [molecule, "list", "--scenario-name", "switch"], cwd=checkout.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list((checkout.ROOT / ".cache/ansible/tmp").glob("molecule.*.switch"))


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Path]:
    """A second checkout with the same folder name, with the files that nodes need."""
    root = tmp_path / checkout.ROOT.name
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(checkout.ROOT / name, root / name)
    prepared = nodes(checkout.ROOT, "image")
    if prepared.returncode != 0:
        # A machine that cannot run nodes skips this test; CI must not.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(prepared.stderr.strip())
    down = [(sys.executable, top / FILES[0], "down", "--name", "twins") for top in (root, checkout.ROOT)]
    with reaper.cleanup_if_killed(*down[0]), reaper.cleanup_if_killed(*down[1]):
        yield root
        for command in down:
            subprocess.run(command, check=True, capture_output=True)


def nodes(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / FILES[0], *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def addresses(root: Path) -> dict[str, str]:
    """The bed's addresses by container."""
    content = yaml.safe_load((root / ".cache/nodes/twins/hosts.yml").read_text())
    hosts = content["all"]["children"]["forky"]["hosts"].values()
    return {host["nodes_container"]: host["ansible_host"] for host in hosts}


def test_beds_of_two_checkouts_with_the_same_name_run_in_parallel(other: Path) -> None:
    roots = (checkout.ROOT, other)
    commands = [[sys.executable, root / FILES[0], "up", "--name", "twins", "forky"] for root in roots]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for command in commands
    ]
    for process in started:
        output, _ = process.communicate(timeout=180)
        assert process.returncode == 0, output
    ours, others = (addresses(root) for root in roots)
    assert len(ours) == len(others) == 1
    assert not ours.keys() & others.keys()
    assert not set(ours.values()) & set(others.values())

    assert nodes(other, "down", "--all").returncode == 0
    again = nodes(checkout.ROOT, "up", "--name", "twins", "forky")
    assert "1 nodes, changed=0," in again.stdout, again.stdout + again.stderr
    assert addresses(checkout.ROOT) == ours
