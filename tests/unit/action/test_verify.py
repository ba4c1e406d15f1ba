# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a server is probed with a token: on the controller if possible, otherwise on the host."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.action.verify import who_asks


@pytest.mark.parametrize(
    ("host", "has_keys", "given", "local", "expected"),
    [
        ("127.0.0.1", False, None, True, ("127.0.0.1", None)),
        ("127.0.0.1", False, None, False, None),
        ("0.0.0.0", False, None, False, ("gpu1", None)),
        ("10.0.0.7", False, None, False, ("10.0.0.7", None)),
        # The host's own file has the keys, so none has to be passed.
        ("0.0.0.0", True, None, False, None),
        ("0.0.0.0", True, "given", False, ("gpu1", "given")),
        ("127.0.0.1", True, "given", False, None),
        ("0.0.0.0", True, None, True, ("127.0.0.1", "first")),
    ],
)
def test_probe_location_by_host(
    tmp_path: Path, host: str, has_keys: bool, given: str | None, local: bool, expected: tuple | None
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")
    server = {"name": "a", "port": 8080, "host": host, "api_key_file": str(keys) if has_keys else None}
    asked, behind = who_asks([server], "127.0.0.1" if local else "gpu1", given, local)
    assert asked == ([(server, *expected)] if expected else [])
    assert behind == ([] if expected else [server])


def test_keys_unreadable_here_are_read_by_host(tmp_path: Path) -> None:
    server = {"name": "a", "port": 8080, "host": "127.0.0.1", "api_key_file": str(tmp_path / "none")}
    assert who_asks([server], "127.0.0.1", None, True) == ([], [server])
