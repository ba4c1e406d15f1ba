#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: check_variables
short_description: Check variables against the argument specs of this collection's roles
version_added: 0.1.0
description:
  - Checks the variables of several roles, and constraints between them, in one task before anything is changed.
  - An error names the variable, its value and the valid values. Variables that are not set are not checked.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  entry_points:
    description: The entry point to check for each role, as in the role's C(meta/argument_specs.yml).
    type: dict
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
- name: Check the variables
  magi.llama.check_variables:
    entry_points:
      servers: main
      registry: main
"""

RETURN = r""" # """
