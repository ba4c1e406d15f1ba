# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gateway without TLS listens on a loopback address, unless something else protects it."""

from __future__ import annotations

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.clients import parse_clients
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import GatewayError
from ansible_collections.magi.llama.plugins.module_utils._gateway.settings import Settings
from ansible_collections.magi.llama.plugins.module_utils._gateway.state import _refuse_open

CLIENTS = parse_clients([{"name": "local", "key": "a-key-of-some-length"}])


def test_plain_gateway_on_an_open_address_is_refused() -> None:
    with pytest.raises(GatewayError, match="gateway_allow_plain"):
        _refuse_open(Settings(host="0.0.0.0"), CLIENTS, [])


def test_plain_gateway_on_an_open_address_is_allowed_by_name_but_wants_keys() -> None:
    _refuse_open(Settings(host="0.0.0.0", allow_plain=True), CLIENTS, [])
    with pytest.raises(GatewayError, match="gateway_api_keys is empty"):
        _refuse_open(Settings(host="0.0.0.0", allow_plain=True), [], [])
