# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The controller's part in distributing models: which files there are, and their pieces where it is the source."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._distribution.client import (
    FAILURES,
    fetch_small,
    mirror_url,
)
from ansible_collections.magi.llama.plugins.module_utils._distribution.pieces import (
    MAX_FILE_BYTES,
    SUFFIX,
    Pieces,
    parse_pieces,
    pieces_of,
)
from ansible_collections.magi.llama.plugins.module_utils._distribution.run_plan import (
    CONTROLLER,
    MIRROR,
    Transfer,
    check_listed,
    lister_of,
    transfers,
)
from ansible_collections.magi.llama.plugins.module_utils._distribution.wanted import (
    WantedError,
    check_name,
    chosen_by_name,
    chosen_by_profile,
)
from ansible_collections.magi.llama.plugins.module_utils._models.checksums import check_manifest
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import parse_size
from ansible_collections.magi.llama.plugins.plugin_utils.yaml_files import load_manifest

LEAST_RATE = 1_000_000
# The process writes its status four times a second, and a busy disk may take a while.
LEAST_SILENCE = 60.0
# Registered by the role's tasks.
FOUND, LISTED, STARTED = "__models_found", "__models_listed", "__models_started"


def is_mirror(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def files_in(folder: str) -> dict[str, int]:
    """The model files below a folder on the controller, by path, with their bytes. Raises AnsibleActionFail."""
    if not os.path.isdir(folder):
        raise AnsibleActionFail(
            f"models_source: there is no folder {folder} on the controller. Set it to a folder with models, or to the "
            "address of a mirror, which begins with http:// or https://."
        )
    found = {}
    for at, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = os.path.join(at, name)
            status = os.stat(path) if name.endswith(".gguf") and os.path.exists(path) else None
            if status is not None and stat.S_ISREG(status.st_mode):
                found[os.path.relpath(path, folder)] = status.st_size
    return found


def known_files(manifest_file: str, public_key: str, source: str) -> dict[str, dict[str, Any]]:
    """By name, size and sha256 (or None) of the files of the manifest and of the controller's folder.

    With a public key of minisign the manifest has to be signed, and only its files are known.
    """
    if public_key and not manifest_file:
        raise AnsibleActionFail(
            "registry_manifest_public_key is set, and there is no manifest: write and sign it with manifest.yml."
        )
    listed = check_manifest(load_manifest(manifest_file, None, public_key)) if manifest_file else {}
    known = {name: {"size": entry.get("size"), "sha256": entry["sha256"]} for name, entry in listed.items()}
    for name, size in (files_in(source) if source and not is_mirror(source) and not public_key else {}).items():
        known.setdefault(name, {"size": size, "sha256": None})
    if not known:
        raise AnsibleActionFail(
            "It is not known which model files there are: write the manifest with manifest.yml, or set models_source "
            "to a folder on the controller."
        )
    return {name: entry for name, entry in known.items() if _is_usable(name)}


def _is_usable(name: str) -> bool:
    """Whether a file can be distributed; one that is listed by an absolute path cannot."""
    try:
        check_name(name)
    except WantedError:
        return False
    return True


def wanted_files(given: Mapping[str, Any], folder: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The files for the host to inspect, and the entries of the profile that name none of them.

    folder is that of the inventory, to which the path of a manifest is relative.
    """
    manifest_file = given["manifest_file"] and os.path.join(folder, given["manifest_file"])
    known = known_files(manifest_file, given["manifest_public_key"], given["source"])
    without: list[str] = []
    if given["models"]:
        names = chosen_by_name(given["models"], known)
    elif given["profile"]:
        names, without = chosen_by_profile(given["profile"], known)
    else:
        raise AnsibleActionFail("models_files is empty and there is no profile: set one of them.")
    return [{"name": name, **entry, "wanted": name in names} for name, entry in known.items()], without


def has_answered(answer: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether a step has succeeded on a host. A failed answer is the host's own word: nothing has compared it."""
    ends = ("failed", "unreachable", "skipped")
    return isinstance(answer, Mapping) and not any(answer.get(key) for key in ends)


class Silence:
    """Notices a host whose process does not write its status any more, which is not the same as having no piece."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = max(seconds, LEAST_SILENCE), clock
        self._last: Mapping[str, Any] = {}
        self._changed_at = clock()

    def error(self, status: Mapping[str, Any]) -> str:
        """Why there is nothing to wait for; empty while the status changes."""
        now = self._clock()
        if status != self._last:
            self._last, self._changed_at = status, now
        silent = now - self._changed_at
        return (
            f"The host's process has reported nothing new for {silent:.0f} s: its disk is full or hangs."
            if silent > self._seconds
            else ""
        )


def run_of(task_vars: Mapping[str, Any]) -> tuple[list[Transfer], dict[str, str]]:
    """The transfers of the run, and the address of each of its hosts. Raises MagiError.

    A host that has failed since is among them: the numbers of files are the same in each step.
    """
    found, addresses = {}, {}
    for host in task_vars["ansible_play_hosts_all"]:
        variables = task_vars["hostvars"][host]
        answer = variables.get(FOUND)
        if has_answered(answer) and "files" in answer:
            found[host] = answer["files"]
            addresses[host] = str(answer["address"])
    return transfers(found), addresses


def listed_of(task_vars: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """What the hosts of the run have listed, by file, and the token, empty where no host has succeeded."""
    listed: dict[str, Any] = {}
    token = ""
    for host in task_vars["ansible_play_hosts_all"]:
        answer = task_vars["hostvars"][host].get(LISTED)
        if has_answered(answer) and "listed" in answer:
            listed.update(answer["listed"])
            token = token or str(answer.get("token") or "")
    return listed, token


def to_list(wanted: list[Transfer], source: str, me: str, is_first: bool) -> tuple[list[Transfer], dict[str, Any]]:
    """The files whose pieces this host lists, and those lists that the controller makes, once, for the first host."""
    available: dict[str, str] = {}
    if source and is_mirror(source):
        available = {transfer.name: MIRROR for transfer in wanted if not transfer.has}
    elif source:
        available = dict.fromkeys(files_in(source), CONTROLLER)
    own, made = [], {}
    for transfer in wanted:
        lister = lister_of(transfer, available)
        if lister == me:
            own.append(transfer)
        elif is_first and lister in (CONTROLLER, MIRROR):
            made[transfer.name] = _listed_here(transfer, source, lister)
    return own, made


def _listed_here(transfer: Transfer, source: str, lister: str) -> dict[str, Any]:
    """A file's pieces from the controller's folder or from the mirror. Raises MagiError."""
    if lister == CONTROLLER:
        path = os.path.join(source, transfer.name)
        pieces = pieces_of(path)
        check_listed(transfer, pieces.sha256, pieces.size, path)
        return {"pieces": pieces.as_dict(), "from": CONTROLLER, "mirror": ""}
    url = mirror_url(source, transfer.name)
    pieces = _pieces_at(url)
    check_listed(transfer, pieces.sha256, pieces.size, url)
    return {"pieces": pieces.as_dict(), "from": MIRROR, "mirror": url}


def _pieces_at(url: str) -> Pieces:
    try:
        return parse_pieces(json.loads(fetch_small(url + SUFFIX, MAX_FILE_BYTES)), url + SUFFIX)
    except MagiError as error:
        raise AnsibleActionFail(
            f"{error} A mirror has to have {os.path.basename(url)}{SUFFIX} next to the file: a run from a folder or a "
            "host writes it there."
        ) from None
    except FAILURES as error:
        raise AnsibleActionFail(f"{url}{SUFFIX}: {error}. Look whether the controller reaches the mirror.") from None


def rate_of(name: str, value: str) -> int:
    """Bytes a second in a variable; 0 for an empty one. Raises AnsibleActionFail."""
    if not value:
        return 0
    try:
        rate = parse_size(value)
    except ValueError:
        rate = 0
    if rate < LEAST_RATE:
        raise AnsibleActionFail(f"{name} is {value!r:.40}: set it to a size such as 20MB, for a second, at least 1MB.")
    return rate
