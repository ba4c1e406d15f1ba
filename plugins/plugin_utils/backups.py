# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Keep the state of hosts in the folder of backups on this controller, and take it from there."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.parsing.vault import VaultLib
from ansible_collections.magi.llama.plugins.module_utils._archive import folder as backups
from ansible_collections.magi.llama.plugins.module_utils._archive.archive import (
    ENCRYPTED_KEYS,
    Archive,
    faults,
    state_files,
)
from ansible_collections.magi.llama.plugins.module_utils._archive.retention import Keep
from ansible_collections.magi.llama.plugins.module_utils._archive.state import (
    KEYS,
    StateError,
    StateFile,
    digest_of,
    unpacked,
)
from ansible_collections.magi.llama.plugins.module_utils._core.text import visible_text
from ansible_collections.magi.llama.plugins.plugin_utils.inventory_places import next_to_inventory
from ansible_collections.magi.llama.plugins.plugin_utils.playbooks import as_called
from ansible_collections.magi.llama.plugins.plugin_utils.show import WARNING, show

FOLDER = "backups"
# In a host's folder.
CONSOLE = "console"


@dataclass(frozen=True)
class Result:
    """What became of a host's state: the path of the new backup, or of the newest one if that has it already."""

    path: str
    is_new: bool
    removed: Sequence[str] = ()


class HostBackups:
    """The backups of one host. arguments are those of backup; loader is Ansible's, with the secrets of its vaults."""

    def __init__(self, arguments: Mapping[str, Any], task_vars: Mapping[str, Any], loader: Any) -> None:
        given = arguments.get("dir")
        inventory = str(task_vars.get("inventory_dir") or os.environ.get("PWD") or os.getcwd())
        root = os.path.abspath(os.path.expanduser(given)) if given else next_to_inventory(FOLDER, folder=inventory)
        self.host = str(task_vars["inventory_hostname"])
        self._vars = dict(task_vars)
        self._loader = loader
        self._keep = Keep(**arguments["keep"])
        self._is_named = bool(given)
        if arguments["keys"]:
            self._vault()
        try:
            self.folder = backups.host_folder(root, self.host)
        except StateError as error:
            raise AnsibleActionFail(as_called(visible_text(str(error)))) from error
        self._of_console = bool(arguments.get("console_database"))
        if self._of_console:
            self.folder = os.path.join(self.folder, CONSOLE)
        self.newest = backups.newest(self.folder)

    def keep(
        self,
        state: Mapping[str, Any],
        *,
        is_check: bool,
        is_asked: bool = False,
        is_needed: bool = False,
        spare: str = "",
    ) -> Result:
        """Write a backup of the state that a host has answered unless the newest one has it.

        A state that is damaged is not kept, which is an error where a backup is what was asked for. That the default
        folder cannot be written to is one there too, and where the backup is needed; else both are warnings. spare is
        the time of a backup that is not removed for it. Raises AnsibleActionFail.
        """
        if self.newest.fault:
            self._warn(self.newest.fault)
        newest = os.path.join(self.folder, self.newest.time + backups.SUFFIX) if self.newest.time else ""
        if not state["digest"]:
            self._warn_of_lost_state()
            return Result("", False)
        if "files" not in state:
            return Result(newest, False)
        try:
            files = unpacked(state["files"])
        except StateError as error:
            raise AnsibleActionFail(f"The host's state is not used: {visible_text(str(error))}") from None
        if digest_of(files) != state["digest"]:
            raise AnsibleActionFail("The host's state is not used: it does not have the digest that the host names.")
        wrong = faults(files)
        if wrong:
            # Such a state is not worth a backup, and a run may be what repairs it.
            last = f"The last backup is {self.newest.time}" if self.newest.time else "There is no backup"
            text = f"No backup was made of {self.host}: {'; '.join(wrong)}. {last}."
            if is_asked:
                raise AnsibleActionFail(visible_text(text))
            self._warn(text)
            return Result(newest, False)
        if is_check:
            return Result(os.path.join(self.folder, "…"), True)
        try:
            path = self._write(files, state["digest"])
            return Result(path, True, backups.prune(self.folder, self._keep, spare))
        except OSError as error:
            self._refuse_folder(error, is_asked or is_needed)
            return Result("", False)

    def load(self, at: str, *, with_keys: bool) -> tuple[Archive, list[StateFile]]:
        """Return the backup of a time, and the state in it. Raises AnsibleActionFail."""
        try:
            archive = backups.load(backups.chosen(self.folder, at), self.host)
            encrypted = archive.files.get(ENCRYPTED_KEYS) if with_keys else None
            return archive, state_files(archive, self._decrypted(encrypted) if encrypted is not None else None)
        except StateError as error:
            raise AnsibleActionFail(as_called(visible_text(str(error)))) from error

    def _write(self, files: Sequence[StateFile], state: str) -> str:
        content = {
            ENCRYPTED_KEYS if file.name == KEYS else file.name: self._encrypted(file.content)
            if file.name == KEYS
            else file.content
            for file in files
        }
        return backups.store(self.folder, content, self.host, state, datetime.now(timezone.utc))

    def _refuse_folder(self, error: OSError, is_needed: bool) -> None:
        """Raise AnsibleActionFail for a folder that cannot be written to; a run goes ahead without a default one."""
        text = f"The backup of {self.host} cannot be written to {self.folder}: {error.strerror}."
        other = ", from where restore.yml reads them too" if is_needed else ", or backup_before_changes to false"
        fix = as_called(f"Set backup_dir to a folder that you can write to{other}.")
        if not is_needed and not self._is_named and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            # The inventory may be someone else's, and no one has chosen a folder.
            self._warn(f"{text} {fix}")
            return
        raise AnsibleActionFail(f"{text} Nothing was changed on the host. {fix}") from error

    def _vault(self) -> VaultLib:
        vault = VaultLib(self._loader._vault.secrets)
        if not vault.secrets:
            raise AnsibleActionFail(
                "backup_keys is true, and API keys are stored encrypted only: give the run a vault password "
                "(--vault-password-file, --ask-vault-pass or ANSIBLE_VAULT_PASSWORD_FILE), or set backup_keys to false."
            )
        return vault

    def _encrypted(self, keys: bytes) -> bytes:
        return bytes(self._vault().encrypt(keys))

    def _decrypted(self, encrypted: bytes) -> bytes:
        try:
            return bytes(self._vault().decrypt(encrypted))
        except AnsibleError as error:
            raise AnsibleActionFail(
                "The API keys of the backup cannot be decrypted: give the run the vault password that they were stored "
                "with (--vault-password-file, --ask-vault-pass), or set backup_keys to false to restore all but them."
            ) from error

    def _warn_of_lost_state(self) -> None:
        if self._of_console:
            self._warn(f"{self.host} has no database of a console: nothing was backed up.")
        elif self.newest.time:
            fix = as_called("restore.yml -e at=latest brings its ports back")
            self._warn(f"{self.host} has no state, but a backup of {self.newest.time} exists: {fix}.")

    def _warn(self, text: str) -> None:
        show(self._vars, [f"{WARNING}{visible_text(text)}"])
