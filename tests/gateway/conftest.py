# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host with four servers of three models and a gateway before them, all real, under supervisor on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import reaper
from support.gateway import CLIENTS, Gateway, deployed_gateway


@pytest.fixture(scope="session")
def deployed() -> Iterator[Gateway]:
    with reaper.temporary_folder("magi-gw-") as folder, deployed_gateway(folder) as gateway:
        yield gateway


@pytest.fixture
def gateway(deployed: Gateway) -> Gateway:
    """Four healthy servers behind a gateway with its first settings."""
    deployed.set(profile="four", gateway_api_keys=CLIENTS, gateway_host="127.0.0.1", gateway_tls_certificate="")
    if list(deployed.checks().values()).count("L7OK") != 4:
        deployed.bed.run("site")
        deployed.has_new_settings = True
    if deployed.has_new_settings:
        # Another test has left it with other settings: a change of this one would be a reload for these.
        deployed.bed.run("gateway")
        deployed.has_new_settings = False
    deployed.wait_up(4)
    return deployed
