"""Writes variables.md from the roles' argument specs: `make docs`. --check only says whether it is up to date."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
ROLES = ("runtime", "registry", "servers")
HEAD = """# Variables

Generated from the roles' argument specs by `make docs`. A default that is not literal is told in the description.
Order: extra vars, inventory, environment, role default.
"""


def plain(text: str | list[str]) -> str:
    """Ansible's markup as Markdown."""
    text = " ".join(text) if isinstance(text, list) else text
    return re.sub(r"\b[COVMBE]\(([^)]*)\)", r"`\1`", text).replace("|", r"\|")


def section(role: str) -> str:
    """A role's table."""
    spec = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]
    rows = [
        f"\n## Role {role}\n\n{spec['short_description']}.\n",
        "| variable | type | default | |",
        "| --- | --- | --- | --- |",
    ]
    for name, option in spec["options"].items():
        kind = option.get("type", "str") + (f" of {option['elements']}" if "elements" in option else "")
        default = f"`{option['default']!r}`" if "default" in option else ""
        choices = f" One of {', '.join(f'`{choice}`' for choice in option['choices'])}." if "choices" in option else ""
        rows.append(f"| `{name}` | {kind} | {default} | {plain(option['description'])}{choices} |")
    return "\n".join(rows) + "\n"


def document() -> str:
    """The whole of variables.md."""
    return HEAD + "".join(section(role) for role in ROLES)


if __name__ == "__main__":
    target = ROOT / "docs" / "variables.md"
    if "--check" not in sys.argv:
        target.write_text(document())
    elif target.read_text() != document():
        sys.exit(f"{target} is not what the argument specs say: run `make docs`.")
