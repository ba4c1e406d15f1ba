# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps facts in a Redis that others can write to: only what is signed with a key of the controllers is used."""

from __future__ import annotations

DOCUMENTATION = r"""
name: redis
short_description: Keep facts in a Redis or Valkey, signed
version_added: 0.1.0
author: The magi.llama developers (@magi-llama)
description:
  - Shares the cache of facts or of an inventory between controllers.
  - Ansible executes parts of what it finds in a cache. The user who can write to it can therefore run commands on every
    controller that reads it. So each value is signed with a key that only the controllers have (HMAC-SHA256). A value
    with another signature, of another host, or older than O(_timeout) is not used.
requirements:
  - The Python package C(redis) on the controller.
options:
  _uri:
    description: URL of the Redis, such as V(rediss://magi@cache.example.com:6379).
    required: true
    type: str
    env:
      - name: ANSIBLE_CACHE_PLUGIN_CONNECTION
    ini:
      - key: fact_caching_connection
        section: defaults
  _password_file:
    description: A file with the password for the Redis in its first line.
    type: path
    env:
      - name: MAGI_CACHE_PASSWORD_FILE
    ini:
      - key: password_file
        section: magi_llama_cache
  _key_file:
    description:
      - A file with the key, of at least 32 characters, such as C(openssl rand -hex 32) prints. All controllers need the
        same key. Only its owner may have access to it, so its mode is 0600 or less.
    required: true
    type: path
    env:
      - name: MAGI_CACHE_KEY_FILE
    ini:
      - key: key_file
        section: magi_llama_cache
  _prefix:
    description: How the names of the entries in the Redis begin.
    type: str
    default: "magi:cache:"
    env:
      - name: ANSIBLE_CACHE_PLUGIN_PREFIX
    ini:
      - key: fact_caching_prefix
        section: defaults
  _timeout:
    description: Seconds after which an entry is not used any more; V(0) means never.
    type: integer
    default: 86400
    env:
      - name: ANSIBLE_CACHE_PLUGIN_TIMEOUT
    ini:
      - key: fact_caching_timeout
        section: defaults
"""

import hashlib
import hmac
import json
import os
import stat
import time
from collections.abc import Sequence
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.cache import BaseCacheModule
from ansible.utils.display import Display
from ansible_collections.magi.llama.plugins.module_utils._core.text import redact, visible_line
from ansible_collections.magi.llama.plugins.plugin_utils.redis_client import RedisError, connect, failure

VERSION = b"1"
MIN_KEY_BYTES = 32
NOT_SIGNED = (
    "The cached facts {name} in {url} have no valid signature, and are not used. If the key in {key_file} was changed, "
    "they are of the key before. Otherwise the user who wrote them may have tried to run code here: look who can write."
)


class CacheModule(BaseCacheModule):  # type: ignore[misc]
    """Entries are `1.<seconds since 1970>.<signature in hex>.<JSON>`; the signature covers name, time and JSON."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._url = str(self.get_option("_uri"))
        self._prefix = str(self.get_option("_prefix"))
        self._timeout = int(self.get_option("_timeout"))
        self._key_file = str(self.get_option("_key_file"))
        self._key = read_key(self._key_file)
        # What was valid once in this run stays so.
        self._known: dict[str, Any] = {}
        self._warned: set[str] = set()
        try:
            self._client = connect(self._url, self.get_option("_password_file"))
        except RedisError as error:
            raise AnsibleError(str(error)) from error

    def get(self, key: str) -> Any:
        if not self.contains(key):
            raise KeyError(key)
        return self._known[key]

    def contains(self, key: Any) -> bool:
        if key not in self._known:
            entry = self._command("get", self._prefix + str(key))
            value = None if entry is None else self._opened(str(key), entry)
            if value is None:
                return False
            self._known[key] = value
        return True

    def set(self, key: str, value: Any) -> None:
        self._known[key] = value
        now, text = b"%d" % time.time(), json.dumps(value).encode()
        entry = b".".join((VERSION, now, self._signature(key, now, text), text))
        self._command("set", self._prefix + key, entry, ex=self._timeout or None)

    def keys(self) -> Sequence[str]:
        names = {*self._known}
        for found in self._command("keys_of", self._prefix) or ():
            names.add(found.decode(errors="replace").removeprefix(self._prefix))
        return sorted(name for name in names if self.contains(name))

    def delete(self, key: str) -> None:
        self._known.pop(key, None)
        self._command("delete", self._prefix + key)

    def flush(self) -> None:
        for key in self.keys():
            self.delete(key)

    def _opened(self, key: str, entry: bytes) -> Any:
        """Return the value of an entry; None, with a warning, unless it has a valid signature."""
        version, now, signature, text = [*entry.split(b".", 3), b"", b"", b""][:4]
        expected = self._signature(key, now, text)
        if version != VERSION or not hmac.compare_digest(signature, expected):
            self._warn(NOT_SIGNED.format(name=visible_line(key), url=redact(self._url), key_file=self._key_file))
            return None
        # A former entry may have been put back.
        return None if self._timeout and time.time() - int(now) > self._timeout else json.loads(text)

    def _signature(self, key: str, now: bytes, text: bytes) -> bytes:
        name = (self._prefix + key).encode()
        signed = b"magi.llama.redis\0%s\0%d\0%s\0%s\0%s" % (VERSION, len(name), name, now, text)
        return hmac.new(self._key, signed, hashlib.sha256).hexdigest().encode()

    def _command(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Send a command. Where the Redis does not answer there is a warning, and facts are as if not cached."""
        try:
            if name == "keys_of":
                return list(self._client.scan_iter(match=_escaped(arguments[0]) + "*"))
            return getattr(self._client, name)(*arguments, **options)
        except Exception as error:
            self._warn(f"The cache of facts is not used: {failure(self._url, error)}")
            return None

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            Display().warning(text)


def read_key(path: str) -> bytes:
    """Return the key in a file that is for its owner only. Raises AnsibleError."""
    made = f"Make one: umask 077; openssl rand -hex 32 > {visible_line(path)}"
    try:
        with open(os.path.expanduser(path), "rb") as stream:
            status = os.fstat(stream.fileno())
            key = stream.read(4096).strip()
    except OSError as error:
        raise AnsibleError(f"The key file {visible_line(path)} cannot be read: {error.strerror}. {made}") from error
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077 or status.st_uid not in (os.geteuid(), 0) or not stat.S_ISREG(status.st_mode):
        raise AnsibleError(
            f"The key file {visible_line(path)} is not for its owner alone (mode {mode:04o}, user {status.st_uid}), so "
            "its key may be known to others and is not used. Make a new one with mode 0600."
        )
    if len(key) < MIN_KEY_BYTES:
        raise AnsibleError(f"The key in {visible_line(path)} is shorter than {MIN_KEY_BYTES} characters. {made}")
    return key


def _escaped(prefix: str) -> str:
    """A prefix as a part of a pattern of Redis."""
    return "".join(f"\\{character}" if character in "*?[]^-\\" else character for character in prefix)
