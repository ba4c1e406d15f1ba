# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run would do to a gateway, and what it warns of; nothing is started."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.ownership import MARK
from ansible_collections.magi.llama.plugins.module_utils._gateway.files import Places, prepare
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import FLEET, GatewayError
from ansible_collections.magi.llama.plugins.module_utils._gateway.own_certificate import own_certificate
from ansible_collections.magi.llama.plugins.module_utils._gateway.state import bring_to_state, current

SERVER = {"name": "m-8080", "model_id": "m-q8_0", "kind": "model", "listens": "0.0.0.0", "port": 8080, "slots": 1}


def dry_run(state_dir: Path, clients: list[dict[str, Any]], **more: Any) -> tuple[dict[str, Any], list[str]]:
    """more has the run's arguments; others are settings."""
    warnings: list[str] = []
    given = {
        "state_dir": str(state_dir),
        "name": "gw1",
        "service_manager": None,
        "program": "/usr/sbin/haproxy",
        "user": None,
        "clients": json.dumps(clients),
        "hosts": {"a": {"address": "192.0.2.1", "servers": [SERVER]}},
        "keys": None,
        "ages": {},
        "inventory": ["a"],
    }
    given |= {name: more.pop(name) for name in given.keys() & more.keys()}
    given["settings"] = more
    return bring_to_state(given, None, warn=warnings.append, dry_run=True), warnings


def test_name_in_models_of_a_client_that_no_server_has_is_a_warning(tmp_path: Path) -> None:
    clients = [{"name": "ci", "sha256": "0" * 64, "models": ["m-q8_0", "m", "qwen"]}]
    result, warnings = dry_run(tmp_path, clients)
    assert result["changed"]
    assert warnings == ["gateway_api_keys (ci).models: no server has qwen; there are m, m-q8_0."]


def test_what_was_listed_before_another_run_drained_is_not_used() -> None:
    """The host was not locked when it was listed, and another run has locked it since."""
    now, warnings = time.time(), []
    drained, listed = {"servers": [{"name": "m", "draining": True}]}, {"servers": [{"name": "m"}]}
    given = {"hosts": {"a": listed, "b": listed, "c": listed}, "ages": {"a": 60.0, "b": 60.0}}
    found = current(given, {"a": drained, "b": drained}, {"a": now - 30, "b": now - 90, "c": now}, warnings.append)
    # That of b is from before: a run that was killed while it drained. The run itself has locked c.
    assert found == {"b": listed, "c": listed}
    assert warnings == ["a: another run has changed it meanwhile, and what the gateway knows of it is kept."]


def test_host_with_a_replaced_key_file_does_not_stop_the_run_for_the_others(tmp_path: Path) -> None:
    """gateway.yml has found it while another run restarts its servers, and clients' keys are to be revoked."""
    before = {"address": "192.0.2.1", "servers": [{**SERVER, "old_keys": True}, {**SERVER, "name": "n", "port": 8081}]}
    (tmp_path / "manifest.json").write_text(json.dumps(MARK))
    (tmp_path / "fleet.json").write_text(json.dumps(FLEET.stamp({"hosts": {"a": before}})))
    (tmp_path / "keys.json").write_text(json.dumps({"a": ["old"]}))
    replaced = {**before, "address": "192.0.2.2"}
    clients = [{"name": "ci", "sha256": "0" * 64}]
    result, [warning] = dry_run(
        tmp_path,
        clients,
        hosts={"a": replaced, "b": replaced},
        ages={"a": 1.0},
        keys='{"a": ["new"], "b": ["old"]}',
        inventory=["a", "b"],
    )
    assert warning.startswith("a: what the gateway knows of it is kept. The API key file of a ")
    [shown] = [one["after"] for one in result["diff"] if one["after_header"].startswith("haproxy.cfg")]
    assert "192.0.2.1:8080" in shown
    # The run that restarts them has locked the host.
    with pytest.raises(GatewayError, match="The API key file of a "):
        dry_run(tmp_path, clients, hosts={"a": replaced}, keys='{"a": ["new"]}')


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl on this machine")
def test_own_certificate_is_in_the_configuration(tmp_path: Path) -> None:
    def shown() -> str:
        result, warnings = dry_run(tmp_path, [], certificate="auto", tls_port=9443)
        assert (warnings, result["url"]) == ([], "https://127.0.0.1:9443")
        [text] = [one["after"] for one in result["diff"] if one["after_header"].startswith("certificate.pem")]
        return str(text)

    assert shown() == ""
    places = Places(str(tmp_path))
    prepare(places, None)
    content = own_certificate(places, "127.0.0.1", "gw1", [], dry_run=False)
    assert shown() == f"certificate and key, {len(content)} bytes\n"
