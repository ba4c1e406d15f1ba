# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The groups that may use a host's GPUs."""

from __future__ import annotations

import contextlib
import glob
import grp
import os
import stat

# Others may own the nodes on purpose: a server never gets another group by itself.
GPU_GROUPS = ("render", "video")


def gpu_nodes(dev: str = "/dev") -> list[str]:
    """The device nodes of GPUs that programs compute with."""
    found = [path for pattern in ("kfd", "dri/renderD*", "nvidia[0-9]*") for path in glob.glob(f"{dev}/{pattern}")]
    return sorted(found)


def device_groups(dev: str = "/dev") -> list[str]:
    """The groups among GPU_GROUPS without which the GPUs' device nodes cannot be used."""
    names = set()
    for path in gpu_nodes(dev):
        with contextlib.suppress(OSError, KeyError):
            found = os.stat(path)
            if stat.S_IMODE(found.st_mode) & 0o006 != 0o006:
                names.add(grp.getgrgid(found.st_gid).gr_name)
    return sorted(names & set(GPU_GROUPS))
