# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole runs of several hosts on loopback: all get the file, even where one of them is broken."""

from __future__ import annotations

import stat
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._distribution import part_file, swarm
from ansible_collections.magi.llama.plugins.module_utils._distribution.part_file import PartError
from ansible_collections.magi.llama.plugins.module_utils._distribution.swarm import Swarm

NAMES = ["seed", "a", "b", "c"]


def start_all(fleet: Any, names: list[str], seeds: list[str], **more: Any) -> dict[str, Swarm]:
    for name in seeds:
        fleet.seed(name)
    return {name: fleet.start(fleet.job(name, names, seeds, **more)) for name in names}


def test_source_sends_each_piece_once_and_hosts_hand_it_on(fleet: Any) -> None:
    hosts = start_all(fleet, NAMES, ["seed"])
    assert [host.wait(30) for host in hosts.values()] == [True] * 4
    for name in NAMES:
        assert fleet.path(name).read_bytes() == fleet.data
    assert hosts["seed"].status()["sent"] <= 1.3 * len(fleet.data)
    status = hosts["a"].status()
    assert status["source"] + status["hosts"] == len(fleet.data)
    assert status["hosts"] > 0


def test_finished_file_has_permissions_of_its_folder_and_its_pieces(fleet: Any) -> None:
    fleet.folder.joinpath("a").mkdir(mode=0o750)
    hosts = start_all(fleet, ["seed", "a"], ["seed"])
    assert hosts["a"].wait(30)
    assert stat.S_IMODE(fleet.path("a").stat().st_mode) == 0o640
    assert sorted(path.name for path in fleet.path("a").parent.iterdir()) == [
        fleet.path("a").name,
        f"{fleet.path('a').name}.pieces",
    ]


def test_host_that_has_the_file_gets_nothing(fleet: Any) -> None:
    hosts = start_all(fleet, ["seed", "a"], ["seed", "a"])
    assert hosts["a"].is_complete
    assert (hosts["a"].status()["wanted"], hosts["seed"].status()["sent"]) == (0, 0)


class Garbage(Swarm):
    """A host that hands out something else."""

    def __init__(self, job: Any) -> None:
        super().__init__(job)
        answer = self.server.answer
        self.server.answer = lambda path: (  # type: ignore[method-assign]
            answer(path) if path == "/have" else (200, b"\0" * len(answer(path)[1]))
        )


def test_host_that_sends_garbage_is_dropped_and_named(fleet: Any) -> None:
    fleet.seed("seed")
    bad = fleet.start(fleet.job("b", NAMES, ["seed"]), Garbage)
    hosts = [fleet.start(fleet.job(name, NAMES, ["seed"])) for name in ("seed", "a", "c")]
    assert [host.wait(30) for host in [*hosts, bad]] == [True] * 4
    for name in ("a", "c"):
        assert fleet.path(name).read_bytes() == fleet.data
    dropped = {name for host in hosts for name in host.status()["dropped"]}
    assert dropped == {"b"}
    assert "is not what the source has announced" in "".join(
        text for host in hosts for text in host.status()["dropped"].values()
    )


