#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: import_servers
short_description: Propose a profile from another program's settings
version_added: 0.2.0
description:
  - Reads how another program runs llama-server, or which models it has, on the controller, and proposes a profile and
    variables for the inventory. What cannot be taken over is named, with the reason.
  - Never overwrites a file.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  source:
    description: A file or folder on the controller. Either this or O(command) is required.
    type: path
  command:
    description: A command line that starts llama-server. An API key in it is not taken over and not shown.
    type: str
  format:
    description:
      - What O(source) is. V(llama-swap) is its YAML file, V(models-preset) the INI file of llama-server's router,
        V(ollama) a store of Ollama, V(lm-studio) a folder of LM Studio's models, V(command) a file with a command line
        that starts llama-server.
      - V(auto) goes by the file's name and by what is in the folder.
    type: str
    choices: [auto, llama-swap, models-preset, ollama, lm-studio, command]
    default: auto
  name:
    description: Name of the profile.
    type: str
    default: imported
  folder:
    description: >-
      Folder on the controller for C(profiles/NAME.yml) and C(NAME.variables.yml). Without it both are only shown.
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
  - module: magi.llama.export
"""

EXAMPLES = r"""
- name: Show a profile for what llama-swap runs
  magi.llama.import_servers:
    source: /etc/llama-swap/config.yaml

- name: Write a profile for a command line
  magi.llama.import_servers:
    command: llama-server -m /srv/gguf/qwen3-8b-q4_k_m.gguf -c 8192 -ngl 99
    name: mine
    folder: inventories/fleet/.magi-llama
"""

RETURN = r"""
profile:
  description: The content of the profile.
  returned: success
  type: dict
  sample: {"enabled_models": [{"model": "qwen3-8b-q4_k_m", "parameters": {"ctx_size": 8192}}]}
variables:
  description: Variables for the inventory.
  returned: success
  type: dict
  sample: {"registry_scan_paths": ["/srv/gguf"]}
left_out:
  description: What was not taken over, each with the server's name and the reason.
  returned: success
  type: list
  elements: str
written:
  description: Paths of the files that were written, or would be written in check mode.
  returned: success
  type: list
  elements: str
"""
