# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host of a run that distributes files, in the foreground: its job is JSON on standard input."""

from __future__ import annotations

import json
import os
import sys

from ansible_collections.magi.llama.plugins.module_utils._distribution.job import parse_job
from ansible_collections.magi.llama.plugins.module_utils._distribution.worker import FOLDER, run_job

if __name__ == "__main__":
    job = parse_job(json.load(sys.stdin))
    os.makedirs(os.path.join(job.folder, FOLDER), exist_ok=True)
    run_job(job)
