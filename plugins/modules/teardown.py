#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: teardown
short_description: Stop all servers on a host and remove their files
version_added: 0.1.0
description:
  - Stops every server of the state directory gracefully, ends its supervisord, and removes launch configs, record,
    logs, registry file and, if O(runtime_prefix) is set, the prefix with llama-server.
  - Models, distribution packages, and unmanaged servers and files are never touched, even in the state directory.
    Folders that are not empty afterwards are kept.
  - A file is removed from a given path only if it has the content that the collection writes there, a folder only if it
    has the collection's mark. The result names what is kept.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  state_dir:
    description: The servers' state directory.
    type: path
    required: true
  registry_path:
    description: The registry file. A folder is an error.
    type: path
    required: true
  runtime_prefix:
    description: Prefix that M(magi.llama.runtime) installed llama-server in. If not set, it is kept.
    type: path
  runtime_cache_path:
    description: The cache file of M(magi.llama.runtime). If not set, it is kept. A folder is an error.
    type: path
  user:
    description: User that ran the servers; that user's other services are returned in RV(user_kept_for).
    type: str
  stop_timeout:
    description: Seconds between the first SIGTERM and SIGKILL.
    type: float
    default: 30.0
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  action:
    support: full
    description: Passes the id of the run to the host.
seealso:
  - module: magi.llama.server_state
"""

EXAMPLES = r"""
- name: Remove the deployment
  magi.llama.teardown:
    state_dir: /var/lib/magi-llama
    registry_path: /var/lib/magi-llama/registry.json
    runtime_prefix: /opt/magi-llama/runtime
"""

RETURN = r"""
stopped:
  description: Names of the servers that were stopped, or would be stopped in check mode.
  returned: success
  type: list
  elements: str
  sample: [qwen3-8b-q4_k_m]
ended:
  description: The signal that ended each running server, V(SIGTERM), V(second SIGTERM) or V(SIGKILL).
  returned: success, not in check mode
  type: dict
  sample: {qwen3-8b-q4_k_m: SIGTERM}
user_kept_for:
  description: Other units and processes that run as O(user); removing the user would break them.
  returned: with O(user)
  type: list
  elements: str
  sample: [magi-llama-staging-q4_k_m.service]
kept:
  description: Paths that stay, each with the state directories of other deployments that use it, or why it is not ours.
  returned: success
  type: dict
  sample: {/opt/magi-llama/runtime: [/srv/staging], /var/lib/magi-llama/api-keys: [is a folder]}
removed:
  description: Paths that were removed, or would be removed in check mode.
  returned: success
  type: list
  elements: str
  sample: [/var/lib/magi-llama/deployment.json]
"""


from ansible_collections.magi.llama.plugins.module_utils._arguments.teardown import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path, require_file_path
from ansible_collections.magi.llama.plugins.module_utils._core.processes import all_processes
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import keep_renewed
from ansible_collections.magi.llama.plugins.module_utils._core.text import printable
from ansible_collections.magi.llama.plugins.module_utils._deployment.shared import kept_for_others
from ansible_collections.magi.llama.plugins.module_utils._deployment.teardown import (
    of_others,
    owned_paths,
    require_removable,
    take_down,
    users_of,
)
from ansible_collections.magi.llama.plugins.module_utils._services.base import ended_text


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = module.params
    state_dir = plain_path(given["state_dir"])
    # The expected signal by server; replaced by the actual one below.
    ended = {process.name: "SIGTERM" for process in all_processes(state_dir)}
    more = {}
    for name in ("registry_path", "runtime_cache_path"):
        if given[name] is not None:
            require_file_path(given[name], name)
    paths = [given[key] for key in ("registry_path", "runtime_prefix", "runtime_cache_path")]
    shared = [None if path is None else plain_path(path) for path in paths]
    kept = kept_for_others(state_dir, *shared)
    foreign = {path: f"belongs to {owner}" for path, owner in of_others(shared).items() if path not in kept}
    found = owned_paths(state_dir, *(None if path in kept or path in foreign else path for path in shared))
    removed, unmanaged = found.paths, {**foreign, **found.unmanaged}
    require_removable(removed, state_dir)
    if not module.check_mode:
        with keep_renewed(state_dir, given["run_id"]):
            signals, removed = take_down(state_dir, removed, given["stop_timeout"])
        ended.update(signals)
        more["ended"] = ended
    # Names of files and state directories may have any character.
    removed = list(map(printable, removed))
    kept = {printable(path): list(map(printable, users)) for path, users in kept.items()}
    unmanaged = {printable(path): why for path, why in unmanaged.items()}
    if given["user"] is not None:
        more["user_kept_for"] = users_of(given["user"], state_dir)
    return {
        "changed": bool(ended or removed),
        "msg": "\n".join(
            [
                f"{ended_text(ended) or 'no server stopped'}, {len(removed)} paths removed",
                *(f"{path} stays, as another deployment uses it: {', '.join(users)}" for path, users in kept.items()),
                *(f"{path} stays, as it {why}" for path, why in unmanaged.items()),
            ]
        ),
        "kept": {**{path: [why] for path, why in unmanaged.items()}, **kept},
        "stopped": sorted(ended),
        "removed": removed,
        **more,
        "diff": {"before": "".join(f"{path}\n" for path in removed), "after": ""},
    }


if __name__ == "__main__":
    main()
