# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The gateway in a container: the configuration that gateways on hosts have, and what fills the key in at the start."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from .._gateway.aliases import names_of, split_names
from .._gateway.clients import Client
from .._gateway.config import files_of
from .._gateway.fleet import Backend, Server
from .._gateway.limits import Limits, limits_of
from .._gateway.settings import Route, Settings
from .._gateway.words import FOLDER
from .workloads import KEY_FILE, Workload

PORT, METRICS_PORT = 8070, 8071
# A request may be 16 MB, and HAProxy has it whole while it looks for the model's name.
MEMORY_BYTES = 2 * 1024**3
START = "start.sh"
# The folder with the files below, and the one in memory that HAProxy has them from.
SOURCE, PLACE = "/etc/magi-gateway", "/run/magi-gateway"
# In place of the servers' key, which is in none of the files.
_KEY = "@LLAMA_API_KEY@"
_SCRIPT = f"""#!/bin/sh
# Ansible managed (magi.llama): changes made here are lost in the next run
# Starts HAProxy with the servers' API key, which clients of the gateway send too.
set -eu
umask 077
mkdir -p {PLACE}/config {PLACE}/run
cp {SOURCE}/* {PLACE}/config/
cd {PLACE}/config
if [ -e keys.needed ]; then
  key=$(sed -n '/^#/d;s/^[[:space:]]*\\([^[:space:]].*\\)$/\\1/p' {KEY_FILE} | head -n 1)
  [ -n "$key" ] || {{ echo "{KEY_FILE} has no API key" >&2; exit 1; }}
  digest=$(printf %s "$key" | sha256sum | cut -c 1-64 | tr a-f A-F)
  echo "$digest servers" > keys.map
  while read -r model _; do printf '%s %s\\n' "$model" "$key"; done < {SOURCE}/secrets.map > secrets.map
  LLAMA_API_KEY=$(printf %s "$key" | sed 's/%/%%/g')
  export LLAMA_API_KEY
fi
if [ -e names.wanted ]; then
  # HAProxy looks them up once. Their Services may be as new as this container.
  tries=60
  while read -r name; do
    until getent hosts "$name" >/dev/null || [ $tries -le 0 ]; do tries=$((tries - 1)); sleep 1; done
  done < names.wanted
fi
touch {PLACE}/servers.state
export {FOLDER}={PLACE}/config {FOLDER}_RUN={PLACE}/run
exec haproxy -W -db -f {PLACE}/config/haproxy.cfg
"""


def proxy_files(workloads: Sequence[Workload], name_of: Callable[[Workload], str], *, resolves: bool) -> dict[str, str]:
    """The gateway's files by name. name_of is the name under which a container is found.

    resolves is whether such names get other addresses when containers are replaced, so that HAProxy looks again.
    """
    settings = Settings(host="0.0.0.0", port=PORT, metrics_host="0.0.0.0", metrics_port=METRICS_PORT, resolves=resolves)
    backends = _backends(workloads, name_of)
    names = names_of(backends, settings.aliases, settings.families)
    splits = split_names(backends, settings.aliases, settings.families)
    limits = limits_of(Limits.common(settings), settings.models, names, backends)
    needs_key = any(backend.key for backend in backends)
    clients = [Client("servers", hashlib.sha256(_KEY.encode()).hexdigest())] if needs_key else []
    files = files_of(settings, Route(backends, names, splits, clients, limits))
    files["haproxy.cfg"] = files["haproxy.cfg"].replace(f"'Bearer {_KEY}'", '"Bearer ${LLAMA_API_KEY}"')
    if needs_key:
        # Written at the start.
        files["keys.map"] = ""
        files["keys.needed"] = "The API key is filled in when the container starts.\n"
        files["secrets.map"] = files["secrets.map"].replace(f" {_KEY}", "")
    if not resolves:
        files["names.wanted"] = "".join(f"{name_of(one)}\n" for one in workloads)
    return {START: _SCRIPT, **files}


def _backends(workloads: Sequence[Workload], name_of: Callable[[Workload], str]) -> list[Backend]:
    by_model: dict[str, list[Workload]] = {}
    for one in workloads:
        by_model.setdefault(one.model_id, []).append(one)
    return [
        Backend(
            model,
            same[0].display_name,
            same[0].tier or None,
            same[0].kind,
            tuple(
                Server(name_of(one), name_of(one), one.port, one.slots * one.replicas, patience=one.patience_seconds)
                for one in same
            ),
            _KEY if any(one.key_file for one in same) else "",
        )
        for model, same in sorted(by_model.items())
    ]
