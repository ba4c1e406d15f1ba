# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""From a model's files to its record in the registry, or to the reason why it has none.

Apart from the scan, which needs none of this where no file is new.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from .bounded_reader import Budget, GgufError, ReadError
from .gguf import open_regular, read_open_header
from .records import SERVABLE, ModelError, describe
from .registry_file import encode
from .source_files import SourceFile, fingerprint_of

MAX_REASON = 400


def read_group(files: Sequence[SourceFile]) -> dict[str, Any]:
    """Return {"models": record}, {"companions": record} or {"rejected": record} for one group of files. Never raises.

    A rejection has a fingerprint if it is valid as long as the file does not change.
    """
    current: list[SourceFile] = []
    headers = []
    budget = Budget()
    try:
        for number, file in enumerate(files):
            where = f"{os.path.basename(file.path)}: " if number else ""
            try:
                descriptor, status = open_regular(encode(file.path), encode(file.real))
            except GgufError as error:
                return _rejection(files, where + str(error), lasting=False)
            reason = None
            try:
                header = read_open_header(descriptor, status.st_size, budget)
            except ReadError as error:
                # A temporary fault of the disk or network: the next attempt may succeed.
                return _rejection(files, where + str(error), lasting=False)
            except GgufError as error:
                reason = where + str(error)
            finally:
                after = _changed_at(descriptor)
                os.close(descriptor)
            current.append(SourceFile.of(file.path, status, file.alias))
            if after != (status.st_size, status.st_mtime_ns):
                return _rejection(files, f"{where}it changed while it was read: scan again later", lasting=False)
            if reason:
                return _rejection([*current, *files[len(current) :]], reason, lasting=True)
            headers.append(header)
        # Through JSON, so that a new record equals one that was read from the registry file.
        record = json.loads(json.dumps(describe(current, headers), allow_nan=False))
        return {"models" if record["kind"] in SERVABLE else "companions": record}
    except ModelError as error:
        return _rejection(current, str(error), lasting=True)
    except Exception as error:
        # Untrusted metadata may provoke any error; the rest of the scan continues.
        return _rejection(files, f"its metadata is invalid ({type(error).__name__}: {error})"[:300], lasting=False)


def _changed_at(descriptor: int) -> tuple[int, int] | None:
    """Return size and modification time of an open file; None if a file server no longer knows it."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _rejection(files: Sequence[SourceFile], reason: str, *, lasting: bool) -> dict[str, Any]:
    # It may contain untrusted text.
    short = reason if len(reason) <= MAX_REASON else reason[: MAX_REASON - 1] + "…"
    record: dict[str, Any] = {"path": files[0].path, "reason": short}
    if len(files) > 1:
        record["files"] = [file.path for file in files]
    if lasting:
        record["fingerprint"] = fingerprint_of(files)
    return {"rejected": record}
