# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Where events go: a file of JSON lines, or a stream of Redis."""

from __future__ import annotations

import os
import stat
from typing import Any, Protocol

from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._core.text import redact, visible_line
from ansible_collections.magi.llama.plugins.plugin_utils.redis_client import SCHEMES, RedisError, connect, failure

VARIABLE = "MAGI_EVENTS"
PASSWORD_FILE = "MAGI_EVENTS_PASSWORD_FILE"
STREAM = "magi:events"
# About how many events the stream keeps; Redis drops the oldest.
STREAM_LENGTH = 100_000


class SinkError(MagiError):
    """Raised where events cannot be written. Its text names MAGI_EVENTS and the fix."""


class Sink(Protocol):
    """Takes events, each one line of JSON with its end."""

    name: str

    def write(self, line: bytes) -> None:
        """Write one event. Raises SinkError."""


def open_sink(value: str) -> Sink:
    """Return the sink that a value of MAGI_EVENTS names. Raises SinkError."""
    if value.startswith(SCHEMES):
        return RedisSink(value)
    if "://" in value:
        known = ", ".join(f"{scheme}…" for scheme in SCHEMES)
        raise SinkError(f"{VARIABLE} is {visible_line(redact(value))!r}: give the path of a file, or one of {known}.")
    return FileSink(value)


class FileSink:
    """A file, to which each event is appended by one write. Worker processes inherit its descriptor."""

    def __init__(self, path: str) -> None:
        self.name = os.path.abspath(os.path.expanduser(path))
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            self._descriptor = os.open(self.name, flags, 0o600)
            is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        except OSError as error:
            raise self._error(error) from error
        if not is_file:
            os.close(self._descriptor)
            raise SinkError(
                f"{VARIABLE} names {visible_line(self.name)}, which is not a regular file. Name another one."
            )
        self._is_torn = False

    def write(self, line: bytes) -> None:
        # After a write that did not get to the end of its line, the next event begins on a new one.
        text = b"\n" + line if self._is_torn else line
        try:
            written = os.write(self._descriptor, text)
        except OSError as error:
            raise self._error(error) from error
        self._is_torn = written != len(text)
        if self._is_torn:
            raise SinkError(
                f"{VARIABLE}: {visible_line(self.name)} took only a part of an event. Look for a full disk."
            )

    def _error(self, error: OSError) -> SinkError:
        return SinkError(
            f"{VARIABLE}: {visible_line(self.name)} cannot be written: {error.strerror}. Name a file in a folder that "
            f"exists and that you may write to, or unset {VARIABLE}."
        )


class RedisSink:
    """The stream magi:events of a Redis or Valkey. Each process of a run has a connection of its own."""

    def __init__(self, url: str) -> None:
        self.name = redact(url)
        self._url = url
        self._client: Any = None
        self._pid = 0

    def write(self, line: bytes) -> None:
        try:
            self._connected().xadd(STREAM, {"event": line.rstrip(b"\n")}, maxlen=STREAM_LENGTH, approximate=True)
        except RedisError as error:
            raise SinkError(f"{VARIABLE}: {error}") from error
        except Exception as error:
            self._client = None
            raise SinkError(f"{VARIABLE}: {failure(self._url, error)}") from error

    def _connected(self) -> Any:
        if self._client is None or self._pid != os.getpid():
            self._client, self._pid = connect(self._url, os.environ.get(PASSWORD_FILE)), os.getpid()
        return self._client
