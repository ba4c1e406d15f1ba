# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The extra variables of playbooks, checked against meta/extra_vars.yml."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.common.validation import check_type_bool, check_type_float, check_type_int
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import near
from ansible_collections.magi.llama.plugins.plugin_utils.yaml_files import LOADER

SPEC = Path(__file__).parents[2] / "meta/extra_vars.yml"
NUMBERS = {"int": check_type_int, "float": check_type_float}


def load_spec() -> dict[str, Any]:
    """{"playbooks": {name: {"variables": […]}}, "variables": {name: option}}, as in the file."""
    loaded: dict[str, Any] = yaml.load(SPEC.read_text(encoding="utf-8"), LOADER)
    return loaded


def errors(options: Mapping[str, Mapping[str, Any]], values: Mapping[str, Any]) -> list[str]:
    """Return an error for each value that its option does not accept; options and values are by variable name."""
    found = ((name, values[name], _error(option, values[name])) for name, option in options.items() if name in values)
    return [
        f"{name} has an invalid value: {error}."
        if options[name].get("no_log")
        else f"{name} is {_shown(value)}: {error}{'' if error.endswith('?') else '.'}"
        for name, value, error in found
        if error
    ]


def _shown(value: Any) -> str:
    """Return the value for an error; text is quoted, so that it does not read as part of the sentence."""
    return f'"{value}"' if isinstance(value, str) else str(value)


def words(value: Any) -> list[str]:
    """Return the elements of a list given as a list, as comma-separated text or as YAML."""
    value = yaml.safe_load(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return [str(element) for element in (value if isinstance(value, list) else [value])]


def _error(option: Mapping[str, Any], value: Any) -> str | None:
    """Return what is wrong with a value, as the end of a sentence; None if it is valid."""
    kind = option["type"]
    if kind in NUMBERS:
        return _number_error(option, value)
    if kind == "list":
        return _list_error(option, value)
    if kind == "bool":
        return None if _converts(check_type_bool, value) else "it is true or false"
    if kind in ("str", "path") and not isinstance(value, (str, int, float)):
        return "it is a text"
    if "pattern" in option and not re.fullmatch(option["pattern"], str(value)):
        return f"it is such as {option['example']}"
    if "choices" in option and value not in option["choices"]:
        return f"it is one of {', '.join(option['choices'])}{_suggestion([str(value)], option['choices'])}"
    return None


def _number_error(option: Mapping[str, Any], value: Any) -> str | None:
    convert = NUMBERS[option["type"]]
    what = "a whole number" if option["type"] == "int" else "a number"
    if isinstance(value, bool) or not _converts(convert, value):
        return f"it is {what}"
    if "minimum" in option and not convert(value) >= option["minimum"]:
        return f"it is {what}, {option['minimum']} or more"
    if "maximum" in option and not convert(value) <= option["maximum"]:
        return f"it is {what}, {option['maximum']} or less"
    return None


def _list_error(option: Mapping[str, Any], value: Any) -> str | None:
    try:
        elements = words(value)
    except yaml.YAMLError:
        elements = [str(value)]
    if "choices" in option and not set(elements) <= set(option["choices"]):
        suggestion = _suggestion(elements, option["choices"])
        return f"it takes {', '.join(option['choices'])}, or several of them separated by commas{suggestion}"
    pattern = option.get("pattern", "")
    if pattern and not (elements and all(re.fullmatch(pattern, element) for element in elements)):
        return f"it is a list such as {option['example']}"
    return None


def _suggestion(values: Sequence[str], choices: Sequence[str]) -> str:
    """Return the end of an error that suggests the nearest choices: ; did you mean "x"? Empty if none is near."""
    close = [near(value, choices)[:1] for value in values if value not in choices]
    names = list(dict.fromkeys(f'"{name}"' for found in close for name in found))
    return f"; did you mean {' and '.join(names)}?" if names else ""


def _converts(convert: Any, value: Any) -> bool:
    try:
        convert(value)
    except (TypeError, ValueError):
        return False
    return True
