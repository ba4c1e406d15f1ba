#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rollout
short_description: Record and report a rollout
version_added: 0.1.0
description:
  - Records the result of a rollout for each host, and shows all hosts at the end.
  - Changes nothing on the hosts.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  step:
    description:
      - V(begin) records that the host is part of the rollout, V(update) that its update has started, V(updated) and
        V(failed) the result, all in the fact C(llama_rollout).
      - V(gate) looks whether a host of the play has failed, or more than O(max_unreachable) were out of reach, so that
        no other is touched.
      - V(summary) shows every host of the play.
    type: str
    choices: [begin, gate, update, updated, failed, summary]
    required: true
  health:
    description: The result of M(magi.llama.wait_for_health), for V(updated) and V(failed).
    type: dict
    default: {}
  verified:
    description: The result of M(magi.llama.verify). Required for V(updated).
    type: dict
    default: {}
  prompts:
    description: The result of M(magi.llama.golden_prompts), for V(updated), where it is part of the rollout.
    type: dict
    default: {}
    version_added: 0.2.0
  task:
    description: The task that failed, for V(failed).
    type: str
    default: ''
  error:
    description: Its message, for V(failed).
    type: str
    default: ''
  unreachable:
    description: Whether it failed because the host could not be reached, before it was changed, for V(failed).
    type: bool
    default: false
    version_added: 0.2.0
  max_unreachable:
    description: How many hosts may be out of reach until V(gate) is closed.
    type: int
    default: 0
    version_added: 0.2.0
  touched:
    description: Whether llama-server, launch configs or servers were changed before the failure, for V(failed).
    type: bool
    default: false
  format:
    description: How V(summary) shows the hosts.
    type: str
    choices: [table, json]
    default: table
  path:
    description: File on the controller to write the summary to, as JSON.
    type: path
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  action:
    support: full
    description: Runs on the controller alone, no connection to the host is made.
seealso:
  - module: magi.llama.rollback
"""

EXAMPLES = r"""
- name: Show the result of the rollout
  magi.llama.rollout:
    step: summary
    path: rollout.json
  run_once: true
"""

RETURN = r"""
rollout:
  description: The rollout.
  returned: O(step=summary)
  type: dict
  contains:
    schema_version:
      description: Version of this layout, for which docs/schemas has the JSON Schema.
      type: int
      sample: 1
    collection_version:
      description: Version of the collection that wrote it.
      type: str
      sample: 0.1.0
    is_complete:
      description: Whether no host failed and none is left untouched.
      type: bool
    updated:
      description: Number of hosts that were changed successfully. Likewise C(unchanged), C(failed), C(untouched),
        and in check mode C(planned).
      type: int
      sample: 3
    seconds:
      description: Duration of the rollout in seconds.
      type: float
      sample: 42.0
    kind:
      description: V(rollout).
      type: str
      sample: rollout
    hosts:
      description: Each host by its name in the inventory, in the order of the rollout, with these keys.
      type: dict
      contains:
        state:
          description: V(updated), V(unchanged), V(planned), V(failed) or V(untouched).
          type: str
          sample: updated
        seconds:
          description: Duration of its update in seconds, V(null) if it was not updated.
          type: float
          sample: 8.1
        total_servers:
          description: How many servers it has, V(null) if unknown.
          type: int
          sample: 4
        ready_servers:
          description: How many of them are ready, V(null) if unknown.
          type: int
          sample: 4
        actions:
          description: How many servers were started, restarted and stopped.
          type: dict
          sample: {"restart": 4}
        task:
          description: The task that failed, V(null) if none failed.
          type: str
        error:
          description: Its message, V(null) if no task failed.
          type: str
        rollback:
          description: The command that rolls a failed host back, V(null) if the host was not touched.
          type: str
          sample: ansible-playbook -i inventories/fleet/hosts.yml playbooks/rollback.yml --limit gpu1
failures:
  description: A message for each host that has failed, with the command that rolls it back.
  returned: O(step=summary)
  type: dict
  sample: {}
is_closed:
  description: Whether a host has failed or was lost during its update, or too many were out of reach.
  returned: O(step=gate)
  type: bool
  sample: false
ansible_facts:
  description: The fact C(llama_rollout), a host's part of the above.
  returned: O(step) is neither V(gate) nor V(summary)
  type: dict
"""
