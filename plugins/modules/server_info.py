#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: server_info
short_description: Return the state of all servers on a host
version_added: 0.1.0
description:
  - Reads the deployment record, queries the service manager and every server, and returns their status.
  - Also works for servers that are loading, stopped or failed, and on a host without a deployment.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  state_dir:
    description: The servers' state directory.
    type: path
    required: true
  servers:
    description: Names of the servers to report, by default all.
    type: list
    elements: str
    default: []
  log_of:
    description: >-
      Names of servers of which the last 100 lines of the log since their last deliberate start are returned too;
      V(all) for every server.
    type: list
    elements: str
    default: []
  deep:
    description: Also probe each server with a few tokens. Otherwise a server that hangs may be reported as V(ready).
    type: bool
    default: false
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
seealso:
  - module: magi.llama.wait_for_health
"""

EXAMPLES = r"""
- name: Read the status of the servers
  magi.llama.server_info:
    state_dir: /var/lib/magi-llama
  register: llama
"""

RETURN = r"""
start:
  description: How the profile of the deployment starts its servers.
  returned: success
  type: dict
  sample: {"concurrent": true, "max_startup_time": 120, "readiness_check_interval": 2}
drift:
  description: >-
    The reason for each server, by name, that does not run as it is deployed, or runs without being deployed, and for
    each launch config, by path for the shared one, that was edited or removed since.
  returned: success
  type: dict
  sample: {"qwen3-8b-q4_k_m": "not running"}
status:
  description: The status of the servers.
  returned: success
  type: dict
  contains:
    schema_version:
      description: Version of this layout, for which docs/schemas has the JSON Schema.
      type: int
      sample: 1
    collection_version:
      description: Version of the collection that wrote it.
      type: str
      sample: 0.1.0
    total_servers:
      description: How many servers are deployed.
      type: int
      sample: 4
    ready_servers:
      description: How many of them are ready.
      type: int
      sample: 4
    servers:
      description: Each server.
      type: list
      elements: dict
      contains:
        name:
          description: The server's name.
          type: str
          sample: qwen3-8b-q4_k_m
        model_id:
          description: Id of its model in the registry.
          type: str
          sample: qwen3-8b-q4_k_m
        display_name:
          description: The human-readable name of its model.
          type: str
          sample: Qwen3 8B (Q4_K_M)
        port:
          description: Its port.
          type: int
          sample: 8080
        pid:
          description: PID of its process, V(null) if it is not running.
          type: int
          sample: 12345
        is_ready:
          description: Whether it answers requests, so that its state is V(ready) or V(sleeping).
          type: bool
        tier:
          description: Its model's quality tier.
          type: str
          sample: Q4
        state:
          description: >-
            One of V(ready), V(starting), V(loading), V(hung), V(unhealthy), V(wrong_identity) (another process or model
            answers on its port), V(unprotected) (it has an API key file, but answers without a key), V(stopping),
            V(restarting) (it died and will be restarted), V(sleeping) (its first request starts it), V(stopped),
            V(failed), V(absent) (the service manager does not know it).
          type: str
          sample: ready
        uptime_seconds:
          description: Age of its process in seconds, 0 if it is not running, V(null) if this user may not see it.
          type: int
          sample: 3600
        rss_bytes:
          description: >-
            Resident memory of its process in bytes, 0 if it is not running, V(null) if this user may not see it.
          type: int
          sample: 5368709120
        restarts:
          description: Number of restarts after a crash since the last deliberate start.
          type: int
          sample: 0
        restart_pending:
          description: Whether its launch config is another one than its process was started with.
          type: bool
          sample: false
        on_demand:
          description: Whether its first request starts it. Only of such servers.
          type: bool
          sample: true
        vram_bytes:
          description: >-
            GPU memory that it holds by C(nvidia-smi), V(null) where that is unknown. Only of servers planned on a GPU,
            as are C(planned_vram_bytes) and C(device).
          type: int
          sample: 5649727488
        planned_vram_bytes:
          description: GPU memory that was planned for it.
          type: int
          sample: 5657067520
        device:
          description: The GPUs that it is planned on.
          type: str
          sample: CUDA0 (NVIDIA H100 80GB HBM3)
        kind:
          description: What it serves, such as V(model), V(embedding) or V(reranker).
          type: str
        bind_address:
          description: Address that it listens on.
          type: str
          sample: 127.0.0.1
        context_size:
          description: Tokens that one request can have, null if that is unknown.
          type: int
          sample: 4096
        needs_api_key:
          description: Whether requests need an API key.
          type: bool
        has_tls:
          description: Whether it is reached by https.
          type: bool
        profile:
          description: Profile that it is deployed with.
          type: str
          sample: production
        build:
          description: Build of its llama-server, null if that is unknown.
          type: int
          sample: 11669
        memory:
          description: >-
            The memory for weights, caches and compute buffers, of a server that logs it; C(planned_bytes) as the plan
            estimated it, C(loaded_bytes) as llama-server reports it, and C(rows) with its parts for each device. Both
            sums are of RAM and GPU memory; C(planned_gpu_bytes) and C(loaded_gpu_bytes) are what of them is on GPUs.
          type: dict
        tokens_per_second:
          description: >-
            Speed of generation when its process was last probed with a few tokens (O(deep) or C(verify.yml)), all
            servers at once; V(null) if it was not.
          type: float
          sample: 216.4
        log:
          description: The last lines of its log, of servers that O(log_of) names.
          type: list
          elements: str
        watchdog:
          description: >-
            What the host's watchdog has seen of it last, where there is one; C(state) (V(answers), V(busy),
            V(suspected), V(hung), V(restarted) or V(skipped)), C(detail), C(since) when, C(restarts) within an hour and
            C(last_restart).
          type: dict
        stuck_stop:
          description: >-
            How its last stop ended, if one SIGTERM did not end it; C(signal) (V(second SIGTERM) or V(SIGKILL)) and
            C(seconds).
          type: dict
"""

from ansible_collections.magi.llama.plugins.module_utils._arguments.server_info import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.commands import output_of
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.gpu_processes import TOOL_FOLDERS
from ansible_collections.magi.llama.plugins.module_utils._deployment.host_status import host_status
from ansible_collections.magi.llama.plugins.module_utils._deployment.rollback import Deployment, starting

LOG_LINES = 100


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    params = module.params

    def tool(command: list) -> str | None:
        path = module.get_bin_path(command[0], opt_dirs=list(TOOL_FOLDERS))
        return None if path is None else output_of(path, *command[1:])

    found = host_status(plain_path(params["state_dir"]), tool, names=params["servers"], deep=params["deep"])
    for entry in found.status["servers"]:
        if {entry["name"], "all"} & set(params["log_of"]):
            entry["log"] = found.driver.log_tail(entry["name"], LOG_LINES)
    return {
        "changed": False,
        "status": found.status,
        "drift": found.drift,
        "start": starting(Deployment(found.record, ())),
    }


if __name__ == "__main__":
    main()
