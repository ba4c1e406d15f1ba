#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: export
short_description: Write the planned servers in the format of another program
version_added: 0.2.0
description:
  - Takes the plans of all hosts of the play and writes files for another program to a folder on the controller, all
    of them or none. Files that it did not write itself, or that were changed since, are never overwritten.
  - Reads what the playbook's tasks have registered; changes nothing on the hosts.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  format:
    description: Which program the files are for.
    type: str
    choices: [compose, quadlet, kubernetes, endpoints, file_sd, litellm, llama-swap, cyclonedx]
    required: true
  folder:
    description: Folder on the controller, which is created. It has one format.
    type: path
    required: true
  image:
    description: Image of the servers, with llama-server, C(sh) and C(curl) or C(wget).
    type: str
    default: magi-llama/llama-server:latest
  binary:
    description: llama-server in O(image), as a path or as a name that is looked up there.
    type: str
    default: llama-server
  gateway_image:
    description: Image of the gateway, with HAProxy 2.6 or newer and C(sh).
    type: str
    default: haproxy:3.2
  claim:
    description:
      - Beginning of the names of the PersistentVolumeClaims with the models, with O(format=kubernetes). Each folder of
        models has one, and its path is the rest of the name.
    type: str
    default: models
  access_mode:
    description: Access mode of the claims, with O(format=kubernetes).
    type: str
    choices: [ReadWriteMany, ReadOnlyMany, ReadWriteOnce]
    default: ReadWriteMany
  secret:
    description: Name of the Secret whose key C(api-key) has the servers' API key, with O(format=kubernetes).
    type: str
    default: llama-api-key
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  action:
    support: full
    description: Runs on the controller alone, no connection to the host is made.
seealso:
  - module: magi.llama.server_plan
"""

EXAMPLES = r"""
- name: Write manifests for the planned servers
  magi.llama.export:
    format: kubernetes
    folder: exported/kubernetes
  run_once: true
"""

RETURN = r"""
folder:
  description: The folder.
  returned: success
  type: str
written:
  description: Paths of the files that were written, or would be written in check mode.
  returned: success
  type: list
  elements: str
removed:
  description: Paths of files of an earlier run that were removed, or would be removed in check mode.
  returned: success
  type: list
  elements: str
servers:
  description: The servers that were exported, each with its host.
  returned: success
  type: list
  elements: str
  sample: [gpu-1/qwen3-8b-q4_k_m]
"""
