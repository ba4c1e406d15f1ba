#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: runtime
short_description: Find or install llama-server and return its version and flags
version_added: 0.1.0
description:
  - Finds llama-server on a host, or installs it, and reads its version and flags from the binary.
  - Warns of builds with known remotely exploitable vulnerabilities, and of settings on the host that change every
    llama-server.
  - No repository is added to the host's package manager and nothing is compiled.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  method:
    description:
      - V(existing) uses the binary at O(path).
      - >-
        V(package) installs the distribution's package from the host's configured repositories, with the Vulkan backend
        where the host has a GPU, also next to a llama-server that apt has installed already; needs root.
      - >-
        V(portable) unpacks Debian's signed packages into O(prefix), with their own loader and libraries, so that
        they run on an older Debian. Needs no root if the user can write to O(prefix).
      - V(release) verifies the sha256 of the archive at O(release_url) and unpacks it into O(prefix).
      - >-
        V(image) loads O(image_archive) or pulls O(image) with podman, and pins the image by its id. It is for servers
        that run as containers, and V(auto) is the same where one of the two is set.
      - >-
        V(auto) uses the first of these that works, in this order. A prefix installed by an earlier run takes precedence
        over a package. A binary at O(path) that does not run is an error.
    type: str
    choices: [auto, existing, package, portable, release, image]
    default: auto
  path:
    description: The binary for V(existing).
    type: path
    default: /usr/local/bin/llama-server
  prefix:
    description:
      - Folder for V(portable) and V(release). It is built under a temporary name next to it and renamed.
      - The previous prefix is kept with the suffix C(.previous). A prefix that never worked does not replace a kept one
        that did.
    type: path
    default: /opt/magi-llama/runtime
  portable_suite:
    description: Debian suite that V(portable) takes packages from.
    type: str
    default: forky
  portable_mirror:
    description: Debian mirror for V(portable). By default the one that the host's own apt uses.
    type: str
  release_url:
    description: Address of a tar archive that holds llama-server, C(https://), C(http://) or C(file://).
    type: str
  release_sha256:
    description: The archive's sha256 in hexadecimal. Required with O(release_url).
    type: str
  image:
    description: Container image with llama-server, best with its digest (C(name@sha256:…)).
    type: str
  image_archive:
    description:
      - File on the host from C(podman save) or C(docker save), loaded instead of pulling O(image). O(image) is then the
        name of the image in it, by default the last one.
    type: path
  image_devices:
    description:
      - Devices that containers with layers on a GPU get, as C(podman run --device) takes them.
      - By default C(nvidia.com/gpu=all) where the host has a CDI specification of NVIDIA, and the other GPUs' devices.
    type: list
    elements: str
  upgrade:
    description:
      - With V(image), pull O(image) again where it has no digest.
      - With V(portable), fetch the packages that O(portable_suite) has now. Otherwise a prefix that holds packages of
        that suite is kept.
    type: bool
    default: false
  stage:
    description:
      - If the binary in O(prefix) would be replaced, stage the new one next to it with the suffix C(.staged), and
        return its version and flags. A plan can then be made with its flags before anything is changed.
      - A later run without O(stage) moves it into place.
      - In check mode it is unpacked into a temporary folder and removed.
    type: bool
    default: false
  install_if_missing:
    description:
      - Whether to install a binary if none is installed yet. If false, O(stage) applies to a first installation too,
        and a package is only searched for.
    type: bool
    default: true
  cache_path:
    description:
      - File on the host that caches the binary's output, so that only the version of an unchanged binary is queried.
      - If it cannot be written, nothing is cached.
    type: path
  user:
    description:
      - User that the servers run as. As root, llama-server is asked what it is as this user; without one, or where that
        user does not exist yet, as one without rights.
    type: str
  binary_owner:
    description: User besides root who may own llama-server and the folders above it.
    type: str
  state_dir:
    description: The servers' state directory, whose lock this run holds; without it, no lock is renewed.
    type: path
attributes:
  check_mode:
    support: full
    details: If the binary is not installed yet, its version is unknown and its flags are empty, unless O(stage) is set.
  diff_mode:
    support: full
  idempotent:
    support: full
  action:
    support: full
    description: Passes the id of the run to the host.
"""

EXAMPLES = r"""
- name: Use the first method that works
  magi.llama.runtime:

- name: Use the build in the image
  magi.llama.runtime:
    method: existing
    path: /opt/llama.cpp/bin/llama-server

- name: Install without root
  magi.llama.runtime:
    method: portable
    prefix: ~/.local/share/magi-llama/runtime
    cache_path: ~/.cache/magi-llama/runtime.json

- name: Install an archive from a mirror in a closed network
  magi.llama.runtime:
    method: release
    release_url: https://mirror.example.com/llama.cpp/llama-b9305-bin-ubuntu-x64.tar.gz
    release_sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
"""

RETURN = r"""
method:
  description: The method that provided the binary.
  returned: success
  type: str
  sample: portable
tried:
  description: Every method that was tried, in order, with its result.
  returned: success
  type: list
  elements: dict
  contains:
    method:
      description: The method.
      type: str
      sample: existing
    result:
      description: What was found, or why the method does not work on this host.
      type: str
      sample: there is no llama-server at /usr/local/bin/llama-server.
placed:
  description: Whether the binary in O(prefix) was replaced.
  returned: success
  type: bool
  sample: false
ansible_facts:
  description: The fact C(llama_runtime).
  returned: success
  type: dict
  contains:
    llama_runtime:
      description: Facts about the binary. In check mode it may not be installed yet.
      type: dict
      contains:
        path:
          description: Path of the binary, also if it is not installed yet.
          type: str
          sample: /opt/magi-llama/runtime/bin/llama-server
        installed:
          description: Whether it is installed. If not, the following values are unknown.
          type: bool
          sample: true
        version:
          description: Version, as printed by the binary.
          type: str
          sample: 0.7.0
        build:
          description: Upstream's build number, V(null) if the binary does not print it.
          type: int
          sample: 11669
        commit:
          description: Upstream's commit, V(null) if the binary does not print it.
          type: str
          sample: 63248fc3e
        flavour:
          description: V(llama.cpp) or its fork V(ik_llama.cpp).
          type: str
          sample: llama.cpp
        sha256:
          description: The file's sha256.
          type: str
          sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
        identity:
          description: A digest that changes with the binary; a change restarts the servers.
          type: str
          sample: 0f343b0931126a20
        openmp:
          description: >-
            Whether its threads wait for each other in GNU OpenMP, by the libraries that it needs; V(null) if that is
            unknown.
          type: bool
          sample: true
        flags:
          description: >-
            The flags by their long name in snake_case. Keys of each, omitted if empty: spelling, value (whether it
            takes one), words, choices, auto, joined, negation, aliases, shorts, removed, instead.
          type: dict
          sample: {"ctx_size": {"shorts": ["c"], "spelling": "--ctx-size", "value": true}}
        image:
          description: Its container image, with C(id), C(reference), C(devices) and C(unset) variables.
          returned: with the method V(image)
          type: dict
        staged:
          description: Whether the binary is staged next to the prefix; all other values are those of the staged one.
          type: bool
          sample: false
        source:
          description: The method that provided it.
          type: str
          sample: portable
        warnings:
          description: Known vulnerabilities of this build, and settings on the host that change it.
          type: list
          elements: str
          sample: []
"""

import os
from collections.abc import Callable
from functools import partial

from ansible_collections.magi.llama.plugins.module_utils._arguments.runtime import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.commands import ids_of, run_command
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path, require_file_path
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import keep_renewed
from ansible_collections.magi.llama.plugins.module_utils._runtime.install import ensure
from ansible_collections.magi.llama.plugins.module_utils._runtime.requests import Request, secrets_in


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = module.params
    if given["cache_path"]:
        require_file_path(given["cache_path"], "runtime_cache_path")
    state_dir = plain_path(given["state_dir"]) if given["state_dir"] and not module.check_mode else None
    with keep_renewed(state_dir, given["run_id"]) as confirm:
        return _provide(module, confirm)


def _provide(module: Module, confirm: Callable[[], None]) -> dict:
    given = module.params
    for url in (given["release_url"], given["portable_mirror"]):
        # The result repeats the arguments where a run is verbose.
        module.no_log_values.update(secrets_in(url or ""))
    request = Request(
        path=given["path"],
        prefix=os.path.normpath(given["prefix"]),
        portable_suite=given["portable_suite"],
        portable_mirror=given["portable_mirror"],
        release_url=given["release_url"],
        release_sha256=given["release_sha256"],
        image=given["image"],
        image_archive=given["image_archive"],
        image_devices=given["image_devices"],
        upgrade=given["upgrade"],
        stage=given["stage"],
        install_if_missing=given["install_if_missing"],
        check=module.check_mode,
        owner=given["binary_owner"],
        confirm=confirm,
    )
    ask = partial(run_command, user=ids_of(given["user"]))
    outcome = ensure(request, given["method"], run_command, given["cache_path"], ask)
    for warning in outcome.fact["warnings"]:
        module.warn(warning)
    result = {
        "changed": outcome.changed,
        "placed": outcome.changed and not given["stage"] and not module.check_mode,
        "method": outcome.method,
        "tried": outcome.tried,
        "ansible_facts": {"llama_runtime": outcome.fact},
    }
    if module._diff:
        result["diff"] = {"before": dict(outcome.before), "after": dict(outcome.after)}
    return result


if __name__ == "__main__":
    main()
