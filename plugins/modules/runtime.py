#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: runtime
short_description: Find or provide llama-server and say what it is
version_added: 0.1.0
description:
  - Finds llama-server on a host, or provides it, and asks the binary for its version and its flags.
  - A build with known remote holes, and settings on the host that change every llama-server, are warnings.
  - No repository is added to the host's package manager and nothing is compiled.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  method:
    description:
      - V(existing) uses the binary at O(path).
      - V(package) installs the distribution's package from the repositories that the host has; needs root.
      - >-
        V(portable) unpacks Debian's signed packages into O(prefix), with a loader and libraries of their own, so that
        they run on an older Debian. Needs no root where O(prefix) is a folder of the user's.
      - V(release) unpacks the archive at O(release_url) into O(prefix), once its sha256 is right.
      - >-
        V(auto) takes the first of these that works, in this order. What an earlier run put into O(prefix) comes before
        a package. A binary that is at O(path) and does not run is an error, as it was put there to be used.
    type: str
    choices: [auto, existing, package, portable, release]
    default: auto
  path:
    description: The binary for V(existing).
    type: path
    default: /usr/local/bin/llama-server
  prefix:
    description:
      - Folder for V(portable) and V(release). It is built next to its place and renamed.
      - The previous one is kept with C(.previous) added to its name, unless the one that is kept there has worked and
        the one to be kept has not.
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
  upgrade:
    description:
      - With V(portable), fetch the packages that O(portable_suite) has now. Otherwise a prefix that holds packages of
        that suite is kept as it is.
    type: bool
    default: false
  stage:
    description:
      - If another binary would replace the one in O(prefix), stage it next to it, with C(.staged) added to the
        name and return what it is. A plan can then be made with its flags before anything is touched.
      - A later run without O(stage) puts it in place.
      - In check mode it is laid into a temporary folder and removed.
    type: bool
    default: false
  install_if_missing:
    description:
      - Whether to install a binary if none is installed yet. Otherwise O(stage) stages that one too, and a package
        is only looked for.
    type: bool
    default: true
  cache_path:
    description:
      - File on the host that keeps what the binary said, so that an unchanged one is only asked for its version.
      - One that cannot be written is done without.
    type: path
attributes:
  check_mode:
    support: full
    details: Where the binary would be installed first, its version is unknown and its flags are empty, unless O(stage).
  diff_mode:
    support: full
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Take the first way that works
  magi.llama.runtime:

- name: Use the build that the image brings
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
  description: Every method that was tried, in order, and how it went.
  returned: success
  type: list
  elements: dict
  contains:
    method:
      description: The method.
      type: str
      sample: existing
    result:
      description: What was found, or why the method does not work here.
      type: str
      sample: there is no llama-server at /usr/local/bin/llama-server.
placed:
  description: Whether another binary took the place of the one in O(prefix).
  returned: success
  type: bool
  sample: false
ansible_facts:
  description: The fact C(llama_runtime).
  returned: success
  type: dict
  contains:
    llama_runtime:
      description: What the binary is. In check mode it may not be there yet.
      type: dict
      contains:
        path:
          description: The binary, or where it will be.
          type: str
          sample: /opt/magi-llama/runtime/bin/llama-server
        installed:
          description: Whether it is there. All that follows is unknown while it is not.
          type: bool
          sample: true
        version:
          description: The version that it calls itself.
          type: str
          sample: 0.7.0
        build:
          description: Upstream's build number, null where the binary does not know it.
          type: int
          sample: 11669
        commit:
          description: Upstream's commit, null where the binary does not know it.
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
          description: Changes whenever the binary does; servers are restarted then.
          type: str
          sample: 0f343b0931126a20
        flags:
          description: >-
            The flags by their long name in snake_case. Keys of each, left out where empty: spelling, value (whether it
            takes one), words, choices, auto, joined, negation, aliases, shorts, removed, instead.
          type: dict
          sample: {"ctx_size": {"shorts": ["c"], "spelling": "--ctx-size", "value": true}}
        staged:
          description: Whether the binary is staged next to the prefix; all other values are those of the staged one.
          type: bool
          sample: false
        source:
          description: The method that provided it.
          type: str
          sample: portable
        warnings:
          description: Known holes of this build, and settings on the host that change it.
          type: list
          elements: str
          sample: []
"""

import os

from ansible_collections.magi.llama.plugins.module_utils._arguments.runtime import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.commands import run_command
from ansible_collections.magi.llama.plugins.module_utils._runtime.install import ensure
from ansible_collections.magi.llama.plugins.module_utils._runtime.requests import Request


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = module.params
    request = Request(
        path=given["path"],
        prefix=os.path.normpath(given["prefix"]),
        portable_suite=given["portable_suite"],
        portable_mirror=given["portable_mirror"],
        release_url=given["release_url"],
        release_sha256=given["release_sha256"],
        upgrade=given["upgrade"],
        stage=given["stage"],
        install_if_missing=given["install_if_missing"],
        check=module.check_mode,
    )
    outcome = ensure(request, given["method"], run_command, given["cache_path"])
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
