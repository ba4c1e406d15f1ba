# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Take the values of Ansible's vaults out of a text: a task may fail with one in its message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ansible.errors import AnsibleError
from ansible.parsing.vault import EncryptedString

MASK = "…"
# Shorter ones are words of many texts.
SHORTEST = 4
_HEADER = b"$ANSIBLE_VAULT;"


def without_vault_values(text: str, variables: Mapping[str, Any], loader: Any) -> str:
    """Return a text in which each value that is encrypted in a host's variables, or in a file of them, is masked.

    variables are the host's, as the variable manager has them; loader has read the files.
    """
    found = {value for value in _encrypted(variables) if len(value) >= SHORTEST and value in text}
    found.update(value for value in _of_files(loader) if len(value) >= SHORTEST and value in text)
    for value in sorted(found, key=len, reverse=True):
        text = text.replace(value, MASK)
    return text


def _encrypted(value: Any) -> Iterator[str]:
    """The decrypted values within a value."""
    if isinstance(value, EncryptedString):
        # Without its password Ansible cannot have used it.
        with suppress(AnsibleError):
            yield str(value)
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _encrypted(item)


def _of_files(loader: Any) -> Iterator[str]:
    """The texts in files that are encrypted as a whole."""
    for path, content in list(getattr(loader, "_FILE_CACHE", {}).items()):
        with suppress(OSError, ValueError), open(path, "rb") as stream:
            if stream.read(len(_HEADER)) == _HEADER:
                yield from _texts(content)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from (line.strip() for line in [value, *value.splitlines()])
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
