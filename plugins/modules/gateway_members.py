#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gateway_members
short_description: List a host's servers for the gateways
version_added: 0.2.0
description:
  - Reads the servers that are deployed on a host, and the first key of their API key file, which gateways send to them.
  - It changes nothing. Its result has the key, and is not shown.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  state_dir:
    description: The servers' state directory on the host.
    type: path
    required: true
  address:
    description: Address at which gateways on other hosts reach this host.
    type: str
    required: true
  host:
    description:
      - Address that the servers listen on, C(servers_host). A server that says to listen on another one, which is
        neither O(address) nor a loopback or wildcard address, is left out.
    type: str
    default: 127.0.0.1
  port_range_start:
    description: First port of the range that servers may have.
    type: int
    default: 8080
  port_range_end:
    description: Last port of that range.
    type: int
    default: 8099
  draining:
    description:
      - Names of servers that are to get no new requests. They finish those that they have. A name that the host does
        not have is ignored.
    type: list
    elements: str
    default: []
  away_seconds:
    description:
      - For how many seconds a server of O(draining) will probably be away, by name. While all servers of a model are
        draining, the gateway answers with this number as C(Retry-After).
    type: dict
    default: {}
  leaving:
    description:
      - Names of servers that are about to get no new requests. If set, the task fails where any other server that runs
        would be left out, as gateways would take it out while it has requests, and before another one serves.
    type: list
    elements: str
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  action:
    support: full
    description: Holds what the host reports to the inventory's address and ports.
seealso:
  - module: magi.llama.gateway_state
"""

EXAMPLES = r"""
- name: List the servers for the gateways
  magi.llama.gateway_members:
    state_dir: /var/lib/magi-llama
    address: "{{ ansible_host | default(inventory_hostname) }}"
  register: __gateway_members
"""

RETURN = r"""
members:
  description: The host's address and its servers.
  returned: success
  type: dict
  contains:
    address:
      description: Address at which gateways on other hosts reach the host.
      type: str
      sample: 192.0.2.10
    servers:
      description: The servers. One of O(draining) has C(draining), and C(away_seconds) where it is given.
      type: list
      elements: dict
api_keys:
  description: >-
    The API keys that these servers take, 16 at most. Gateways send one that all servers of a model take.
  returned: success
  type: list
  elements: str
running:
  description: The servers that have a process.
  returned: success
  type: list
  elements: str
holder:
  description: The other run that is changing the host, V(null) if there is none.
  returned: success
  type: dict
is_locked:
  description: Whether this run holds the host's lock, so that no other run changes what was found.
  returned: success
  type: bool
left_out:
  description: Servers whose address or port the inventory does not have.
  returned: success
  type: list
  elements: str
"""

from ansible_collections.magi.llama.plugins.module_utils._arguments.gateway_members import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.processes import processes
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import describe_holder, holder
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import read_intended, read_record
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import (
    MAX_KEYS,
    as_running,
    away_times,
    host_entry,
    one_per_port,
)
from ansible_collections.magi.llama.plugins.module_utils._gateway.server_keys import with_old_keys
from ansible_collections.magi.llama.plugins.module_utils._launch.api_keys import usable_keys


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = module.params
    state_dir = plain_path(given["state_dir"])
    # Before all else: a run that takes it later changes what is found here.
    lock = holder(state_dir)
    record, running = read_record(state_dir), processes(state_dir)
    servers = [as_running(server, running.get(server["name"])) for server in record["servers"]]
    stopped = [name for name, intended in read_intended(state_dir).items() if intended == "stopped"]
    old_keys = with_old_keys(record["servers"], running)
    draining = away_times([*given["draining"], *stopped], given["away_seconds"])
    servers = one_per_port(servers, running, draining)
    files = [server.get("api_key_file") for server in record["servers"]]
    return {
        "changed": False,
        "members": host_entry({"servers": servers}, given["address"], draining, old_keys),
        "api_keys": usable_keys(next(filter(None, files), None))[:MAX_KEYS],
        "left_out": [],
        "holder": describe_holder(lock, given["run_id"] or ""),
        "is_locked": lock is not None and lock.run.id == given["run_id"],
        "running": sorted({server["name"] for server in servers} & running.keys()),
    }


if __name__ == "__main__":
    main()
