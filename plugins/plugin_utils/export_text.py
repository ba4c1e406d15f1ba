# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Exported files as text: YAML that people read and change, without references between its parts."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

MANAGED = "# Ansible managed (magi.llama): changes made here are lost in the next run\n"

# Texts that some reader takes for a number, a bool, null or a time: by YAML 1.1, which PyYAML writes for, by YAML 1.2,
# and by Go's strconv. Quotes around others do no harm.
_OTHER = re.compile(
    r"[-+]?\.?[0-9][0-9a-z_.:+-]*|[-+]?\.(inf|nan)|y|n|yes|no|on|off|true|false|null|~|=|<<|", re.IGNORECASE
)


def to_text(path: str, content: Any, header: str = MANAGED) -> str:
    """The text of a file: that itself, JSON, or YAML with a comment first, where a list has several documents."""
    if isinstance(content, str):
        return content
    if path.endswith(".json"):
        return json.dumps(content, indent=1) + "\n"
    documents = content if isinstance(content, list) else [content]
    options: dict[str, Any] = {"sort_keys": False, "width": 120, "allow_unicode": True, "default_flow_style": False}
    return header + "---\n".join(yaml.dump(one, Dumper=_Dumper, **options) for one in documents)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="'" if _OTHER.fullmatch(value) else None)


_Dumper.add_representer(str, _text)
