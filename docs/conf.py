# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sphinx's settings. `make docs` calls it with the sources that docs/build_site.py has gathered."""

from __future__ import annotations

from pathlib import Path

import yaml

galaxy = yaml.safe_load((Path(__file__).parents[1] / "galaxy.yml").read_text())

project = "magi.llama"
author = copyright = "the magi.llama contributors"
version = release = galaxy["version"]

extensions = ["myst_parser", "sphinx_antsibull_ext", "sphinx.ext.intersphinx"]
myst_heading_anchors = 3
# Sources read well on a forge, so nothing but plain Markdown is used in them.
myst_enable_extensions: list[str] = []

# docs/build_site.py writes the inventory next to the sources.
intersphinx_mapping = {
    "ansible": ("https://docs.ansible.com/projects/ansible/latest/", "../ansible.inv"),
}

html_theme = "furo"
html_title = f"magi.llama {release}"
html_copy_source = False
html_show_sphinx = False
html_use_index = False
pygments_style = "ansible"
highlight_language = "YAML+Jinja"

# Every reference must resolve.
nitpicky = True
default_role = "any"
