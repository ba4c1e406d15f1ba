#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: sign_manifest
short_description: Sign the manifest of the model files
version_added: 0.2.0
description:
  - Writes the signature of a manifest next to it, with the program C(minisign) on the controller. The same manifest and
    key give the same signature.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  path:
    description: The manifest on the controller. Its signature gets the same name and C(.minisig).
    type: path
    required: true
  secret_key:
    description: File on the controller with a secret key of minisign.
    type: path
    required: true
  password:
    description: Password of the secret key. Without one for a key that has none.
    type: str
  public_key:
    description: >-
      The public key of minisign that hosts' scans are to check the signature with, or its file. If it does not belong
      to O(secret_key), the module fails.
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
seealso:
  - module: magi.llama.gguf_registry
"""

EXAMPLES = r"""
- name: Sign the manifest
  magi.llama.sign_manifest:
    path: /srv/fleet/models.lock.yml
    secret_key: /home/me/.minisign/minisign.key
  run_once: true
"""

RETURN = r"""
signature:
  description: Path of the signature.
  returned: success
  type: str
  sample: /srv/fleet/models.lock.yml.minisig
"""
