#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gateway_state
short_description: Bring a gateway to the servers and settings that it is to have
version_added: 0.2.0
description:
  - Renders HAProxy's configuration from the servers of all hosts, checks it with C(haproxy -c), puts it in place of the
    one in use, and applies it. Names, keys and limits, and servers of a model that the gateway knows, are changed while
    HAProxy runs; anything else is a reload, which lets the old process finish its requests.
  - A host that this run does not cover keeps the servers that the gateway knows of it. A host that left the inventory
    is removed.
  - A configuration that HAProxy refuses changes nothing.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  state_dir:
    description: The gateway's state directory.
    type: path
    required: true
  name:
    description: The gateway's name in the inventory. Servers of this host are reached through its loopback.
    type: str
    required: true
  state:
    description:
      - V(prepared) checks that the state directory and the service are a gateway's, and marks the directory.
      - V(updated) changes a gateway that exists, V(absent) stops it and removes its files.
      - V(read) changes nothing and returns RV(exists) and RV(ready).
    type: str
    choices: [present, prepared, updated, read, absent]
    default: present
  part:
    description:
      - With V(begin) the gateway is asked, and the task continues. With V(end), later in the same loop, its answer is
        waited for and returned. A loop over all gateways with V(begin), then with V(end), asks them side by side.
      - V(all) does both.
    type: str
    choices: [all, begin, end]
    default: all
  service_manager:
    description: The service manager that runs HAProxy. If not set, as before.
    type: str
    choices: [systemd, supervisor, container]
  supervisord_path:
    description: supervisord to use with V(supervisor).
    type: path
  program:
    description: HAProxy. If not set, as before.
    type: path
  user:
    description: User that HAProxy runs as, where the run is root. If not set, as before.
    type: str
  settings:
    description: How the gateway listens and behaves. If not set, as before; then only servers change.
    type: dict
    suboptions:
      host:
        description: Address to listen on.
        type: str
        default: 127.0.0.1
      port:
        description: Port without TLS, used where O(settings.certificate) is not set.
        type: int
        default: 8070
      tls_port:
        description: Port with TLS.
        type: int
        default: 8443
      certificate:
        description: >-
          File on the gateway with certificate chain and private key, in PEM; or V(auto), with which the gateway makes
          one for itself.
        type: path
      allow_plain:
        description: Accept other than loopback addresses without O(settings.certificate).
        type: bool
        default: false
      metrics_host:
        description: Address of metrics and statistics.
        type: str
        default: 127.0.0.1
      metrics_port:
        description: Port of metrics and statistics.
        type: int
        default: 8071
      max_body:
        description: Largest request in bytes.
        type: int
        default: 268435456
      queue_timeout:
        description: Seconds that a request may wait for a free slot.
        type: int
        default: 30
      answer_timeout:
        description: Seconds that a server may be silent.
        type: int
        default: 600
      hang_timeout:
        description: Seconds that a server may be busy with one batch; 0 means what is known of the server.
        type: int
        default: 0
      max_queue:
        description: Requests that may wait for a model.
        type: int
        default: 64
      rate_per_minute:
        description: Requests a minute of a client that has no limit of its own; 0 means unlimited.
        type: int
        default: 0
      count_tokens:
        description: Whether tokens are counted where no client has a limit of them.
        type: bool
        default: false
      models:
        description: Other limits for models, by name, each with C(max_queue), C(queue_timeout), C(answer_timeout) or
          C(hang_timeout).
        type: dict
        default: {}
      stickiness:
        description: What requests that go to one server have in common, V(user), V(conversation) or C(header:NAME).
        type: str
        default: ""
      max_connections:
        description: Connections at once.
        type: int
        default: 2000
      aliases:
        description: Further names, each with a model, a list of them, best first, or weights by model.
        type: dict
        default: {}
      families:
        description: Whether a model's id without its quantization means the best quantization that is ready.
        type: bool
        default: true
      console_url:
        description: Address of the console, which starts and stops servers for clients that are operators.
        type: str
        default: ""
      console_token_file:
        description: File on the gateway with a token of the console of the role C(operate).
        type: path
  api_keys:
    description: The clients with their keys. If not set together with O(settings), as before.
    type: list
    elements: dict
  ready_timeout:
    description:
      - Seconds to wait until HAProxy's check finds servers up that are added or come back. Only then do others leave.
        A server that passes its check later is used from then on.
    type: float
    default: 10.0
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  action:
    support: full
    description: Collects what M(magi.llama.gateway_members) found on each host in this run.
seealso:
  - module: magi.llama.gateway_members
"""

EXAMPLES = r"""
- name: Bring the gateway to the servers of this run
  magi.llama.gateway_state:
    state_dir: /var/lib/magi-llama-gateway
    name: "{{ inventory_hostname }}"
"""

RETURN = r"""
is_reached:
  description: >-
    Whether the gateway's host was reached. With O(state=read) and O(state=updated) the task does not fail if it was
    not.
  returned: where O(part) is not V(begin)
  type: bool
refused:
  description: >-
    Why the gateway did not do it. With O(state=read) and O(state=updated) the task does not fail, as it runs for other
    hosts.
  returned: where the gateway was reached and failed
  type: str
how:
  description:
    - What was done to HAProxy, or would be, V(nothing), V(maps), V(servers), V(reload), V(start) or V(stop).
    - V(missing) where there is no gateway to update.
  returned: success
  type: str
  sample: servers
models:
  description: The models that the gateway serves, each with its number of servers.
  returned: success
  type: dict
  sample: {"qwen3-8b-q4_k_m": 2}
not_ready:
  description: >-
    Servers that were added or came back and have not passed their check in time, by their names in HAProxy, host and
    port.
  returned: when the gateway was brought to a state
  type: list
  elements: str
  sample: [gpu1_8080]
serving:
  description: >-
    Servers that HAProxy has up and that are not draining after the change, by their names in HAProxy. Missing with
    C(--check).
  returned: when the gateway was brought to a state
  type: list
  elements: str
  sample: [gpu1_8080]
exists:
  description: Whether a gateway was set up in this state directory.
  returned: with O(state=read)
  type: bool
ready:
  description: >-
    By model and host, the number of servers that the gateway sees up and that are not draining, without those that
    their first request starts. Empty where HAProxy does not run; where it runs and does not answer, the task fails.
  returned: with O(state=read)
  type: dict
  sample: {"qwen3-8b-q4_k_m": {"gpu1": 2}}
url:
  description: The gateway's address.
  returned: success
  type: str
  sample: http://127.0.0.1:8070
"""

from ansible_collections.magi.llama.plugins.module_utils._arguments.gateway_state import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._gateway.state import (
    bring_to_state,
    exists,
    prepare_host,
    read_ready,
    remove,
    unchanged,
)


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = {**module.params, "state_dir": plain_path(module.params["state_dir"])}
    found = module.get_bin_path("haproxy", opt_dirs=["/usr/sbin", "/usr/local/sbin"])
    if given["state"] == "read":
        return read_ready(given["state_dir"])
    if given["state"] == "absent":
        return remove(given, dry_run=module.check_mode)
    if given["state"] == "prepared":
        return prepare_host(given, dry_run=module.check_mode)
    if given["state"] == "updated" and not exists(given["state_dir"]):
        return unchanged("missing")
    return bring_to_state(given, found, warn=module.warn, dry_run=module.check_mode)


if __name__ == "__main__":
    main()
