#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: model_fetch
short_description: Copy model files to many hosts, which hand their pieces on to each other
version_added: 0.1.0
description:
  - A step of distributing model files from the controller, a host or a mirror to all hosts of a play. The role
    C(models) runs the steps in order, each on all hosts.
  - A file is copied in pieces, each with its SHA-256. A source shows each piece to one host first, and for the time of
    the run the hosts hand on what they have, by a small HTTP server with a token of the run.
  - What has been copied of a file is in C(FILE.part) until it is complete. The next run continues with it.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  state:
    description:
      - V(inspected) finds out which of the files the host lacks. Nothing is read but names and sizes.
      - V(listed) lists the pieces of the files that some host lacks, where this host is the one to do so. It reads a
        file once and keeps the list in C(FILE.pieces).
      - V(started) starts the process that fetches and hands out pieces.
      - V(fetched) waits until the host has all its files, and shows the progress.
      - V(stopped) ends the process.
    type: str
    choices: [inspected, listed, started, fetched, stopped]
    required: true
  dest:
    description: The models folder on the host. It has to exist; files get its owner and permissions.
    type: path
    required: true
  models:
    description:
      - Files to copy, by their path below the models folder, their name or their id. A model's shards are copied
        together.
      - By default the files that O(profile) names, with the projectors in their folders.
    type: list
    elements: str
    default: []
  profile:
    description: The profile, as in the fact C(llama_profile).
    type: dict
  manifest_file:
    description: The manifest on the controller, which says which files there are, and their SHA-256.
    type: str
    default: ""
  manifest_public_key:
    description:
      - Public key of minisign, or the path of its file on the controller. A manifest without a valid signature is then
        refused, and files that it does not have are not copied.
    type: str
    default: ""
  source:
    description:
      - A folder on the controller, whose pieces come through Ansible's connection, or the address of an HTTP or HTTPS
        mirror that knows C(Range) and has a C(FILE.pieces) next to each file.
      - By default, and for files that it does not have, the hosts that have a file.
    type: str
    default: ""
  address:
    description: How the other hosts reach this one.
    type: str
  port_range_start:
    description: First port for handing out pieces. The first free one of the range is used.
    type: int
    default: 8190
  port_range_end:
    description: Last port of the range.
    type: int
    default: 8199
  rate_up:
    description: Most that the host hands out in a second, such as V(20MB), and at least V(1MB). Empty for no limit.
    type: str
    default: ""
  rate_down:
    description: Most that the host fetches in a second, as O(rate_up).
    type: str
    default: ""
  reserve:
    description: What is to stay free on the disk. A run that would leave less copies nothing.
    type: str
    default: 1GiB
  stall_seconds:
    description: Seconds without a new piece after which the task fails. What has been copied is kept.
    type: int
    default: 300
attributes:
  check_mode:
    support: full
    details:
      - Only V(inspected) looks at the host. The other steps do nothing.
  diff_mode:
    support: none
  idempotent:
    support: full
  action:
    support: full
    description: Runs partly on the controller, which brings the hosts together and shows the progress.
seealso:
  - module: magi.llama.gguf_registry
"""

EXAMPLES = r"""
- name: Copy the models that the profile names from a folder on the controller
  hosts: models
  gather_facts: false
  tasks:
    - name: Copy them
      ansible.builtin.import_role:
        name: magi.llama.models
      vars:
        models_source: /srv/models
        models_dest: /models
"""

RETURN = r"""
msg:
  description: What was done, in one sentence.
  returned: always
  type: str
  sample: "fetched 40.0 GB: 5.0 GB from the source, 35.0 GB from other hosts"
files:
  description: Each file that the run knows.
  returned: with O(state=inspected)
  type: list
  elements: dict
  contains:
    name:
      description: Its path below the models folder.
      type: str
    size:
      description: Its bytes by the manifest, V(null) if that does not say.
      type: int
    sha256:
      description: Its SHA-256 by the manifest, V(null) if that does not have it.
      type: str
    wanted:
      description: Whether the host is to have it.
      type: bool
    state:
      description: V(present), V(missing), or V(differs) where another file has its name.
      type: str
      sample: missing
listed:
  description: By file that this host has listed, its pieces and where it is had from.
  returned: with O(state=listed)
  type: dict
started:
  description: Whether the host takes part in the run.
  returned: with O(state=started)
  type: bool
