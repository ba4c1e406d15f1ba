# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What a gateway's configuration is rendered from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .clients import Client
from .fleet import Backend
from .limits import Limits


@dataclass(frozen=True)
class Settings:
    """How a gateway listens and behaves. Time in seconds, sizes in bytes; paths are on the gateway's host."""

    host: str = "127.0.0.1"
    port: int = 8070
    tls_port: int = 8443
    certificate: str = ""
    allow_plain: bool = False
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 8071
    max_body: int = 256 * 1024 * 1024
    queue_timeout: int = 30
    answer_timeout: int = 600
    hang_timeout: int = 0
    max_queue: int = 64
    rate_per_minute: int = 0
    aliases: Mapping[str, Any] = field(default_factory=dict)
    families: bool = True
    max_connections: int = 2000
    stickiness: str = ""
    count_tokens: bool = False
    # Whether servers have names that get other addresses while HAProxy runs, as containers have.
    resolves: bool = False
    models: Mapping[str, Any] = field(default_factory=dict)
    # Where the console is that starts and stops servers for operators, and its token.
    console_url: str = ""
    console_token_file: str = ""


@dataclass(frozen=True)
class Route:
    """What of the fleet is in the configuration."""

    backends: Sequence[Backend]
    names: Mapping[str, Sequence[str]]
    splits: Mapping[str, Sequence[tuple[str, int]]]
    clients: Sequence[Client]
    limits: Mapping[str, Limits]
    # Of the console, where there is one.
    console_token: str = ""
