# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the console: what it listens on, and how many connections it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from magi_llama_console import cli


def test_open_address_without_a_certificate_is_refused_behind_a_proxy_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: None)
    arguments = ["--inventory", str(tmp_path), "--data", str(tmp_path / "data"), "--listen", "0.0.0.0:8000"]
    with pytest.raises(SystemExit):
        cli.serve([*arguments, "--behind-proxy"])
    assert "tokens would be sent in clear" in capsys.readouterr().err
    assert cli.serve([*arguments, "--allow-plain"]) == 0


def test_connections_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("uvicorn.run", lambda _app, **options: given.update(options))
    assert cli.main(["--inventory", str(tmp_path), "--data", str(tmp_path / "data"), "--behind-proxy"]) == 0
    assert (given["limit_concurrency"], given["proxy_headers"]) == (512, True)
