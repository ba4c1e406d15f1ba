# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that are asked side by side from one process."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible_collections.magi.llama.plugins.plugin_utils.side_by_side import answer_of, begin

SSH = type("Connection", (), {"__module__": "ansible.plugins.connection.ssh"})()
OTHER = SimpleNamespace()


def test_hosts_that_wait_for_each_other_both_answer() -> None:
    (first_reads, second_writes), (second_reads, first_writes) = os.pipe(), os.pipe()

    def ask(writer: int, reader: int) -> Callable[[], dict[str, Any]]:
        def meet() -> dict[str, Any]:
            os.write(writer, b"here")
            # One after another, the first would wait here for ever.
            return {"met": bool(select.select([reader], [], [], 20)[0])}

        return meet

    begin("first", ask(first_writes, first_reads), connection=SSH)
    begin("second", ask(second_writes, second_reads), connection=SSH)
    assert [answer_of("first"), answer_of("second")] == [{"met": True}, {"met": True}]
    for descriptor in (first_reads, second_writes, second_reads, first_writes):
        os.close(descriptor)


@pytest.mark.parametrize("connection", [SSH, OTHER])
@pytest.mark.parametrize("error", [AnsibleConnectionFailure("lost"), AnsibleActionFail("refused"), KeyError("shape")])
def test_failure_is_that_of_the_question(connection: object, error: Exception) -> None:
    def ask() -> dict[str, Any]:
        raise error

    begin("h", ask, connection=connection)
    with pytest.raises(AnsibleConnectionFailure if "lost" in str(error) else AnsibleActionFail, match=str(error)):
        answer_of("h")


def test_process_that_is_killed_fails_its_host_only() -> None:
    begin("killed", lambda: os.kill(os.getpid(), 9) or {}, connection=SSH)
    begin("other", lambda: {"ok": True}, connection=SSH)
    with pytest.raises(AnsibleActionFail, match="ended without an answer"):
        answer_of("killed")
    assert answer_of("other") == {"ok": True}


def test_connection_that_does_not_outlive_a_fork_is_asked_in_this_process() -> None:
    asked: list[int] = []
    begin("h", lambda: asked.append(os.getpid()) or {}, connection=OTHER)
    assert (answer_of("h"), asked) == ({}, [os.getpid()])
