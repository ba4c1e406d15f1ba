# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs ansible-test sanity on a real copy of the collection: python tests/sanity [arguments of ansible-test sanity].

ansible-test wants a git repository at ansible_collections/magi/llama and follows no links out of it, so the checkout's
own collections/ will not do. Its virtual environments are kept in .cache/sanity, away from the user's ~/.ansible.
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
# What users get, and the reasons for what is left unmended.
PARTS = ["galaxy.yml", "README.md", "LICENSE", "CHANGELOG.md", "changelogs", "docs", "meta", "plugins", "playbooks"]
PARTS += ["roles", "tests/sanity/*.txt"]

# The tests "compile" and "import" run on each of these that is here: targets', and last the controllers'.
PYTHONS = ["3.9", "3.10", "3.11", "3.12", "3.13", "3.14"]

# Stands in for the get-pip script that ansible-test would download from a host of its own.
GET_PIP = """\
import sys

sys.path.insert(0, {folder!r})

from pip._internal.cli.main import main

options = [option for option in sys.argv[1:] if option not in ("--no-setuptools", "--no-wheel")]
# The pip that runs lies on sys.path, so it would be taken for one that is installed.
sys.exit(main(["install", "--ignore-installed", *options]))
"""


def main(arguments: list[str]) -> int:
    seed_pip(pip_version())
    with tempfile.TemporaryDirectory(prefix="magi-sanity-") as folder:
        copy = Path(folder, "ansible_collections/magi/llama")
        copy_collection(copy)
        # Nothing of the checkout may be found besides the copy.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
        environment |= {"HOME": str(HOME), "PATH": f"{Path(sys.executable).parent}:{link_pythons(Path(folder, 'bin'))}"}
        command = ["ansible-test", "sanity", "--local", "--color", "no", *arguments]
        return subprocess.run(command, cwd=copy, env=environment, stdin=subprocess.DEVNULL, check=False).returncode


def copy_collection(copy: Path) -> None:
    """The files of the working tree that git knows or would take, as a repository of their own."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        # git still lists what was deleted and not yet committed.
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    subprocess.run(["git", "init", "--quiet"], cwd=copy, check=True)
    subprocess.run(["git", "add", "--all"], cwd=copy, check=True)


def link_pythons(folder: Path) -> str:
    """A search path on which each Python has its plain name; pyenv's shims have it too, but do not run."""
    folder.mkdir()
    for version, path in find_pythons(PYTHONS).items():
        (folder / f"python{version}").symlink_to(path)
    missing = [version for version in PYTHONS if not (folder / f"python{version}").exists()]
    if missing:
        print(f"tests/sanity: not here, so not tested: Python {', '.join(missing)}", flush=True)
    return ":".join([str(folder), "/usr/local/bin", "/usr/bin", "/bin"])


def pip_version() -> str:
    """The pip that this ansible-test starts its virtual environments with."""
    import ansible_test

    source = Path(ansible_test.__path__[0], "_internal/python_requirements.py").read_text(encoding="utf-8")
    found = re.search(r"\bpip='([0-9.]+)'", source)
    if not found:
        raise SystemExit("tests/sanity: this ansible-test does not say which pip it wants: look at get_venv_packages.")
    return found[1]


def seed_pip(version: str) -> None:
    """Put pip where ansible-test looks before it downloads."""
    script = HOME / f".ansible/test/cache/get_pip_{version.replace('.', '_')}.py"
    folder = HOME.parent / f"pip-{version}"
    if not folder.exists():
        command = [UV, "pip", "install", "--quiet", "--python", sys.executable, "--target", folder, f"pip=={version}"]
        subprocess.run(command, check=True)
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(GET_PIP.format(folder=str(folder)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
