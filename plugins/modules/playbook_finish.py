#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: playbook_finish
short_description: Show the result of a playbook and fail the hosts that failed
version_added: 0.1.0
description:
  - Prints one JSON document for all hosts of the play, or writes it to a file.
  - Then fails on each host on which the playbook has failed, that was out of reach, or that does not pass O(fail_on).
  - Reads what the playbook's tasks have registered; changes nothing on the hosts.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  playbook:
    description: The playbook's name, which is the document's C(kind).
    type: str
    required: true
  format:
    description: With V(json) the document is printed.
    type: str
    choices: [table, json]
    default: table
  path:
    description: File on the controller to write the document to. Its folders are created.
    type: path
  fail_on:
    description:
      - Gates, as a list or as text with commas.
      - V(degraded) fails where a server in O(status) is not ready, V(drift) where O(drift) is not empty.
    type: raw
    default: []
  status:
    description: C(status) of M(magi.llama.server_info).
    type: dict
  drift:
    description: C(drift) of M(magi.llama.server_info) or M(magi.llama.server_plan).
    type: dict
    default: {}
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
  - module: magi.llama.playbook_begin
"""

EXAMPLES = r"""
- name: Show every host
  magi.llama.playbook_finish:
    playbook: status
    format: json
    fail_on: degraded
    status: "{{ servers_found.status }}"
"""

RETURN = r"""
document:
  description:
    - The document of all hosts, where O(format=json) and the callback on the screen prints JSON itself, such as
      C(ansible.posix.json). Other callbacks print it among their lines.
  type: dict
  returned: if such a callback is in use
"""
