# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Redis or Valkey for a test, which ends with it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

PROGRAM = next(filter(None, map(shutil.which, ("redis-server", "valkey-server"))), None)
needs_redis = pytest.mark.skipif(PROGRAM is None, reason="no Redis: run make .cache/bin/.redis")


class RunningRedis:
    """A server on a socket in a folder; also while it is stopped."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.url = f"unix://{folder}/redis.sock"
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        own = ("--port", "0", "--unixsocket", f"{self._folder}/redis.sock", "--dir", str(self._folder), "--save", "")
        with open(self._folder / "redis.log", "ab") as log:
            self._process = subprocess.Popen([str(PROGRAM), *self._options, *own], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                self.client().ping()
                return
            except redis.AuthenticationError:
                return
            except redis.ConnectionError:
                assert time.monotonic() < deadline, (self._folder / "redis.log").read_text()
                time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self, **options: Any) -> redis.Redis:
        return redis.Redis.from_url(self.url, **options)


@contextmanager
def running_redis(folder: Path, *options: str) -> Iterator[RunningRedis]:
    """Run a Redis; options are those of its command line."""
    server = RunningRedis(folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.stop()
