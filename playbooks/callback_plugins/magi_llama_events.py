# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads the callback magi.llama.events with the playbooks of the collection, so that MAGI_EVENTS is all it needs.

Ansible loads the callbacks in the folder callback_plugins next to a playbook. Its name is not that of another callback.
"""

from __future__ import annotations

from ansible_collections.magi.llama.plugins.callback import events

DOCUMENTATION = r"""
name: magi_llama_events
type: notification
short_description: Load the callback magi.llama.events
description: Is what the callback magi.llama.events is, for the playbooks of the collection.
"""


class CallbackModule(events.CallbackModule):  # type: ignore[misc]
    CALLBACK_NAME = "magi_llama_events"
    CALLBACK_NEEDS_ENABLED = False