def test_killed_host_resumes_with_what_it_had(fleet: Any) -> None:
    whole = fleet.path("a").with_name(fleet.path("a").name + ".part")
    whole.parent.mkdir(parents=True)
    # Half of it, and a piece that was not written to its end.
    whole.write_bytes(fleet.data[: len(fleet.data) // 2 - 10])
    hosts = start_all(fleet, ["seed", "a"], ["seed"])
    assert hosts["a"].wait(30)
    status = hosts["a"].status()
    assert status["resumed"] == 7 * fleet.pieces.piece_bytes
    assert status["source"] == len(fleet.data) - status["resumed"]
    assert fleet.path("a").read_bytes() == fleet.data


def test_part_of_another_file_is_replaced(fleet: Any) -> None:
    whole = fleet.path("a").with_name(fleet.path("a").name + ".part")
    whole.parent.mkdir(parents=True)
    whole.write_bytes(b"\1" * (len(fleet.data) + 1000))
    hosts = start_all(fleet, ["seed", "a"], ["seed"])
    assert hosts["a"].wait(30)
    assert (hosts["a"].status()["resumed"], fleet.path("a").read_bytes() == fleet.data) == (0, True)


def test_pieces_of_a_host_that_is_gone_are_got_by_others(fleet: Any) -> None:
    fleet.seed("seed")
    # c never begins.
    hosts = [fleet.start(fleet.job(name, NAMES, ["seed"])) for name in ("seed", "a", "b")]
    assert [host.wait(30) for host in hosts] == [True] * 3
    assert "c" in hosts[1].status()["unreached"]


def test_wrong_token_gets_nothing(fleet: Any) -> None:
    fleet.seed("seed")
    seed = fleet.start(fleet.job("seed", ["seed", "a"], ["seed"]))
    other = fleet.start(fleet.job("a", ["seed", "a"], ["seed"], token="another"))
    assert not other.wait(1.5)
    assert (seed.status()["sent"], other.status()["have"]) == (0, 0)
    assert "403" in other.status()["unreached"]["seed"]


def test_disk_without_room_is_refused_before_anything_is_written(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_file, "free_bytes", lambda _folder: 999_999)
    with pytest.raises(PartError, match=r"0\.00 GiB free.*models_reserve.*Nothing was copied"):
        Swarm(fleet.job("a", ["seed", "a"], ["seed"]))
    assert not fleet.path("a").parent.exists()


def test_disk_that_fills_ends_the_run_with_its_error(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(part_file.os, "pwrite", full)
    hosts = start_all(fleet, ["seed", "a"], ["seed"])
    assert not hosts["a"].wait(30)
    assert "No space left on device" in hosts["a"].status()["error"]


def test_source_with_another_file_is_found_out(fleet: Any) -> None:
    # Its list has the file's own sha256, which says nothing.
    hosts = start_all(fleet, ["seed", "a"], ["seed"], sha256="0" * 64)
    assert not hosts["a"].wait(30)
    assert "is not what the manifest says" in hosts["a"].status()["error"]
    assert not fleet.path("a").exists()


def test_reading_a_complete_file_is_not_quiet(fleet: Any) -> None:
    part = fleet.path("a").with_name(fleet.path("a").name + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(fleet.data)
    now = [0.0]
    host = Swarm(fleet.job("a", ["a"], sha256=fleet.pieces.sha256), clock=lambda: now[0])
    fleet.swarms.append(host)
    read: list[float] = []
    note = host._note_read
    host._note_read = lambda: (now.__setitem__(0, 400.0), note(), read.append(host.quiet_seconds()))  # type: ignore
    host.start()
    while not host.is_complete:
        time.sleep(0.01)
    assert read == [0.0]


@pytest.mark.parametrize("is_link", [False, True])
def test_file_that_appears_meanwhile_is_not_written_over(fleet: Any, tmp_path: Path, is_link: bool) -> None:
    host = fleet.start(fleet.job("a", ["a"]))
    path = fleet.path("a")
    if is_link:
        path.symlink_to(tmp_path / "away")
    else:
        path.write_bytes(b"precious")
    pieces = fleet.pieces
    for number in range(len(pieces.digests)):
        start = number * pieces.piece_bytes
        host.keep(0, number, fleet.data[start : start + pieces.length(number)], "controller")
    assert not host.wait(5)
    assert "was put there since the run began. It is not written over" in host.error
    assert path.is_symlink() if is_link else path.read_bytes() == b"precious"
    # The next run finds it before it copies anything.
    with pytest.raises(PartError, match="was put there"):
        Swarm(fleet.job("a", ["a"]))


def test_link_in_place_of_part_is_refused(fleet: Any, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    fleet.path("a").parent.mkdir(parents=True)
    fleet.path("a").with_name(fleet.path("a").name + ".part").symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"):
        Swarm(fleet.job("a", ["seed", "a"], ["seed"]))
    assert target.read_bytes() == b"precious"


def test_limit_down_is_kept(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(swarm.RateLimit, "take", lambda _limit, count: taken.append(count))
    hosts = start_all(fleet, ["seed", "a"], ["seed"])
    assert hosts["a"].wait(30)
    # Once where it is got, and once, in blocks, where it is sent.
    assert sum(taken) >= 2 * len(fleet.data)
