# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs ansible-test sanity on a real copy of the collection: python tests/sanity [arguments of ansible-test sanity].

ansible-test needs a git repository at ansible_collections/magi/llama and does not follow links out of it, so the
checkout's own collections/ cannot be used. Its virtual environments are in .cache/sanity instead of ~/.ansible.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.pythons import ROOT, UV, find_pythons

HOME = ROOT / ".cache/sanity/home"
# The files that users get, and the reasons for the ignored errors.
PARTS = ["galaxy.yml", "README.md", "LICENSE", "CHANGELOG.md", "changelogs", "docs", "meta", "plugins", "playbooks"]
PARTS += ["roles", "tests/sanity/*.txt"]

# The tests "compile" and "import" run on each of these that is installed: the targets' versions, then the controllers'.
PYTHONS = ["3.9", "3.10", "3.11", "3.12", "3.13", "3.14"]

# Replaces the get-pip script that ansible-test would download.
GET_PIP = """\
import sys

sys.path.insert(0, {folder!r})

from pip._internal.cli.main import main

options = [option for option in sys.argv[1:] if option not in ("--no-setuptools", "--no-wheel")]
# The running pip is on sys.path, so it would be taken for an installed one.
sys.exit(main(["install", "--ignore-installed", *options]))
"""


def main(arguments: list[str]) -> int:
    seed_pip(pip_version())
    with tempfile.TemporaryDirectory(prefix="magi-sanity-") as folder:
        copy = Path(folder, "ansible_collections/magi/llama")
        copy_collection(copy)
        # ansible-test must not find files of the checkout outside the copy.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
        environment |= {"HOME": str(HOME), "PATH": f"{Path(sys.executable).parent}:{link_pythons(Path(folder, 'bin'))}"}
        command = ["ansible-test", "sanity", "--local", "--color", "no", *arguments]
        return subprocess.run(command, cwd=copy, env=environment, stdin=subprocess.DEVNULL, check=False).returncode


def copy_collection(copy: Path) -> None:
    """The tracked and untracked (not ignored) files of the working tree, as a separate repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        # git still lists files whose deletion is not committed.
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    subprocess.run(["git", "init", "--quiet"], cwd=copy, check=True)
    subprocess.run(["git", "add", "--all"], cwd=copy, check=True)


def link_pythons(folder: Path) -> str:
    """A PATH on which each Python has its plain name; pyenv's shims have these names too, but cannot be run."""
    folder.mkdir()
    for version, path in find_pythons(PYTHONS).items():
        (folder / f"python{version}").symlink_to(path)
    missing = [version for version in PYTHONS if not (folder / f"python{version}").exists()]
    if missing:
        print(f"tests/sanity: missing and not tested: Python {', '.join(missing)}", flush=True)
    return ":".join([str(folder), "/usr/local/bin", "/usr/bin", "/bin"])


def pip_version() -> str:
    """The version of pip that this ansible-test installs into its virtual environments."""
    import ansible_test

    source = Path(ansible_test.__path__[0], "_internal/python_requirements.py").read_text(encoding="utf-8")
    found = re.search(r"\bpip='([0-9.]+)'", source)
    if not found:
        raise SystemExit("tests/sanity: cannot read pip's version from this ansible-test: see get_venv_packages.")
    return found[1]


def seed_pip(version: str) -> None:
    """Put pip into the place where ansible-test looks for it before it downloads it."""
    script = HOME / f".ansible/test/cache/get_pip_{version.replace('.', '_')}.py"
    folder = HOME.parent / f"pip-{version}"
    if not folder.exists():
        command = [UV, "pip", "install", "--quiet", "--python", sys.executable, "--target", folder, f"pip=={version}"]
        subprocess.run(command, check=True)
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(GET_PIP.format(folder=str(folder)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
