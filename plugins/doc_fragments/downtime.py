# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of modules that plan how servers change while gateways send them requests."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  without_downtime:
    description:
      - Plan the change for gateways, in waves that keep each model served where that is possible. A server that is
        restarted is changed by V(surge) (a stand-in serves meanwhile), V(swap) (another server of the model serves) or
        V(away) (its model is away meanwhile).
    type: bool
    default: false
  served_here:
    description: Number of servers that the gateways see ready on this host, by the id of their model.
    type: dict
    default: {}
  served_elsewhere:
    description: Ids of the models that every gateway sees ready on other hosts.
    type: list
    elements: str
    default: []
  allow_downtime:
    description: Allow models to be away during the change. Otherwise it is an error that names them.
    type: bool
    default: false
"""
