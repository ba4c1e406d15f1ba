# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Profiles: which file counts, what is refused, what a text selects, and how it is saved."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from magi_llama_console.fleet import profiles
from magi_llama_console.fleet.profiles import Checked, builtin_folder, check, commit, diff, list_profiles, place, save

COLLECTIONS = [str(Path(__file__).parents[3] / "collections")]
GOOD = "description: Two.\nenabled_models:\n  - {tier: Q4}\n  - {model: c}\n"
REGISTRY = [
    {"id": "a", "tier": "Q4", "kind": "model", "architecture": "llama", "path": "/m/a.gguf"},
    {"id": "b", "tier": "Q3", "kind": "model", "architecture": "llama", "path": "/m/b.gguf"},
]


def checked(text: str, path: Path = Path("/inventory/profiles/mine.yml")) -> Checked:
    registries = {"node1": REGISTRY}
    return asyncio.run(check("mine", path, text, registries, Path(sys.executable), dict(os.environ), COLLECTIONS))


def test_profile_selects_of_each_hosts_registry() -> None:
    found = checked(GOOD)
    assert (found.errors, found.selects, found.missing) == ((), {"node1": ["a"]}, {"node1": ["c"]})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("enabled_modles: [a]\n", 'unknown key "enabled_modles": did you mean "enabled_models"?'),
        ("enabled_models: [\n", "/inventory/profiles/mine.yml, line 2"),
        ("enabled_models: [a]\ndescription: \"{{ lookup('pipe', 'id') }}\"\n", "description is a template"),
        ('enabled_models: [a]\nparameters: {x: ["\\x7b\\x7b 1 }}"]}\n', "parameters.x[0] is a template"),
        ('enabled_models: [a]\n"{% x %}": 1\n', "the key '{% x %}' is a template"),
        (
            "x: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\ny: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
            "z: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b]\nw: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c, *c]\n"
            "v: [*d, *d, *d, *d, *d, *d, *d, *d, *d, *d]\n",
            "aliases",
        ),
    ],
    ids=["misspelled key", "broken YAML", "template", "escaped template", "template as key", "aliases of aliases"],
)
def test_wrong_profile_is_refused_with_its_file_and_key(text: str, says: str) -> None:
    (error,) = checked(text).errors
    assert says in error
    assert "/tmp/" not in error


def test_number_that_yaml_misreads_is_a_warning() -> None:
    found = checked("enabled_models: [a]\nparameters: {seed: 010}\n")
    assert "octal" in found.warnings[0] and "/inventory/profiles/mine.yml" in found.warnings[0]


def test_files_next_to_the_inventory_come_before_the_built_in_ones(tmp_path: Path) -> None:
    builtin = builtin_folder(COLLECTIONS)
    hidden = tmp_path / ".magi-llama/profiles"
    hidden.mkdir(parents=True)
    (tmp_path / "profiles").mkdir()
    (hidden / "mine.yml").write_text(GOOD)
    (tmp_path / "profiles/mine.yml").write_text("description: Later.\n")
    (tmp_path / "profiles/full.yml").write_text("description: Own.\n")
    found = list_profiles(tmp_path, builtin)
    assert (found["mine"].description, found["full"].description) == ("Two.", "Own.")
    assert [found[name].is_builtin for name in ("mine", "full", "production")] == [False, False, True]


