# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Signatures of the manifest, made and checked on the controller by the program minisign."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._core.commands import Completed, run_command
from ansible_collections.magi.llama.plugins.module_utils._core.text import visible_line
from ansible_collections.magi.llama.plugins.plugin_utils.playbooks import as_called

PROGRAM = "minisign"
SUFFIX = ".minisig"
PUBLIC_KEY = "registry_manifest_public_key"
# It is part of what is signed. A time in it would make each signature of the same manifest another one.
COMMENT = "magi.llama manifest"
SECONDS = 60
_KEY = re.compile(r"RW[A-Za-z0-9+/]{54}")


def signature_path(path: str) -> str:
    """Where the signature of a manifest is."""
    return f"{path}{SUFFIX}"


def sign(path: str, secret_key: str, password: str | None = None) -> bytes:
    """Return the signature of the file at path, the same each time. Raises AnsibleActionFail.

    password is the secret key's, None for a key without one.
    """
    # Commands are run in another folder.
    path, key = os.path.abspath(path), os.path.abspath(os.path.expanduser(secret_key))
    if not os.path.isfile(key):
        raise AnsibleActionFail(
            f'sign_with is "{secret_key}", and this file does not exist: name the secret key of minisign, which '
            f"{PROGRAM} -G -W makes."
        )
    with tempfile.TemporaryDirectory() as folder:
        made = os.path.join(folder, "signature")
        done = _run(["-S", "-s", key, "-m", path, "-x", made, "-t", COMMENT], f"{password or ''}\n")
        if done.code or not os.path.isfile(made):
            raise AnsibleActionFail(
                f"{path} could not be signed with {key}: {_reason(done)} Set sign_with to a secret key of minisign, "
                "and sign_password to its password. The manifest has been written, and has no valid signature."
            )
        with open(made, "rb") as file:
            return file.read()


@contextmanager
def verified_copy(path: str, public_key: str, variable: str = PUBLIC_KEY) -> Iterator[str]:
    """A private copy of the file at path, which has a valid signature. Raises AnsibleActionFail as verify does.

    Read the copy alone: who may write to the folder of the original can change it while and after it is verified.
    """
    _refuse_missing(path, variable)
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, os.path.basename(path))
        for original, copied in ((path, copy), (signature_path(path), signature_path(copy))):
            try:
                shutil.copyfile(original, copied)
            except OSError as error:
                raise AnsibleActionFail(
                    f"{original} cannot be read, and {variable} wants a signed manifest: {error.strerror or error}. "
                    "Let the user who runs the playbook read it."
                ) from error
        verify(copy, public_key, variable, shown=path)
        yield copy


def verify(path: str, public_key: str, variable: str = PUBLIC_KEY, *, shown: str = "") -> None:
    """Raise AnsibleActionFail, which names file, key and fix, unless the file has a valid signature next to it.

    public_key is the key itself, or the path of its file. shown is the file's name in messages, by default its path.
    """
    path = os.path.abspath(path)
    _refuse_missing(path, variable)
    done = _run(["-V", *_public_key(public_key, variable), "-m", path, "-x", signature_path(path)])
    if done.code:
        shown = shown or path
        reason = _reason(done).replace(path, shown)
        raise AnsibleActionFail(
            as_called(
                f"{shown} was changed since it was signed, or not signed with the key of {variable}: {reason} "
                "Nothing was checked against it. Bring back the signed file, or look at what differs and sign it "
                "again with manifest.yml -e sign_with=KEY."
            )
        )


def _refuse_missing(path: str, variable: str) -> None:
    for needed in (path, signature_path(path)):
        if not os.path.isfile(needed):
            raise AnsibleActionFail(
                as_called(
                    f"{needed} does not exist, and {variable} wants a signed manifest: write and sign it with "
                    "manifest.yml -e sign_with=KEY, or bring back both files."
                )
            )


def _public_key(public_key: str, variable: str) -> list[str]:
    text = public_key.strip()
    if _KEY.fullmatch(text):
        return ["-P", text]
    path = os.path.expanduser(text)
    if os.path.isabs(path) and os.path.isfile(path):
        return ["-p", path]
    raise AnsibleActionFail(
        f'{variable} is "{text}", which is neither a public key of minisign (RW and 54 more characters) nor the '
        "absolute path of a file with one: take the second line of the .pub file."
    )


def _run(arguments: list[str], text: str = "") -> Completed:
    program = shutil.which(PROGRAM)
    if program is None:
        raise AnsibleActionFail(
            f"{PROGRAM} is missing on the controller, which signs the manifest and checks its signature: apt install "
            f"{PROGRAM}, or dnf install {PROGRAM}."
        )
    try:
        # A session of its own has no terminal, where it would ask for the password.
        return run_command([program, *arguments], os.environ, SECONDS, given=text.encode())
    except OSError as error:
        raise AnsibleActionFail(f"{program} did not work: {error}.") from error


def _reason(done: Completed) -> str:
    """What the program says, without its prompts, as a sentence."""
    lines = [line.removeprefix("Password: ").strip() for line in done.stderr.splitlines()]
    text = visible_line(" ".join(line for line in lines if line)) or f"{PROGRAM} ended with {done.code}"
    return f"{text.rstrip('.')}."
