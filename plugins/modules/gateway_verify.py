#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gateway_verify
short_description: Ask a gateway for every model, as a client does
version_added: 0.2.0
description:
  - Requests a completion, at once and streamed, from each model that the gateway routes to, an embedding from an
    embedding model and a ranking from a reranker, and checks that the model that answers is the one asked for.
  - The controller sends the requests with httpx to the gateway's address in the inventory. The host sends them where
    its gateway listens on a loopback address.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  state_dir:
    description: The gateway's state directory, which lists the models.
    type: path
    required: true
  name:
    description: The gateway's name in the inventory.
    type: str
    required: true
  host:
    description: Address that the gateway listens on, C(gateway_host).
    type: str
    default: 127.0.0.1
  port:
    description: Port that it listens on.
    type: int
    required: true
  tls:
    description: Whether it uses TLS.
    type: bool
    default: false
  url:
    description:
      - Address that the controller asks, such as V(https://gateway.example.com:8443). By default made of O(host) and
        O(port), with the host's own address where O(host) is any address.
    type: str
  ca_file:
    description:
      - File on the controller with the certificates of authorities that are trusted, in PEM. By default those of the
        system. A gateway's certificate is always verified.
    type: str
  api_key:
    description: API key of a client of the gateway.
    type: str
  timeout:
    description: Seconds to wait for each answer.
    type: float
    default: 60.0
  request_from:
    description:
      - V(controller) sends the requests as a client would, and fails for a gateway that only its host can ask.
      - V(host) sends them from the gateway's host, which it can do without TLS only.
      - V(auto) sends them from the host where the gateway listens on a remote host's loopback address, otherwise from
        the controller.
    type: str
    choices: [auto, controller, host]
    default: auto
requirements:
  - httpx (on the controller, where it sends requests)
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  action:
    support: full
    description: Runs mainly on the controller.
seealso:
  - module: magi.llama.verify
"""

EXAMPLES = r"""
- name: Ask the gateway for every model
  magi.llama.gateway_verify:
    state_dir: /var/lib/magi-llama-gateway
    name: "{{ inventory_hostname }}"
    host: 192.0.2.10
    port: 8443
    tls: true
    url: https://gateway.example.com:8443
    api_key: "{{ vault_verify_key }}"
"""

RETURN = r"""
url:
  description: The address that was asked.
  returned: success or failure after the models were asked for
  type: str
  sample: https://gateway.example.com:8443
models:
  description: The result for each model, in order of name. The task fails if any of them is not ok.
  returned: success or failure after the models were asked for
  type: list
  elements: dict
  contains:
    name:
      description: The model's id.
      type: str
      sample: qwen3-8b-q4_k_m
    ok:
      description: Whether the model itself answered, with the requested content.
      type: bool
    via:
      description: The machine that sent the requests, C(controller) or C(host).
      type: str
      sample: controller
    seconds:
      description: Time to the answer in seconds.
      type: float
      sample: 0.12
    streamed_seconds:
      description: Time to the end of the streamed answer, V(null) for a model without one, such as for embeddings.
      type: float
      sample: 0.11
    tokens_per_second:
      description: Speed of generation, V(null) where the server did not report it.
      type: float
      sample: 216.4
    error:
      description: The error with its fix, V(null) if there was none.
      type: str
"""

from ansible_collections.magi.llama.plugins.module_utils._arguments.gateway_verify import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.ownership import require_trusted
from ansible_collections.magi.llama.plugins.module_utils._gateway.files import Places, read_fleet, read_keys
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import GatewayError, backends_of
from ansible_collections.magi.llama.plugins.module_utils._gateway.server_keys import keys_of
from ansible_collections.magi.llama.plugins.module_utils._gateway.state import exists
from ansible_collections.magi.llama.plugins.module_utils._gateway.verification import ask_from_host, models_of


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    """The node's half: return the models that the gateway routes to, and ask for them where only this host can."""
    given = module.params
    places = Places(plain_path(given["state_dir"]))
    if not exists(places.state_dir):
        raise GatewayError(f"{places.state_dir} has no gateway: run gateway.yml first.")
    require_trusted(places.state_dir)
    backends, _warnings = backends_of(read_fleet(places), keys_of(read_keys(places)), [given["name"]])
    routed = models_of(backends)
    answers = []
    if given["asks"]:
        answers = ask_from_host((given["host"], given["port"]), routed, given["api_key"], given["timeout"])
    return {"changed": False, "routed": routed, "answers": answers}


if __name__ == "__main__":
    main()