def test_new_profile_is_placed_where_ansible_does_not_read_it_as_inventory(tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("")
    builtin = list_profiles(tmp_path, builtin_folder(COLLECTIONS))
    assert place("production", tmp_path, builtin) == tmp_path / ".magi-llama/profiles/production.yml"
    assert place("mine", inventory, builtin) == tmp_path / "profiles/mine.yml"
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/mine.yml").write_text(GOOD)
    assert place("mine", tmp_path, list_profiles(tmp_path, None)) == tmp_path / "profiles/mine.yml"


def test_save_replaces_the_file_in_one_step_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "profiles/mine.yml"
    save(path, GOOD)
    path.chmod(0o600)
    save(path, GOOD + "# More.\n")
    assert (path.read_text(), path.stat().st_mode & 0o777, os.listdir(path.parent)) == (
        GOOD + "# More.\n",
        0o600,
        ["mine.yml"],
    )


def test_save_in_a_folder_that_cannot_be_written_names_it(tmp_path: Path) -> None:
    (tmp_path / "profiles").write_text("a file")
    with pytest.raises(profiles.ProfileFileError, match=r"profiles/mine\.yml cannot be written"):
        save(tmp_path / "profiles/mine.yml", GOOD)


def git(folder: Path, *arguments: str) -> str:
    return subprocess.check_output(["git", "-C", str(folder), *arguments], text=True).strip()


def test_commit_has_this_file_alone_and_says_who(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "other.yml").write_text("x: 1\n")
    git(tmp_path, "add", "other.yml")
    save(tmp_path / "mine.yml", GOOD)
    made = asyncio.run(commit(tmp_path / "mine.yml", "mine", "alice", dict(os.environ)))
    assert made == git(tmp_path, "rev-parse", "HEAD")
    assert (
        git(tmp_path, "show", "--name-only", "--format=%an: %s")
        == "alice (console): Change the profile mine in the console\n\nmine.yml"
    )
    assert git(tmp_path, "status", "--short") == "A  other.yml"


def test_commit_outside_a_repository_is_none(tmp_path: Path) -> None:
    save(tmp_path / "mine.yml", GOOD)
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    assert asyncio.run(commit(tmp_path / "mine.yml", "mine", "alice", environment)) is None


def test_diff_names_the_file_and_is_empty_without_a_change() -> None:
    assert diff(GOOD, GOOD, Path("/x/mine.yml")) == ""
    assert diff(GOOD, GOOD + "# More.", Path("/x/mine.yml")).splitlines()[-1] == "+# More."


def test_file_that_is_too_long_is_not_shown_cut(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/long.yml").write_text("# é\n" * (profiles.MAX_BYTES // 5 + 1))
    (tmp_path / "profiles/longest.yml").write_text("#" * profiles.MAX_BYTES)
    found = list_profiles(tmp_path, None)
    assert (found["long"].is_too_long, found["long"].text) == (True, "")
    assert "more than 256 KiB" in found["long"].description
    assert (found["longest"].is_too_long, len(found["longest"].text)) == (False, profiles.MAX_BYTES)


def test_description_that_is_no_text_is_left_out() -> None:
    aliases = "".join(f"x{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else '1'] * 9)}]\n" for n in range(30))
    assert profiles.description_of(f"{aliases}description: *a29\n") == ""


def test_many_lines_are_shown_as_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("difflib.unified_diff", lambda *_: pytest.fail("compared"))
    old = "a\n" * (profiles.MAX_LINES + 1)
    lines = diff(old, "b\nc", Path("/x/mine.yml")).splitlines()
    assert lines[:4] == ["--- a/mine.yml", "+++ b/mine.yml", f"@@ -1,{profiles.MAX_LINES + 1} +1,2 @@", "-a"]
    assert lines[-2:] == ["+b", "+c"]
    assert diff(old, old, Path("/x/mine.yml")) == ""


def test_commit_that_fails_says_why(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    hook = tmp_path / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'not on this branch' >&2; exit 1\n")
    hook.chmod(0o755)
    save(tmp_path / "mine.yml", GOOD)
    with pytest.raises(profiles.ProfileFileError, match=r"mine\.yml is saved, but not committed: not on this branch"):
        asyncio.run(commit(tmp_path / "mine.yml", "mine", "alice", dict(os.environ)))
    hook.unlink()
    assert asyncio.run(commit(tmp_path / "mine.yml", "mine", "alice", dict(os.environ)))
    # Nothing has changed since.
    assert asyncio.run(commit(tmp_path / "mine.yml", "mine", "alice", dict(os.environ))) is None
