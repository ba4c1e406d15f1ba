# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The llama-server that is on the host already."""

from __future__ import annotations

import os

from ..._core.commands import Run
from ..requests import MissingError, Provided, Request

# --- existing ---------------------------------------------------------------------------------------------------------


def existing(request: Request, _run: Run) -> Provided:
    """Use the binary that is already installed."""
    if not os.path.exists(request.path):
        raise MissingError(
            f"there is no llama-server at {request.path}. Set runtime_binary_path or LLAMA_SERVER_PATH, "
            "or a runtime_install_method that provides one."
        )
    return Provided(request.path, f"{request.path} exists")
