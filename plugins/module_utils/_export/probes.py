# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The checks of a container: a script for sh with curl or wget, which images have, and its arguments."""

from __future__ import annotations

import json

from .._health.probe import TOKEN_REQUESTS
from .workloads import KEY_FILE, Workload

FILE = "probe.sh"
PLACE = "/run/magi-probe"
READY_SECONDS = 4
# What alive takes on top of the server's patience: two looks at its counters.
ALIVE_EXTRA_SECONDS = 15
# How long a server that is to stop may finish its requests, as gateways on hosts give one.
DRAIN_SECONDS = 300
# Until gateways and proxies know that a container takes no more requests.
LEAVE_SECONDS = 5
# The last look of a drain may begin at its end.
DRAIN_EXTRA_SECONDS = 15
SCRIPT = f"""#!/bin/sh
# Ansible managed (magi.llama): changes made here are lost in the next run
# probe.sh ready PORT MODEL                     the server on this port names this model
# probe.sh alive PORT MODEL PATH BODY SECONDS   it answers with a token, or computes meanwhile
# probe.sh drain PORT MODEL SECONDS             returns when it is idle, at the latest after so long
set -u
what=$1 url=http://127.0.0.1:$2 model=$3

# ask SECONDS URL [BODY]: no list of processes has the key.
ask() {{
  if command -v curl >/dev/null; then
    key 'Authorization: Bearer ' | curl --silent --fail --max-time "$1" -H @- \\
      ${{3:+-H 'Content-Type: application/json' --data "$3"}} "$2"
  else
    # It takes neither a header nor settings from its input.
    settings=$(mktemp) || return 1
    key 'header = Authorization: Bearer ' >"$settings"
    timeout "$1" wget --config="$settings" -q -t 1 -O - \\
      ${{3:+--header='Content-Type: application/json' --post-data="$3"}} "$2"
    set -- $? "$settings"
    rm -f "$2"
    return "$1"
  fi
}}
# The first key of the file, behind a text; nothing without one. Lines with # are comments, as for the servers.
key() {{
  if [ -r {KEY_FILE} ]; then
    sed -n "/^#/d;s/^[[:space:]]*\\([^[:space:]].*\\)\\$/$1\\1/p" {KEY_FILE} | head -n 1
  fi
}}

ready() {{ ask 3 "$url/v1/models" | grep -qF "\\"id\\":\\"$model\\""; }}
# A server whose slots are all taken answers late: it is alive as long as it decodes.
decoded() {{ ask 5 "$url/metrics" | grep '^llamacpp:n_decode_total '; }}
# Whether a slot computes. Without /slots the counters say it; without both nothing does, as where no server runs.
busy() {{
  if slots=$(ask 5 "$url/slots"); then
    echo "$slots" | grep -q '"is_processing": *true'
  else
    ask 5 "$url/metrics" | grep -q '^llamacpp:requests_[a-z]* 0*[1-9]'
  fi
}}

case $what in
ready) ready ;;
alive)
  ask "$6" "$url$4" "$5" >/dev/null && exit 0
  before=$(decoded) || exit 1
  sleep 2
  after=$(decoded) || exit 1
  [ "$before" != "$after" ]
  ;;
drain)
  end=$(($(date +%s) + $4)) idle=0
  # Requests come until all know that this server leaves; a queued one begins just after another has ended.
  sleep {LEAVE_SECONDS}
  while [ "$idle" -lt 2 ] && [ "$(date +%s)" -lt "$end" ]; do
    if busy; then idle=0; else idle=$((idle + 1)); fi
    sleep 1
  done
  ;;
*) echo "probe.sh: $what is none of ready, alive and drain" >&2; exit 2 ;;
esac
"""


def ready_command(workload: Workload) -> list[str]:
    """Whether the server names the planned model: another process on its port is not ready."""
    return ["sh", f"{PLACE}/{FILE}", "ready", str(workload.port), workload.model_id]


def alive_command(workload: Workload) -> list[str]:
    """Whether the server answers with one token: one that hangs still returns 200 from /health."""
    path, body, _field = TOKEN_REQUESTS.get(workload.kind, TOKEN_REQUESTS["model"])
    body = {**body, "n_predict": 1} if "n_predict" in body else body
    arguments = [str(workload.port), workload.model_id, path, json.dumps(body), str(workload.patience_seconds)]
    return ["sh", f"{PLACE}/{FILE}", "alive", *arguments]


def drain_command(workload: Workload) -> list[str]:
    """Waits until the server is idle: at a TERM it ends streams at once."""
    return ["sh", f"{PLACE}/{FILE}", "drain", str(workload.port), workload.model_id, str(DRAIN_SECONDS)]
