#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: approved_plan
short_description: Compare the plan of a run with the one that was approved
version_added: 0.1.0
description:
  - With O(apply) it compares the plans of all hosts of the play with a hash, or with the document of the playbook
    plan, and returns for each host why they differ. It does not fail because of that.
  - With O(approved) it compares the plan of one host again, under its lock, and fails where it has become another one.
  - Reads what the playbook's tasks have registered; changes nothing on the hosts.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  apply:
    description:
      - The hash that the playbook plan has shown, at least its first 16 digits, or the path of its document on the
        controller.
    type: raw
  approved:
    description: The host's plan that was compared with O(apply).
    type: dict
  plan:
    description: The host's plan now, with O(approved).
    type: dict
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
  - module: magi.llama.server_plan
  - module: magi.llama.playbook_begin
"""

EXAMPLES = r"""
- name: Compare with the plan that is to be applied
  magi.llama.approved_plan:
    apply: dcedd368b215321f
  run_once: true
  register: approval
"""

RETURN = r"""
matches:
  description: Whether all hosts have the plan that was approved.
  returned: with O(apply)
  type: bool
hash:
  description: The hash of the plan now, V(null) where a host could not be planned.
  returned: with O(apply)
  type: str
errors:
  description: Why nothing is applied, by host.
  returned: with O(apply)
  type: dict
  sample: {}
"""
