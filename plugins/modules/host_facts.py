#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: host_facts
short_description: Find out what runs servers on a host, and as which user
version_added: 0.1.0
description:
  - Finds the host's service manager, whether the connecting user may use it, and whether the servers' user exists.
  - One short call in place of gathering all facts, which with O(lock) takes the host's lock as well.
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
  lock:
    description: Take the host's lock, as M(magi.llama.run_lock) does, once all else is in order.
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
  - module: magi.llama.run_lock
"""

EXAMPLES = r"""
- name: Inspect the host
  magi.llama.host_facts:
    user: llama
    state_dir: /var/lib/magi-llama
"""

RETURN = r"""
holder:
  description: The run that has the lock which O(lock) asks for, V(null) where it is this one or none.
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

import grp
import os
import pwd

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import (
    FILLED_IN,
    WAITING,
    Run,
    acquire,
    describe_holder,
)
from ansible_collections.magi.llama.plugins.module_utils._launch.api_keys import check_key_file
from ansible_collections.magi.llama.plugins.module_utils._services.table import MANAGERS, all_managers, choose_manager

# What the role servers writes as the comment of a user that it makes.
USER_COMMENT = "magi.llama"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "service_manager": {"type": "str", "choices": ["auto", *MANAGERS], "default": "auto"},
            "user": {"type": "str", "required": True},
            "state_dir": {"type": "path", "required": True},
            "supervisord_path": {"type": "path"},
            "api_key_file": {"type": "path", "no_log": False},
            "user_groups": {"type": "list", "elements": "str", "default": []},
            "validate_launch": {"type": "bool", "default": False},
            "lock": {"type": "bool", "default": False},
            **WAITING,
            **FILLED_IN,
        },
        supports_check_mode=True,
    )
    given = module.params
    given["state_dir"] = plain_path(given["state_dir"])
    manager = choose_manager(given["service_manager"])
    # A folder that it cannot use is said here, before anything is touched.
    try:
        manager.check(given["state_dir"])
    except MagiError as error:
        module.fail_json(msg=str(error))
    root = os.geteuid() == 0
    if given["validate_launch"] and manager.needs_root and not root:
        rootless = " or ".join(one.name for one in all_managers() if not one.needs_root)
        module.fail_json(
            msg=f"This host runs {manager.name}, whose launch configs only root may write: run with --become (or "
            f"ansible_become in the inventory), or set servers_service_manager to {rootless}."
        )
    user = given["user"] if root else pwd.getpwuid(os.geteuid()).pw_name
    try:
        entry = pwd.getpwnam(user)
        group, comment = grp.getgrgid(entry.pw_gid).gr_name, entry.pw_gecos
        user_exists = True
    except KeyError:
        group, comment, user_exists = user, "", False
    stamp = ""
    if given["validate_launch"] and given["api_key_file"]:
        try:
            stamp = check_key_file(given["api_key_file"], user, given["user_groups"])
        except MagiError as error:
            if not module.check_mode:
                module.fail_json(msg=str(error))
            # It may be put there in the real run.
            module.warn(str(error))
    # Last: all other errors are reported before anything is changed.
    other = None
    if given["lock"] and not module.check_mode:
        if given["run"] is None:
            module.fail_json(msg="run is filled in by the action plugin of this module: call it from a playbook.")
        run = Run(**given["run"])
        try:
            other = describe_holder(acquire(given["state_dir"], run, dead=given["dead"]), run.id)
        except MagiError as error:
            module.fail_json(msg=str(error))
    candidates = [given["supervisord_path"], module.get_bin_path("supervisord")]
    found: dict = {}
    for one in all_managers():
        found.update(one.facts(given["state_dir"], candidates))
    module.exit_json(
        changed=False,
        holder=other,
        ansible_facts={
            "llama_host": {
                "service_manager": manager.name,
                "service_manager_missing": manager.is_missing(found),
                "root": root,
                "user": user,
                "group": group,
                "user_exists": user_exists,
                "user_is_ours": root and comment == USER_COMMENT,
                "api_key_stamp": stamp,
                **found,
            }
        },
    )


if __name__ == "__main__":
    main()
