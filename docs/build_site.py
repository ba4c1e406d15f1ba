# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the documentation site: `make docs`. A warning of antsibull-docs or Sphinx is an error.

The Markdown files are copied as they are in the repository, so that a link between two of them works on a forge and on
the site. Only the front page is put together here: README.md and the tables of contents.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SITE = ROOT / ".cache" / "docs"
SOURCE = SITE / "source"

# Caption and pages of each table of contents, in the reader's order.
CONTENTS = {
    "Use": [
        "profiles",
        "sizing",
        "rollouts",
        "distribution",
        "gateway",
        "console",
        "docker",
        "exit-codes",
        "events",
        "console-api",
        "monitoring",
        "redis",
        "export",
        "backup",
        "import",
        "supply-chain",
        "containers-quadlet",
        "watchdog",
        "upgrade",
        "security",
        "troubleshooting",
        "faq",
    ],
    "Reference": ["playbooks", "variables"],
    "How it works": ["architecture"],
}
ROLES = ["runtime", "registry", "models", "servers", "gateway", "console", "redis", "monitoring", "backup"]
PROJECT = ["CONTRIBUTING", "SECURITY", "CHANGELOG"]
COLLECTION = "magi.llama"

# What antsibull-docs' pages refer to in Ansible's own documentation. Sphinx would fetch Ansible's inventory for these;
# the build must work without a network.
ANSIBLE = {
    "action_plugins": ("plugins/action.html#action-plugins", "Action plugins"),
    "ansible_configuration_settings": (
        "reference_appendices/config.html#ansible-configuration-settings",
        "Ansible Configuration Settings",
    ),
    "callback_plugins": ("plugins/callback.html#callback-plugins", "Callback plugins"),
    "common_return_values": ("reference_appendices/common_return_values.html#common-return-values", "Return Values"),
}
# Environment variables of Ansible that plugins of the collection take too.
VARIABLES = (
    "ANSIBLE_CACHE_PLUGIN_CONNECTION",
    "ANSIBLE_CACHE_PLUGIN_PREFIX",
    "ANSIBLE_CACHE_PLUGIN_TIMEOUT",
    "ANSIBLE_CALLBACKS_ENABLED",
)


def contents() -> str:
    """The tables of contents of the front page, as MyST directives."""
    pages = {caption: [f"docs/{name}" for name in names] for caption, names in CONTENTS.items()}
    pages["Reference"] += [f"roles/{role}/README" for role in ROLES] + ["Modules, roles and filters <reference/index>"]
    pages["Project"] = PROJECT
    return "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(names) + "\n```\n"
        for caption, names in pages.items()
    )


def gather() -> None:
    """Copies every page to SOURCE."""
    shutil.rmtree(SITE, ignore_errors=True)
    # Pages link to schemas, examples and the film too.
    tracked = [path for path in ROOT.glob("docs/**/*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    tracked += ROOT.glob("roles/*/README.md")
    for path in [*tracked, *(ROOT / f"{name}.md" for name in PROJECT), ROOT / "README.md"]:
        target = SOURCE / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    readme = SOURCE / "README.md"
    (SOURCE / "index.md").write_text(readme.read_text() + contents())
    readme.unlink()
    for page in SOURCE.glob("**/*.md"):
        page.write_text(page.read_text().replace("../README.md", "../index.md"))


def write_inventory() -> None:
    """Writes ANSIBLE as a Sphinx inventory, for conf.py."""
    head = "# Sphinx inventory version 2\n# Project: ansible\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    lines = "".join(f"{name} std:label -1 {place} {title}\n" for name, (place, title) in ANSIBLE.items())
    lines += "".join(
        f"{name} std:envvar -1 reference_appendices/config.html#envvar-{name} {name}\n" for name in VARIABLES
    )
    (SITE / "ansible.inv").write_bytes(head.encode() + zlib.compress(lines.encode()))


def run(*command: str) -> None:
    """Runs a command, and ends the build where it fails."""
    if (status := subprocess.run(command, cwd=ROOT, check=False).returncode) != 0:
        sys.exit(f"{command[0]} failed with exit code {status}.")


def main() -> None:
    gather()
    reference = SOURCE / "reference"
    # antsibull-docs wants a folder that no one else may write to.
    reference.mkdir(mode=0o755)
    settings = ["--use-current", "--squash-hierarchy", "--fail-on-error", "--no-add-antsibull-docs-version"]
    run("antsibull-docs", "collection", *settings, "--dest-dir", str(reference), COLLECTION)
    write_inventory()
    html = SITE / "html"
    run("sphinx-build", "-W", "--keep-going", "--quiet", "-c", str(ROOT / "docs"), str(SOURCE), str(html))
    print(f"The site is in {html.relative_to(ROOT)}: open {(html / 'index.html').relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
