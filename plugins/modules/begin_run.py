#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: begin_run
short_description: Inspect a host and acquire its lock for this run
version_added: 0.1.0
description:
  - Combines M(magi.llama.host_facts) and M(magi.llama.run_lock) in one call.
  - Anything that would prevent the run from launching servers is an error before the lock is acquired.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
  - magi.llama.lock
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
  api_key_file:
    description:
      - File with the servers' API keys, checked with O(validate_launch).
      - V(auto) is the file C(api-keys) in O(state_dir). If it is missing, it is generated with one random key.
    type: path
  api_keys:
    description:
      - Keys to write to O(api_key_file), which has no others then. A file that was written otherwise is an error.
      - Without them the file is used as it is.
    type: list
    elements: str
    default: []
  user_groups:
    description: Further groups of the servers' user, existing or planned.
    type: list
    elements: str
    default: []
  allow_root:
    description: Accept root as O(user) with O(validate_launch).
    type: bool
    default: false
  watchdog:
    description: >-
      What the watchdog is to do about servers that hang. If it is not V(off), a service manager without timers is an
      error.
    type: str
    choices: ["off", report, restart]
    default: "off"
  validate_launch:
    description:
      - Whether the run will launch servers. If so, it is an error if the connecting user cannot use the service
        manager, if the servers would run as root without O(allow_root), or if O(api_key_file) is missing, contains no
        usable key, can be changed by every user or cannot be read by the servers' user; in check mode the latter is a
        warning.
    type: bool
    default: false
  backup:
    description:
      - Options of M(magi.llama.backup) as a dictionary, but for O(state_dir). With them the host's state is kept on the
        controller before anything is changed, in the same call. Only where there is a new backup and other keys are to
        be written to O(api_key_file), a second call writes them.
    type: dict
attributes:
  check_mode:
    support: full
    details:
      - Does not acquire a lock or wait for one.
  diff_mode:
    support: none
  idempotent:
    support: full
  facts:
    support: full
  action:
    support: full
    description: Waits on the controller, which identifies the run.
seealso:
  - module: magi.llama.host_facts
  - module: magi.llama.run_lock
"""

EXAMPLES = r"""
- name: Inspect the host and acquire its lock
  magi.llama.begin_run:
    user: llama
    state_dir: /var/lib/magi-llama
"""

RETURN = r"""
holder:
  description: The other run that holds the lock, V(null) if there is none.
  returned: always
  type: dict
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
          description: That user's primary group, or the user's name where the user does not exist yet.
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
          description: Whether that user was made by the role servers, which says so in the user's comment.
          type: bool
        user_ids:
          description: >-
            Numbers of that user, its primary group, and its further groups; empty if the user does not exist yet.
          type: list
          elements: int
          sample: [997, 997, 44]
        api_key_stamp:
          description: A text that changes when the file with the API keys does, empty where there is none.
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
        watchdog:
          description: Whether the host has a watchdog (M(magi.llama.watchdog)).
          type: bool
        stray_variables:
          description: Names of variables that systemd sets for every service, and that llama-server would obey.
          type: list
          elements: str
          sample: [LLAMA_ARG_CTX_SIZE]
"""

from ansible_collections.magi.llama.plugins.module_utils._archive.state import places, read_state, to_answer
from ansible_collections.magi.llama.plugins.module_utils._arguments.begin_run import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import Run, acquire, describe_holder
from ansible_collections.magi.llama.plugins.module_utils._launch.api_keys import (
    AUTO,
    check_key_file,
    generate_key_file,
    key_file,
    write_key_file,
)
from ansible_collections.magi.llama.plugins.module_utils._services.host_facts import host_facts, refuse_user
from ansible_collections.magi.llama.plugins.module_utils._services.table import find_manager


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = {**module.params, "state_dir": plain_path(module.params["state_dir"])}
    facts = host_facts(given, module.get_bin_path)
    keys = key_file(given["api_key_file"], given["state_dir"]) if given["validate_launch"] else None
    if keys:
        # The servers' user need not read a file that the service manager reads for it.
        facts["hands_over_keys"] = find_manager(facts["service_manager"]).key_path("a", keys) != keys
    has_own_keys = bool(keys) and (given["api_key_file"] == AUTO or bool(given["api_keys"]))
    if given["validate_launch"]:
        refuse_user(facts, given["allow_root"])
        if given["api_keys"]:
            # A first look, for errors before the lock is taken.
            write_key_file(keys or "empty", given["api_keys"], dry_run=True)
        if keys and not has_own_keys:
            try:
                facts["api_key_stamp"] = _check_keys(module, facts, keys)
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
    answer = {"changed": False, "holder": other, "ansible_facts": {"llama_host": facts}}
    # With the keys as they are.
    if given["backup"] is not None and other is None:
        answer["state"] = _state(given["backup"], given["state_dir"], None if module.check_mode else given["known"])
    if has_own_keys and other is None:
        # A call without backup writes them, once the controller has kept the state with the present ones.
        is_dry = module.check_mode or "files" in answer.get("state", {})
        answer["changed"], facts["api_key_stamp"] = _own_keys(keys, given["api_keys"], is_dry)
    return answer


def _own_keys(path: str, keys: list[str], is_dry: bool) -> tuple[bool, str]:
    """Write or generate the keys; whether the file changes, and its stamp, empty where it would change."""
    changed = write_key_file(path, keys, dry_run=is_dry) if keys else generate_key_file(path, dry_run=is_dry)
    return changed, "" if changed and is_dry else check_key_file(path, None).stamp


def _state(backup: dict, state_dir: str, known: str | None) -> dict:
    """The state, without its files in check mode, which keeps nothing."""
    keys = backup.get("api_key_file") if backup.get("keys") else None
    answer = to_answer(read_state(places(state_dir, backup.get("registry_path"), keys)), known)
    return answer if known is not None else {"digest": answer["digest"]}


def _check_keys(module: Module, facts: dict, path: str) -> str:
    """Return the stamp of the key file, with warnings."""
    user = None if facts["hands_over_keys"] else facts["user"]
    keys = check_key_file(path, user, module.params["user_groups"])
    for warning in keys.warnings:
        module.warn(warning)
    return keys.stamp


if __name__ == "__main__":
    main()
