# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real servers that hang: stopped as a whole, or with their main loop stopped and /health still 200."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend
from support.llama import Llama, llama
from support.running_gateway import Running, running, server

LONG = {"max_tokens": 15000, "stream": True, "ignore_eos": True}
PTRACE_ATTACH, PTRACE_DETACH, WAIT_ALL = 16, 17, 0x40000000


@contextlib.contextmanager
def stopped(one: Llama) -> Iterator[None]:
    os.kill(one.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(one.process.pid, signal.SIGCONT)


@contextlib.contextmanager
def loop_stopped(one: Llama) -> Iterator[None]:
    """Stop the thread that computes, as a driver that does not come back does; the others still answer."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if libc.ptrace(PTRACE_ATTACH, one.process.pid, None, None) != 0:
        pytest.skip("this machine allows no ptrace")
    os.waitpid(one.process.pid, WAIT_ALL)
    try:
        assert one.get("/health").status_code == 200
        assert one.get("/v1/models").status_code == 200
        yield
    finally:
        libc.ptrace(PTRACE_DETACH, one.process.pid, None, None)


@pytest.fixture(params=[(), ("--no-slots", "--metrics")], ids=["slots", "no_slots"])
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Running, list[Llama]]]:
    words = ("--sse-ping-interval", "1", *request.param)
    with llama(tmp_path, *words) as first, llama(tmp_path, *words) as second:
        servers = tuple(server(one.port) for one in (first, second))
        (tmp_path / "g").mkdir()
        with running(tmp_path / "g", [Backend("m", "M", "Q4", "model", servers)]) as gateway:
            yield gateway, [first, second]


@pytest.mark.parametrize("hang", [stopped, loop_stopped], ids=["process", "loop"])
def test_server_that_hangs_is_out_within_ten_seconds(
    served: tuple[Running, list[Llama]], hang: Callable[[Llama], contextlib.AbstractContextManager[None]]
) -> None:
    gateway, [stuck, other] = served

    def stream() -> str:
        with gateway.client() as client:
            try:
                return client.post("/v1/completions", json={"model": "m", "prompt": "a", **LONG}).text
            except OSError as error:
                return str(error)

    with hang(stuck), ThreadPoolExecutor(4) as pool:
        first = time.monotonic()
        asked = [pool.submit(stream), pool.submit(gateway.ask, "m")]
        gateway.wait_until({f"s_{stuck.port}": "DOWN", f"s_{other.port}": "UP"}, 10)
        assert time.monotonic() - first < 10
        for _ in range(6):
            begin = time.monotonic()
            assert gateway.ask("m").status_code == 200
            assert time.monotonic() - begin < 1
        # Those that were stuck are ended before the server answers again.
        for one in asked:
            with contextlib.suppress(Exception):
                one.result(timeout=20)
            assert one.done()
    gateway.wait_until({f"s_{stuck.port}": "UP"})
