# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's models: a tiny random llama in F16, quantised by the real llama-quantize to three tiers.

    python demo_models.py FOLDER LLAMA_QUANTIZE

Existing files are kept.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from support.gguf_files import write_tiny_llama

TYPES = ("Q2_K", "Q3_K_M", "Q4_K_M")


def make_models(folder: Path, quantize: str) -> list[Path]:
    """Create the three models in the folder; raise RuntimeError with the output of llama-quantize if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = {kind: folder / f"tiny-llama-{kind}.gguf" for kind in TYPES}
    missing = {kind: target for kind, target in targets.items() if not target.exists()}
    if missing:
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            source = write_tiny_llama(Path(scratch) / "tiny-llama-F16.gguf", context=8192)
            for kind, target in missing.items():
                partial = Path(scratch) / target.name
                done = subprocess.run(
                    [quantize, source, partial, kind, "1"],
                    capture_output=True,
                    text=True,
                    errors="replace",
                    check=False,
                )
                if done.returncode != 0:
                    raise RuntimeError(
                        f"llama-quantize {kind} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
                    )
                partial.rename(target)
    return list(targets.values())


if __name__ == "__main__":
    for path in make_models(Path(sys.argv[1]), sys.argv[2]):
        print(f"{path} {path.stat().st_size / 2**20:.1f} MiB")
