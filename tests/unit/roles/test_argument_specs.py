"""A role's argument specs are its documentation: they must match its defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROLES = sorted((Path(__file__).parents[3] / "roles").iterdir())


def is_literal(value: object) -> bool:
    return "{{" not in str(value)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_specs_and_defaults_agree(role: Path) -> None:
    defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text())
    options = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert set(defaults) == set(options)
    # A default in a spec is never null.
    literal = {name: value for name, value in defaults.items() if value is not None and is_literal(value)}
    assert literal == {name: option["default"] for name, option in options.items() if "default" in option}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_inputs_all_have_comments(role: Path) -> None:
    lines = (role / "defaults" / "main.yml").read_text().splitlines()
    for before, line in zip(lines, lines[1:]):
        if line and line[0].isalpha():
            assert before.startswith("#"), f"{role.name}: {line} has no comment above it"
