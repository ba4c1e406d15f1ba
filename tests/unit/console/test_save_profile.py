# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A profile is saved only over the file that was looked at, and what went wrong after that is a warning."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from magi_llama_console.api.problems import Problem
from magi_llama_console.api.security import Principal
from magi_llama_console.api.v1 import profiles as endpoints
from magi_llama_console.fleet import profiles
from magi_llama_console.settings import Settings
from magi_llama_console.store.sqlite import SqliteStore

OLD, NEW = "description: Old.\n", "description: New.\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/mine.yml").write_text(OLD)
    (tmp_path / "hosts.yml").write_text("")
    return tmp_path / "profiles/mine.yml"


@pytest.fixture
def console(path: Path, tmp_path: Path) -> Iterator[Any]:
    settings = Settings(inventory=tmp_path / "hosts.yml", data=tmp_path)
    store = SqliteStore(settings.database)
    yield SimpleNamespace(settings=settings, store=store, fleet=SimpleNamespace(hosts=lambda: []))
    asyncio.run(store.close())


def save(console: Any, monkeypatch: pytest.MonkeyPatch, *, during: Any = None, commit: Any = None) -> Any:
    async def check(*_: Any) -> profiles.Checked:
        if during:
            during()
        return profiles.Checked()

    async def no_commit(*_: Any) -> None:
        if commit:
            raise commit

    monkeypatch.setattr(profiles, "check", check)
    monkeypatch.setattr(profiles, "commit", no_commit)
    request: Any = SimpleNamespace(client=None)
    body = endpoints.ProfileText(text=NEW)
    return asyncio.run(endpoints.save_profile("mine", body, request, console, Principal("me", "operate")))


def test_file_that_changed_during_the_check_is_kept(console: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Problem) as refused:
        save(console, monkeypatch, during=lambda: path.write_text("description: Another's.\n"))
    assert (refused.value.status, path.read_text()) == (409, "description: Another's.\n")


def test_failed_commit_is_a_warning(console: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = save(console, monkeypatch, commit=profiles.ProfileFileError("not committed: why"))
    assert (saved.saved, saved.commit, saved.warnings) == (True, None, ["not committed: why"])
    assert path.read_text() == NEW


def test_file_that_is_too_long_is_not_replaced(console: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("#" * (profiles.MAX_BYTES + 1))
    with pytest.raises(Problem) as refused:
        save(console, monkeypatch)
    assert (refused.value.status, path.stat().st_size) == (409, profiles.MAX_BYTES + 1)


def test_difference_and_descriptions_are_made_off_the_event_loop(
    console: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off_the_loop(answer: str) -> Any:
        def made(*_: Any) -> str:
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            return answer

        return made

    monkeypatch.setattr(profiles, "diff", off_the_loop("difference"))
    monkeypatch.setattr(profiles, "description_of", off_the_loop("description"))
    assert save(console, monkeypatch).diff == "difference"
    listed = asyncio.run(endpoints.list_profiles(console, Principal("me", "read")))
    assert next(one for one in listed.profiles if one.name == "mine").description == "description"
