# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which jobs start, and what the others wait for."""

from __future__ import annotations

from magi_llama_console.jobs.queue import schedule
from magi_llama_console.store.base import CONSOLE, Job


def job(name: str, *hosts: str, verb: str = "site", by: str = "", **variables: bool) -> Job:
    return Job(id=name, verb=verb, variables=variables, hosts=hosts, by=by, created_at="")


def scheduled(running: list[Job], queued: list[Job], at_once: int = 8) -> tuple[list[str], dict[str, tuple[str, str]]]:
    started, waits = schedule(running, queued, at_once)
    return [one.id for one in started], {name: (one["host"], one["job"]) for name, one in waits.items()}


def test_different_hosts_start_together() -> None:
    assert scheduled([job("a", "1")], [job("b", "2"), job("c", "3")]) == (["b", "c"], {})


def test_same_host_waits_for_the_running_job() -> None:
    assert scheduled([job("a", "1", "2")], [job("b", "2", "3")]) == ([], {"b": ("2", "a")})


def test_a_job_for_all_hosts_is_not_overtaken() -> None:
    found = scheduled([job("a", "1")], [job("b", "1", "2"), job("c", "2"), job("d", "3")])
    assert found == (["d"], {"b": ("1", "a"), "c": ("2", "b")})


def test_only_so_many_run_at_once() -> None:
    assert scheduled([job("a", "1")], [job("b", "2"), job("c", "3")], 2) == (["b"], {"c": ("", "a")})


def test_no_job_waits_for_one_by_which_the_console_itself_looks() -> None:
    looks = job("s", "1", verb="status", by=CONSOLE)
    assert scheduled([looks], [job("a", "1")]) == (["a"], {})
    assert scheduled([], [job("s", "1", verb="scan", by=CONSOLE, check=True), job("a", "1")]) == (["s", "a"], {})
    # A user's own waits its turn, and the console's does not look into a change.
    assert scheduled([job("u", "1", verb="status")], [job("a", "1")]) == ([], {"a": ("1", "u")})
    assert scheduled([job("a", "1")], [looks]) == ([], {"s": ("1", "a")})
