# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""A managed prefix: filled next to the one in use and then swapped in; the previous prefix is preserved."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .._core.ownership import require_trusted
from .prefix_manifest import (
    new_prefix,
    note_in_manifest,
    previous_prefix,
    read_manifest,
    require_own_prefixes,
    staged_prefix,
    write_manifest,
)
from .requests import PACKAGE_NAME, Provided, ProviderError, Request

# Version of a prefix's layout: a prefix with another layout is built from scratch.
PREFIX_LAYOUT = 2


# --- prefix -----------------------------------------------------------------------------------------------------------


def provide(
    request: Request, wanted: Mapping[str, Any], fill: Callable[[str], dict[str, Any]], notes: tuple[str, str]
) -> Provided:
    """Install what is wanted in the prefix, or next to it if the request says stage and the prefix exists already.

    fill installs it in an empty folder and returns its manifest. notes are for a current and a new prefix.
    """
    prefix = request.prefix
    path = os.path.join(prefix, "bin", "llama-server")
    if is_current(prefix, wanted):
        return Provided(path, notes[0])
    _require_prefix(prefix)
    require_trusted(prefix)
    require_own_prefixes(prefix)
    before = _summary(read_manifest(prefix))
    # A refused plan after a first installation does no harm, so check mode only builds replacements in advance.
    if request.check and not (request.stage and before):
        return Provided(path, notes[1], installed=False, changed=True, before=before, after=_summary(wanted))
    if request.check:
        folder = tempfile.mkdtemp(prefix=f"{os.path.basename(prefix)}.check-", dir=os.path.dirname(prefix))
        try:
            write_manifest(folder, {})
            after = _summary(fill(folder))
            # The servers' user is to run it.
            _open_to_all(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Provided(path, notes[1], False, True, folder, discard=True, before=before, after=after)
    staged = staged_prefix(prefix)
    places = not request.stage or (request.install_if_missing and not before)
    if is_current(staged, wanted) and places:
        request.confirm()
        return Provided(path, notes[1], changed=_put_staged(prefix), before=before, after=_summary(wanted))
    place = prefix if places else staged
    with _new_prefix(prefix, place, wanted, request.confirm) as new:
        if new is not None:
            write_manifest(new, fill(new))
    after = _summary(read_manifest(place))
    staged_dir = place if place != prefix else None
    return Provided(path, notes[1], staged_dir is None, new is not None, staged_dir, before=before, after=after)


def _put_staged(prefix: str) -> bool:
    """Move the staged prefix into place; returns whether it still existed."""
    staged = staged_prefix(prefix)
    try:
        with _locked(os.path.dirname(prefix)):
            is_there = os.path.lexists(staged)
            if is_there:
                _put_in_place(staged, prefix)
    except OSError as error:
        raise ProviderError(f"{staged} could not be put in place: {error}.") from error
    return is_there


def restore_previous(prefix: str) -> None:
    """Swap the prefix and the previous one. Raises ProviderError, OwnershipError where one of them is not ours."""
    require_trusted(prefix)
    require_own_prefixes(prefix)
    previous, aside = previous_prefix(prefix), new_prefix(prefix)
    try:
        with _locked(os.path.dirname(prefix)):
            shutil.rmtree(aside, ignore_errors=True)
            _carry_users(prefix, previous)
            if os.path.lexists(prefix):
                os.rename(prefix, aside)
            os.rename(previous, prefix)
            if os.path.lexists(aside):
                os.rename(aside, previous)
    except OSError as error:
        raise ProviderError(f"{previous} could not take the place of {prefix}: {error}.") from error


def _summary(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a manifest that is shown in a diff."""
    shown = {key: manifest[key] for key in ("method", "suite", "sha256", "image") if key in manifest}
    packages = manifest.get("packages")
    if isinstance(packages, dict) and PACKAGE_NAME in packages:
        shown["packages"] = {PACKAGE_NAME: packages[PACKAGE_NAME]}
    return shown


def is_current(prefix: str, wanted: Mapping[str, Any]) -> bool:
    manifest = read_manifest(prefix)
    same = all(manifest.get(key) == value for key, value in wanted.items())
    return same and os.path.exists(os.path.join(prefix, "bin", "llama-server"))


def _require_prefix(prefix: str) -> None:
    """Refuse a prefix that cannot be created or used in a shell script."""
    if not os.path.isabs(prefix) or re.search(r'[:;"\n]', prefix):
        raise ProviderError(f'runtime_prefix must be an absolute path without : ; and ", not {prefix}.')
    folder = os.path.dirname(os.path.normpath(prefix))
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ProviderError(
            f"this user may not write to {folder}. Set become, or set runtime_prefix to a folder of your own, such as "
            "~/.local/share/magi-llama/runtime."
        )


@contextlib.contextmanager
def _new_prefix(
    prefix: str, place: str, wanted: Mapping[str, Any], confirm: Callable[[], None]
) -> Iterator[str | None]:
    """A folder next to prefix to fill; it then becomes the prefix itself or the staged one.

    None if another run has filled it meanwhile. Leftovers of an interrupted run are removed first.
    """
    # Ansible may pass on a umask that denies access to the servers' user.
    mask = os.umask(0o022)
    new = new_prefix(prefix)
    try:
        os.makedirs(os.path.dirname(prefix), exist_ok=True)
        with _locked(os.path.dirname(prefix)):
            if is_current(place, wanted):
                yield None
                return
            shutil.rmtree(new, ignore_errors=True)
            os.mkdir(new)
            # At once, so that what a killed run leaves is known as ours.
            write_manifest(new, {})
            try:
                yield new
                _open_to_all(new)
                # To fill it may have taken long.
                confirm()
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
            if place == prefix:
                _put_in_place(new, prefix)
                # Any other staged prefix is obsolete now.
                shutil.rmtree(staged_prefix(prefix), ignore_errors=True)
            else:
                shutil.rmtree(place, ignore_errors=True)
                os.rename(new, place)
    except OSError as error:
        raise ProviderError(f"{prefix} could not be created: {error}.") from error
    finally:
        os.umask(mask)


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Allow one run at a time; renames in the folder are on disk when the block ends."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        os.fsync(lock)
    finally:
        os.close(lock)


def _carry_users(prefix: str, new: str) -> None:
    """Note in a prefix that takes another's place which deployments use that one."""
    users = read_manifest(prefix).get("used_by")
    if users:
        note_in_manifest(new, used_by=users)


def _put_in_place(new: str, prefix: str) -> None:
    """Rename new to prefix. The old prefix becomes the previous one, unless only the existing previous one worked."""
    _carry_users(prefix, new)
    previous = previous_prefix(prefix)
    if os.path.lexists(prefix):
        if read_manifest(previous).get("good") and not read_manifest(prefix).get("good"):
            shutil.rmtree(prefix)
        else:
            shutil.rmtree(previous, ignore_errors=True)
            os.rename(prefix, previous)
    os.rename(new, prefix)


def _open_to_all(top: str) -> None:
    """Make all files readable for everyone and writable for the owner only, without set-id bits."""
    for folder, _folders, files in os.walk(top):
        os.chmod(folder, 0o755)
        for name in files:
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            if not stat.S_ISLNK(mode):
                os.chmod(path, 0o755 if mode & 0o111 else 0o644)
