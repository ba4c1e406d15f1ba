# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.values import is_loopback
from ansible_collections.magi.llama.plugins.module_utils._deployment.exposure import newly_opened


def server(host, revision="new"):
    return {"name": "a", "host": host, "revision": revision}


@pytest.mark.parametrize(
    ("host", "before", "ready", "opened"),
    [
        ("0.0.0.0", [], {}, True),
        ("10.0.0.1", [server("127.0.0.1", "old")], {"a": "old"}, True),
        ("::", [{"name": "a"}], {}, True),
        # It was open before, or other machines still cannot reach it.
        ("0.0.0.0", [server("10.0.0.1", "old")], {"a": "old"}, False),
        ("0.0.0.0", [], {"a": "new"}, False),
        ("127.0.0.1", [], {}, False),
        ("localhost", [server("0.0.0.0")], {}, False),
    ],
)
def test_server_is_newly_opened(host, before, ready, opened):
    assert newly_opened([server(host)], before, ready) == (["a"] if opened else [])


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")),
        *((host, False) for host in ("127.x.example", "127.0.0.1,0.0.0.0", "127.1", "0.0.0.0", "::", "", "10.0.0.1")),
    ],
)
def test_loopback_is_an_address_or_localhost(host, expected):
    assert is_loopback(host) is expected
