#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: host_facts
short_description: Return the service manager and the servers' user on a host
version_added: 0.1.0
description:
  - Finds the host's service manager, whether the connecting user may use it, and whether the servers' user exists.
  - Faster than gathering all facts. M(magi.llama.begin_run) does the same and acquires the host's lock.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
  - magi.llama.attributes.facts
options:
  service_manager:
    description: The service manager to use. V(auto) is systemd if it is PID 1, else supervisor.
    type: str
    choices: [auto, systemd, supervisor, container]
    default: auto
  user:
    description: User that runs the servers. Without root it is always the connecting user.
    type: str
    required: true
  state_dir:
    description: The servers' state directory, which may contain the collection's own supervisor.
    type: path
    required: true
  supervisord_path:
    description: Path of C(supervisord), by default the one found in O(state_dir) or C(PATH).
    type: path
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  facts:
    support: full
seealso:
  - module: magi.llama.begin_run
"""

EXAMPLES = r"""
- name: Inspect the host
  magi.llama.host_facts:
    user: llama
    state_dir: /var/lib/magi-llama
"""

RETURN = r"""
ansible_facts:
  description: The fact C(llama_host).
  returned: always
  type: dict
  contains:
    llama_host:
      description: Facts about the host that the roles use.
      type: dict
      contains:
        service_manager:
          description: C(systemd), C(supervisor) or C(container).
          type: str
          sample: systemd
        service_manager_missing:
          description: Whether the service manager still has to be installed.
          type: bool
        systemd:
          description: Whether PID 1 is systemd.
          type: bool
        systemd_version:
          description: Version of systemd, V(null) if it is not PID 1.
          type: int
          sample: 257
        supervisord:
          description: Path of C(supervisord), V(null) if it is not installed.
          type: str
          sample: /usr/bin/supervisord
        venv_missing:
          description: Whether the host's python3 cannot make a virtual environment for supervisor.
          returned: if supervisor has to be installed
          type: bool
        root:
          description: Whether the module runs as root.
          type: bool
        user:
          description: User that the servers run as.
          type: str
          sample: llama
        group:
          description: That user's primary group, or the user's name if the user does not exist yet.
          type: str
          sample: llama
        user_exists:
          description: Whether that user exists.
          type: bool
        sets_groups:
          description: Whether launch configs of the service manager give servers groups besides those of the user.
          type: bool
          sample: true
        user_is_ours:
          description: Whether the role servers created that user, according to the user's comment field.
          type: bool
        user_ids:
          description: >-
            Numbers of that user, its primary group, and its further groups; empty if the user does not exist yet.
          type: list
          elements: int
          sample: [997, 997, 44]
        api_key_stamp:
          description: A text that changes with the API key file; empty if there is no such file.
          type: str
          sample: "65.1795322818849461308.2179077"
        hands_over_keys:
          description: >-
            Whether the service manager reads the API key file for the servers, so that root alone must be able to read
            it; false without such a file.
          type: bool
        python:
          description: Path of the host's own Python, which is in no virtual environment; V(null) if it has none.
          returned: if PID 1 is systemd
          type: str
          sample: /usr/bin/python3
        user_namespaces:
          description: Whether servers under systemd may have a user namespace of their own.
          type: bool
        stray_variables:
          description: Names of variables that systemd sets for every service, and that llama-server would obey.
          type: list
          elements: str
          sample: [LLAMA_ARG_CTX_SIZE]
"""

from ansible_collections.magi.llama.plugins.module_utils._arguments.host_facts import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._services.host_facts import host_facts


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = {**module.params, "state_dir": plain_path(module.params["state_dir"])}
    return {"changed": False, "ansible_facts": {"llama_host": host_facts(given, module.get_bin_path)}}


if __name__ == "__main__":
    main()
