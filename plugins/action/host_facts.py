# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds the host's answer to what the module of the same name returns, which documents it."""

from __future__ import annotations

from ansible_collections.magi.llama.plugins.plugin_utils.host_action import ModuleAction


class ActionModule(ModuleAction):
    pass
