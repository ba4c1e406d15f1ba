#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: begin_run
short_description: Inspect a host and take its lock for this run
version_added: 0.1.0
description:
  - Finds what runs servers on the host and as whom, as M(magi.llama.host_facts) does, and then takes the host's lock,
    as M(magi.llama.run_lock) does. One call in place of two.
  - What would keep the run from launching servers is an error before the lock is taken.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
  - magi.llama.lock
  - magi.llama.attributes.facts
options:
  service_manager:
    description: What to use. V(auto) is systemd where it is PID 1, else supervisor.
    type: str
    choices: [auto, systemd, supervisor]
    default: auto
  user:
    description: User that the servers shall run as. Without root it is always the connecting user.
    type: str
    required: true
  state_dir:
    description: The servers' state directory, in which a supervisor of our own may be.
    type: path
    required: true
  supervisord_path:
    description: A C(supervisord) to use in place of the one found in O(state_dir) or C(PATH).
    type: path
  api_key_file:
    description: File with the servers' API keys, looked at where servers are going to be launched.
    type: path
  user_groups:
    description: Further groups that the servers' user has or will have.
    type: list
    elements: str
    default: []
  validate_launch:
    description:
      - Whether the run is going to launch servers. That the connecting user may not use the service manager is an error
        then, and so is an O(api_key_file) that is missing, empty, or that the servers' user cannot read; in check mode
        that is a warning.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    details:
      - Takes no lock and waits for none.
  diff_mode:
    support: none
  idempotent:
    support: full
  facts:
    support: full
  action:
    support: full
    description: Waits on the controller, which knows what the run is.
seealso:
  - module: magi.llama.host_facts
  - module: magi.llama.run_lock
"""

EXAMPLES = r"""
- name: Inspect the host and take its lock
  magi.llama.begin_run:
    user: llama
    state_dir: /var/lib/magi-llama
"""

RETURN = r"""
holder:
  description: Another run that has the lock, V(null) where there is none.
  returned: always
  type: dict
ansible_facts:
  description: The fact C(llama_host).
  returned: always
  type: dict
  contains:
    llama_host:
      description: What the roles need to know of the host.
      type: dict
      contains:
        service_manager:
          description: C(systemd) or C(supervisor).
          type: str
          sample: systemd
        service_manager_missing:
          description: Whether it has yet to be installed.
          type: bool
        systemd:
          description: Whether PID 1 is systemd.
          type: bool
        systemd_version:
          description: Version of systemd, V(null) where it is not PID 1.
          type: int
          sample: 257
        supervisord:
          description: Path of C(supervisord), V(null) where there is none.
          type: str
          sample: /usr/bin/supervisord
        root:
          description: Whether the module runs as root.
          type: bool
        user:
          description: User that the servers run as.
          type: str
          sample: llama
        group:
          description: That user's primary group, or the user's name where the user does not exist yet.
          type: str
          sample: llama
        user_exists:
          description: Whether that user exists.
          type: bool
        user_is_ours:
          description: Whether that user was made by the role servers, which says so in the user's comment.
          type: bool
        api_key_stamp:
          description: A text that changes when the file with the API keys does, empty where there is none.
          type: str
          sample: "65.1795322818849461308.2179077"
        stray_variables:
          description: Names of variables that systemd sets for every service, and that llama-server would obey.
          type: list
          elements: str
          sample: [LLAMA_ARG_CTX_SIZE]
"""

from ansible_collections.magi.llama.plugins.module_utils._arguments.begin_run import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import Run, acquire, describe_holder
from ansible_collections.magi.llama.plugins.module_utils._launch.api_keys import check_key_file
from ansible_collections.magi.llama.plugins.module_utils._services.host_facts import host_facts, refuse_without_root


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = {**module.params, "state_dir": plain_path(module.params["state_dir"])}
    facts = host_facts(given, module.get_bin_path)
    if given["validate_launch"]:
        refuse_without_root(facts)
        if given["api_key_file"]:
            try:
                facts["api_key_stamp"] = check_key_file(given["api_key_file"], facts["user"], given["user_groups"])
            except MagiError as error:
                if not module.check_mode:
                    raise
                # It may be put there in the real run.
                module.warn(str(error))
    # Last: all other errors are reported before anything is changed.
    other = None
    if not module.check_mode:
        this = Run(**given["run"])
        other = describe_holder(acquire(given["state_dir"], this, dead=given["dead"]), this.id)
    return {"changed": False, "holder": other, "ansible_facts": {"llama_host": facts}}


if __name__ == "__main__":
    main()
