#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: report
short_description: Show how far a run is
version_added: 0.1.0
description:
  - Prints the five steps of a start-up as they happen, the summary at its end, and tables of registry and status.
  - Reads the facts that the earlier steps have set; computes and changes nothing on the host.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  step:
    description: What to show, one after another.
    type: list
    elements: str
    choices: [runtime, discovery, registry, profile, enabled, launch, health, summary, status, text]
    required: true
  tried:
    description: C(tried) of M(magi.llama.runtime), for V(runtime).
    type: list
    elements: dict
    default: []
  health:
    description: What M(magi.llama.wait_for_health) returned, for V(health) and V(summary).
    type: dict
  status:
    description: C(status) of M(magi.llama.server_info), for V(status).
    type: dict
  changes:
    description: C(changes) of M(magi.llama.gguf_registry), for V(discovery).
    type: dict
    default: {}
  warnings:
    description:
      - C(warned) of M(magi.llama.gguf_registry), for V(discovery). What runtime and plan warn of is shown with it, as
        Ansible may hide the warnings of a task that changed nothing.
    type: list
    elements: str
    default: []
  text:
    description: Text to show, for V(text).
    type: str
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
- name: Show what was found
  magi.llama.report:
    step: discovery
"""

RETURN = r"""#"""
