# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host with four servers of three models and a gateway before them, all real, under supervisor on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support import reaper
from support.bed import Bed
from support.gateway import CLIENTS, PROFILES, Q2, Q4, SERVER_KEY, Gateway, write_inventory


@pytest.fixture(scope="session")
def deployed() -> Iterator[Gateway]:
    with reaper.temporary_folder("magi-gw-") as folder:
        bed = Bed(folder)
        for name, content in PROFILES.items():
            (bed.inventory / "profiles" / f"{name}.yml").write_text(json.dumps(content))
        keys = folder / "keys"
        keys.write_text(f"# The servers' own.\n{SERVER_KEY}\n")
        keys.chmod(0o640)
        state = folder / "g"
        reaper.watch(state)
        bed.variables.update(
            profile="four",
            servers_api_key_file=str(keys),
            gateway_state_dir=str(state),
            gateway_service_manager="supervisor",
            gateway_supervisord_path=bed.variables["servers_supervisord_path"],
            gateway_user=bed.variables["servers_user"],
            gateway_port=bed.port + 7,
            gateway_metrics_port=bed.port + 8,
            gateway_api_keys=CLIENTS,
            gateway_aliases={"best": [Q4, Q2], "mix": {Q4: 50, Q2: 50}},
        )
        write_inventory(bed)
        gateway = Gateway(bed, f"http://127.0.0.1:{bed.port + 7}", f"http://127.0.0.1:{bed.port + 8}", state)
        try:
            bed.run("site")
            bed.run("gateway")
            yield gateway
        finally:
            bed.run("teardown")
            bed.run("gateway", "-e", "gateway_remove=true")
            # Nothing of the gateway is left, and none of what the servers' teardown leaves is touched.
            assert not state.exists()


@pytest.fixture
def gateway(deployed: Gateway) -> Gateway:
    """Four healthy servers behind a gateway with its first settings."""
    deployed.set(profile="four", gateway_api_keys=CLIENTS, gateway_host="127.0.0.1", gateway_tls_certificate="")
    if list(deployed.checks().values()).count("L7OK") != 4:
        deployed.bed.run("site")
        deployed.bed.run("gateway")
    deployed.wait_up(4)
    return deployed
