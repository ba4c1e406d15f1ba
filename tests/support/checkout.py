#!/usr/bin/env python3
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The name and the ports of this checkout, so that several checkouts can run their tests on one machine in parallel.

    python3 checkout.py name
    python3 checkout.py port molecule|bench|beds     the part's first port

Standard library only: nodes.py runs with the system's Python, without the virtual environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Below the kernel's ephemeral ports (from 32768), and not the collection's default ports, which the demo uses.
FIRST_PORT = 12000
BLOCK_PORTS = 400
BLOCKS = 50
# Each part of a block as (offset, number of ports).
PARTS = {"molecule": (0, 10), "distribution": (10, 10), "bench": (20, 60), "containers": (80, 20), "beds": (100, 300)}
BED_PORTS = 10


def name(root: Path = ROOT) -> str:
    """A name for containers, networks and hosts: lower-case letters, digits and dashes, at most 19 characters."""
    readable = re.sub(r"[^a-z0-9]+", "-", root.name.lower()).strip("-")[:12].rstrip("-")
    return f"{readable or 'checkout'}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:6]}"


def ports(part: str, root: Path = ROOT) -> range:
    """The ports of one part of the tests, for this checkout only."""
    offset, count = PARTS[part]
    first = FIRST_PORT + BLOCK_PORTS * claim_block(root, blocks_folder()) + offset
    return range(first, first + count)


def blocks_folder() -> Path:
    # Not tempfile.gettempdir(): TMPDIR may differ between two checkouts.
    return Path("/tmp/magi-llama-checkouts")


def claim_block(root: Path, folder: Path) -> int:
    """The number of the checkout's block of ports, recorded as a link to the checkout in folder.

    Blocks of deleted checkouts are reused. Raises RuntimeError if all blocks are taken.
    """
    with locked(folder):
        owners = {int(link.name): os.readlink(link) for link in folder.iterdir() if link.name.isdigit()}
        for block, owner in owners.items():
            if owner == str(root):
                return block
        # The search starts at a block that depends on the path, so the block stays the same when /tmp was emptied.
        preferred = zlib.crc32(os.fsencode(root))
        for block in ((preferred + step) % BLOCKS for step in range(BLOCKS)):
            if block in owners and Path(owners[block]).exists():
                continue
            link = folder / str(block)
            # The folder is sticky: a link of another user cannot be removed.
            with contextlib.suppress(PermissionError, FileExistsError):
                link.unlink(missing_ok=True)
                link.symlink_to(root)
                return block
    raise RuntimeError(f"all {BLOCKS} blocks of ports are taken by other checkouts: look at the links in {folder}")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder against all processes of all users."""
    if not folder.exists():
        folder.mkdir(exist_ok=True)
        # Another user may have made it in the meantime.
        with contextlib.suppress(PermissionError):
            folder.chmod(0o1777)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def main(arguments: list[str]) -> int:
    if arguments == ["name"]:
        print(name())
    elif len(arguments) == 2 and arguments[0] == "port" and arguments[1] in PARTS:
        print(ports(arguments[1])[0])
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
