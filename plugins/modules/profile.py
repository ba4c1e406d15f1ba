#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: profile
short_description: Load and validate a profile
version_added: 0.1.0
description:
  - Finds the vars file of a profile, fills in its defaults and checks it against the profile's schema.
  - Searches the folders in O(search_paths), in order, for C(<name>.yml).
  - M(magi.llama.server_plan) selects the models on each host later.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  name:
    description: Name of the profile, without folder or C(.yml).
    type: str
    required: true
  search_paths:
    description: Folders on the controller; the first match wins. Missing folders are skipped.
    type: list
    elements: path
    required: true
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
"""

EXAMPLES = r"""
- name: Load the profile
  magi.llama.profile:
    name: production
    search_paths:
      - "{{ inventory_dir }}/profiles"
      - "{{ role_path }}/profiles"
"""

RETURN = r"""
ansible_facts:
  description: The fact C(llama_profile).
  returned: success
  type: dict
  contains:
    llama_profile:
      description: The profile with every default filled in.
      type: dict
      contains:
        name:
          description: Its name.
          type: str
          sample: production
        source:
          description: Path of the profile on the controller.
          type: str
          sample: /etc/ansible/profiles/production.yml
        description:
          description: The file's own description.
          type: str
          sample: The quality tiers
        enabled_models:
          description: >-
            In order of priority C({model, selector, instances, parameters, key}); C(model) is V(null) for a selector,
            C(key) is the position of the entry in the file.
          type: list
          elements: dict
          sample: [{model: null, selector: {tier: Q4}, instances: 1, parameters: {}, key: "enabled_models[0]"}]
        parameters:
          description: llama-server's long flags in snake_case, for every server.
          type: dict
          sample: {ctx_size: 8192}
        memory_budget_bytes:
          description: Memory limit for all servers together in bytes; V(null) means the host's memory.
          type: int
          sample: 8589934592
        start:
          description: C(concurrent), and in seconds C(max_startup_time) and C(readiness_check_interval).
          type: dict
          sample: {concurrent: true, max_startup_time: 120, readiness_check_interval: 2}
"""
