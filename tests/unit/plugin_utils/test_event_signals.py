# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A signal that comes while Ansible starts a worker still ends the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import multiprocessing, os, signal, time
from ansible_collections.magi.llama.plugins.callback.events import _chain

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)
_chain(signal.SIGINT, lambda proceed: proceed())
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))
try:
    worker = multiprocessing.get_context("fork").Process(target=lambda: None)
    worker.start()
    time.sleep(10)
    print("continued")
except KeyboardInterrupt:
    print("interrupted")
worker.join()
"""


def test_interrupt_while_a_worker_is_started_is_not_lost() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "collections")}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
