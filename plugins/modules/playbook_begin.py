#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: playbook_begin
short_description: Check the extra variables of a playbook
version_added: 0.1.0
description:
  - Checks the variables that a playbook of this collection takes, before it touches a host, and notes the time.
  - One task checks the variables of all hosts.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  playbook:
    description: The playbook's name.
    type: str
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
seealso:
  - module: magi.llama.playbook_finish
"""

EXAMPLES = r"""
- name: Check the variables
  magi.llama.playbook_begin:
    playbook: status
  run_once: true
  register: __llama_begun
"""

RETURN = r"""
started:
  description: When the playbook has begun, in seconds since the epoch. The summary at its end counts from there.
  returned: success
  type: float
  sample: 1764000000.0
output:
  description: How the result is shown. A fact of a host does not set it.
  returned: success
  type: str
  sample: table
output_file:
  description: File on the controller for the document, V(null) for none. A fact of a host does not set it.
  returned: success
  type: str
"""
