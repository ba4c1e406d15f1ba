#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: golden_prompts
short_description: Ask servers prompts whose answers are known
version_added: 0.2.0
description:
  - Asks each deployed server the prompts of a file, and fails if an answer does not have the properties that the file
    expects of it. It can also measure the servers' speed and fail below a floor.
  - The host sends the requests, with a key from the servers' key file, to one server after another.
  - M(magi.llama.rollback) does not return to a deployment with a server that failed here, until that server answers
    M(magi.llama.verify).
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  state_dir:
    description: The servers' state directory on the host.
    type: path
    required: true
  path:
    description: The file of prompts on the controller. Without it no prompts are asked.
    type: path
  timeout:
    description: Seconds within which each request must be answered, unless its prompt has C(max_seconds).
    type: float
    default: 60.0
  min_tokens_per_second:
    description: Speed of generation that each server must reach, in tokens a second.
    type: float
  max_slowdown:
    description:
      - How much slower a server may be than the best speed that was accepted of it, V(0.2) for a fifth.
      - That speed is kept on the host, in C(observed.json). Without one, any speed is accepted. V(1) accepts any speed
        too, and later ones are compared with what is measured now.
    type: float
  only_measure:
    description: >-
      Measure the servers that run and of which no speed was accepted yet, accept what is found, and ask no prompts.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  action:
    support: full
    description: Reads the file on the controller.
seealso:
  - module: magi.llama.verify
"""

EXAMPLES = r"""
- name: Ask the golden prompts
  magi.llama.golden_prompts:
    state_dir: /var/lib/magi-llama
    path: prompts.yml
    max_slowdown: 0.2
"""

RETURN = r"""
servers:
  description: The result for each server that generates text. The task fails if any of them has a problem.
  returned: when the servers were asked
  type: list
  elements: dict
  contains:
    name:
      description: The server's name.
      type: str
      sample: qwen3-8b-q4_k_m
    model_id:
      description: The id of its model.
      type: str
      sample: qwen3-8b-q4_k_m
    port:
      description: Its port.
      type: int
      sample: 8080
    prompts:
      description: How many prompts it was asked.
      type: int
      sample: 3
    tokens_per_second:
      description: Its speed of generation, the median of three requests; V(null) if it was not measured.
      type: float
      sample: 216.4
    reference:
      description: The best speed that was accepted before, V(null) if there is none.
      type: float
      sample: 214.0
    problems:
      description: The properties that are missing.
      type: list
      elements: dict
      sample: [{prompt: capital, property: contains, detail: '"Paris" is missing; the answer is "Rome"'}]
"""

from ansible_collections.magi.llama.plugins.module_utils._arguments.golden_prompts import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import read_record
from ansible_collections.magi.llama.plugins.module_utils._deployment.rollback import note_bad
from ansible_collections.magi.llama.plugins.module_utils._health.gates import Floor, ask_host, new_reference
from ansible_collections.magi.llama.plugins.module_utils._health.machine import Machine
from ansible_collections.magi.llama.plugins.module_utils._health.observations import (
    accepted_speeds,
    note_accepted_speeds,
)
from ansible_collections.magi.llama.plugins.module_utils._services.table import driver_for


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    """The node's half: ask the servers, and record which failed and how fast the others are."""
    given, state_dir = module.params, plain_path(module.params["state_dir"])
    record = read_record(state_dir)
    if not record["servers"]:
        return {"changed": False, "servers": []}
    machine = Machine(driver_for(record, state_dir), state_dir)
    floor = Floor(given["min_tokens_per_second"], given["max_slowdown"])
    asked = ask_host(
        record["servers"],
        machine,
        prompts=given["prompts"],
        floor=floor,
        references=accepted_speeds(state_dir),
        timeout=given["timeout"],
        only_measure=given["only_measure"],
    )
    bad = [one.name for one in asked if one.problems]
    if not module.check_mode:
        if bad:
            note_bad(state_dir, bad, bad)
        good = {
            one.name: new_reference(one.tokens_per_second, one.reference, floor)
            for one in asked
            if one.tokens_per_second and not one.problems
        }
        if good:
            note_accepted_speeds(state_dir, good)
    return {"changed": False, "servers": [one.as_dict() for one in asked]}


if __name__ == "__main__":
    main()