status:
  description: How far the host is.
  returned: with O(state=fetched), where it takes part
  type: dict
  contains:
    complete:
      description: Whether all its files are there.
      type: bool
    error:
      description: What has ended it, empty otherwise.
      type: str
    wanted:
      description: Bytes of its files.
      type: int
    have:
      description: Bytes of them that are there.
      type: int
    resumed:
      description: Bytes that an earlier run had copied.
      type: int
    source:
      description: Bytes that came from hosts that had the file before, or from the mirror.
      type: int
    hosts:
      description: Bytes that came from hosts that were getting the file too.
      type: int
    controller:
      description: Bytes that came through Ansible's connection.
      type: int
    sent:
      description: Bytes that were handed out to other hosts.
      type: int
    port:
      description: The port at which pieces are handed out.
      type: int
    hosts_reached:
      description: Number of other hosts that it has reached.
      type: int
    dropped:
      description: By host that sent something else than was asked for, what. Nothing more was taken from it.
      type: dict
    unreached:
      description: By host that it could not reach, why.
      type: dict
    idle_seconds:
      description: Seconds since the last new piece.
      type: float
    quiet_seconds:
      description: Seconds since the last new piece, and since a complete file was last read for its SHA-256.
      type: float
    beat:
      description: A number that changes while the process works.
      type: int
    pieces:
      description: By number of a file, the pieces that are there, as a bitmap in hexadecimal digits.
      type: dict
stopped:
  description: Whether there was a process to end.
  returned: with O(state=stopped)
  type: bool
"""

import contextlib
import json
import os

from ansible_collections.magi.llama.plugins.module_utils._arguments.model_fetch import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.ownership import is_trusted
from ansible_collections.magi.llama.plugins.module_utils._distribution.host_files import inspect_files
from ansible_collections.magi.llama.plugins.module_utils._distribution.job import parse_job
from ansible_collections.magi.llama.plugins.module_utils._distribution.owner import as_owner_of
from ansible_collections.magi.llama.plugins.module_utils._distribution.pieces import pieces_of
from ansible_collections.magi.llama.plugins.module_utils._distribution.wanted import check_name
from ansible_collections.magi.llama.plugins.module_utils._distribution.worker import (
    deliver,
    look_at,
    own_addresses,
    start_worker,
    stop_worker,
)


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    steps = {"inspected": _inspect, "listed": _list, "started": _start, "fetched": _look, "stopped": _stop}
    module.params["dest"] = plain_path(module.params["dest"])
    try:
        # The connecting user's files.
        batches = [(_taken(batch["path"]), batch["pieces"]) for batch in module.params["arrived"]]
        with as_owner_of(module.params["dest"]):
            return {"changed": False, **steps[module.params["state"]]({**module.params, "arrived": batches})}
    except OSError as error:
        raise MagiError(f"{error.filename or module.params['dest']}: {error.strerror or error}") from error


def _taken(path: str) -> bytes:
    with open(path, "rb") as stream:
        data = stream.read()
    # Its folder is removed at the end.
    with contextlib.suppress(OSError):
        os.unlink(path)
    return data


def _inspect(given: dict) -> dict:
    files = inspect_files(given["dest"], given["files"])
    missing = sum(file["wanted"] and file["state"] == "missing" for file in files)
    return {"files": files, "msg": f"{missing} files are missing"}


def _list(given: dict) -> dict:
    listed = {}
    for file in given["files"]:
        path = os.path.join(given["dest"], check_name(file["name"]))
        # In a folder of another user root could be led elsewhere.
        pieces = pieces_of(path, keep=is_trusted(os.path.dirname(path)))
        listed[file["name"]] = {"pieces": pieces.as_dict(), "from": "host", "mirror": ""}
    return {"listed": listed, "msg": f"{len(listed)} files listed"}


def _start(given: dict) -> dict:
    job = json.loads(given["job"])
    job["addresses"] = own_addresses(given["address"])
    start_worker(parse_job(job))
    return {"started": True, "msg": "started"}


def _look(given: dict) -> dict:
    for data, pieces in given["arrived"]:
        deliver(given["dest"], data, pieces)
    status = look_at(given["dest"], given["run_id"], given["slice"])
    return {"status": {key: value for key, value in status.items() if key != "run"}, "msg": "looked"}


def _stop(given: dict) -> dict:
    return {"stopped": stop_worker(given["dest"], given["run_id"]), "msg": "stopped"}


if __name__ == "__main__":
    main()
