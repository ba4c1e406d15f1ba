# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Connect to a Redis or Valkey from the controller, with the Python package redis."""

from __future__ import annotations

import os
from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._core.text import redact, visible_line

SCHEMES = ("redis://", "rediss://", "unix://")
CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 2.0


class RedisError(MagiError):
    """Raised where a Redis cannot be used. Its text has no password."""


def connect(url: str, password_file: str | None) -> Any:
    """Return a client, which connects by its first command and waits for no answer longer than ANSWER_SECONDS.

    password_file is the path of a file whose first line is the password. Raises RedisError.
    """
    try:
        import redis
    except ImportError as error:
        raise RedisError("The controller needs the Python package redis for a Redis: pip install redis.") from error
    options: dict[str, Any] = {"socket_connect_timeout": CONNECT_SECONDS, "socket_timeout": ANSWER_SECONDS}
    if password_file:
        options["password"] = _first_line(password_file)
    try:
        # Without the retries of the client, which would hold up a run for seconds.
        return redis.Redis.from_url(url, **options, retry=None)
    except (ValueError, TypeError) as error:
        raise RedisError(f"{visible_line(redact(url))} is not the URL of a Redis: {error}.") from error


def failure(url: str, error: Exception) -> str:
    """What went wrong with a command, as a text. The classes of the client's errors are known only with the client."""
    return f"{visible_line(redact(url))} does not do it: {visible_line(str(error), 200)}"


def _first_line(path: str) -> str:
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as stream:
            return stream.readline().rstrip("\n")
    except (OSError, ValueError) as error:
        raise RedisError(f"The password file {visible_line(path)} cannot be read: {error}.") from error
