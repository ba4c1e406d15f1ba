# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real llama-server with a tiny model, started by a test itself."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from support.bed import BINARIES, MODELS
from support.running_gateway import free_port


class Llama:
    """A running server."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port, self.process = port, process

    def get(self, path: str, seconds: float = 5) -> Any:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=seconds, trust_env=False)

    def busy(self) -> int:
        """The number of slots that process a request."""
        return sum(slot["is_processing"] for slot in self.get("/slots").json())


@contextlib.contextmanager
def llama(folder: Path, *words: str, model: str = "m", slots: int = 2, context: int = 32768) -> Iterator[Llama]:
    port = free_port()
    command = [str(BINARIES / "llama-server"), "-m", str(MODELS / "tiny-llama-Q4_K_M.gguf"), "--alias", model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--parallel", str(slots), "-c", str(context)]
    with open(folder / f"llama.{port}.log", "wb") as log:
        process = subprocess.Popen([*command, "--threads", "1", *words], stdout=log, stderr=subprocess.STDOUT)
    try:
        found = Llama(port, process)
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if found.get("/health", 1).status_code == 200:
                    break
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        yield found
    finally:
        process.kill()
        process.wait()
