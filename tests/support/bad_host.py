# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A managed host with forged answers: an interpreter that runs Ansible's modules and then changes their answers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .runs import BIN

SCRIPT = """#!{python}
import json, os, re, subprocess, sys
done = subprocess.run([{python!r}, *sys.argv[1:]], stdin=sys.stdin, capture_output=True, check=False)
module = re.search(r"AnsiballZ_([a-z_]+)", " ".join(sys.argv))
change = json.load(open({changes!r})).get(module.group(1) if module else "", None)
out = done.stdout
if change:
    answer = json.loads(out)
    for path, value in change:
        *keys, last = path
        inner = answer
        for key in keys:
            inner = inner.setdefault(key, {{}}) if isinstance(inner, dict) else inner[key]
        inner[last] = value
    out = json.dumps(answer).encode()
sys.stdout.buffer.write(out)
sys.stderr.buffer.write(done.stderr)
sys.exit(done.returncode)
"""


def lying_interpreter(folder: Path, changes: dict[str, list[tuple[list[Any], Any]]]) -> str:
    """The path of an interpreter for ansible_python_interpreter; changes are (path of keys, value) by module."""
    folder.mkdir(parents=True, exist_ok=True)
    rules, script = folder / "changes.json", folder / "python"
    rules.write_text(json.dumps(changes), encoding="utf-8")
    script.write_text(SCRIPT.format(python=str(BIN / "python"), changes=str(rules)), encoding="utf-8")
    os.chmod(script, 0o755)
    return str(script)
