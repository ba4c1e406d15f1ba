# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""A release archive of llama.cpp, unpacked into a prefix."""

from __future__ import annotations

import base64
import glob
import hashlib
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from ..._core.commands import Run
from ..._core.text import redact
from ..prefix import PREFIX_LAYOUT, provide
from ..requests import CONNECT_SECONDS, Provided, ProviderError, Request

# --- release ----------------------------------------------------------------------------------------------------------


def release(request: Request, _run: Run) -> Provided:
    """Unpack a release archive: from upstream, a mirror or a file, by URL and SHA-256."""
    if not request.release_url:
        raise ProviderError("no runtime_release_url is given.")
    expected = (request.release_sha256 or "").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", expected):
        raise ProviderError("runtime_release_sha256 must be the archive's sha256, 64 hexadecimal digits.")
    wanted = {"layout": PREFIX_LAYOUT, "method": "release", "sha256": expected}
    address, url = request.release_url, redact(request.release_url)

    def fill(new: str) -> dict[str, Any]:
        archive = os.path.join(new, "archive")
        found = _download(address, archive)
        if found != expected:
            raise ProviderError(
                f"{url} has sha256 {found}, but runtime_release_sha256 is {expected}. Nothing was unpacked. "
                "The download was altered or is another version: compare with the publisher's checksum."
            )
        unpack(archive, os.path.join(new, "root"))
        os.unlink(archive)
        _link_programs(new, url)
        return {**wanted, "url": url}

    holds = f"{request.prefix} holds the archive with sha256 {expected[:12]}…"
    return provide(request, wanted, fill, (holds, f"{url} in {request.prefix}"))


def _download(url: str, target: str) -> str:
    """Download url to target, with the user and password in it as a header; return its sha256."""
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme not in ("http", "https", "file"):
        raise ProviderError(f"runtime_release_url must begin with https://, http:// or file://, not {scheme or url}.")
    digest = hashlib.sha256()
    try:
        with (
            urllib.request.build_opener().open(with_header(url), timeout=CONNECT_SECONDS) as response,
            open(target, "wb") as stream,
        ):
            for block in iter(lambda: response.read(1024 * 1024), b""):
                digest.update(block)
                stream.write(block)
    except urllib.error.URLError as error:
        raise ProviderError(
            f"{redact(url)} could not be downloaded: {error.reason}. Check runtime_release_url."
        ) from error
    except (OSError, ValueError) as error:
        raise ProviderError(f"{redact(url)} could not be downloaded: {error}.") from error
    return digest.hexdigest()


def with_header(url: str) -> urllib.request.Request:
    """Return a request for url, with the user and password in it as a header that no redirect takes along."""
    parts = urllib.parse.urlsplit(url)
    credentials, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl())
    if at:
        text = urllib.parse.unquote(credentials)
        encoded = base64.b64encode((text if ":" in text else f"{text}:").encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {encoded}")
    return request


def unpack(archive: str, target: str) -> None:
    """Unpack a tar archive below target. Devices and paths outside target are refused before anything is written."""
    try:
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
            for member in members:
                _refuse_unsafe(member)
            os.makedirs(target, mode=0o755)
            for member in members:
                _unpack_member(tar, member, target)
    except (tarfile.TarError, EOFError) as error:
        raise ProviderError(f"the archive is not a readable tar archive: {error}.") from error


def _refuse_unsafe(member: tarfile.TarInfo) -> None:
    # Without ".." and absolute names, no chain of links can lead out of the target.
    names = [member.name, member.linkname] if member.issym() or member.islnk() else [member.name]
    for name in names:
        if name.startswith("/") or ".." in name.split("/"):
            raise ProviderError(f"the archive's member {member.name!r} points outside of it. Nothing was unpacked.")
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise ProviderError(f"the archive's member {member.name!r} is a device or pipe. Nothing was unpacked.")


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: str) -> None:
    path = os.path.join(target, member.name)
    if member.isdir():
        os.makedirs(path, exist_ok=True)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)
    if member.issym():
        os.symlink(member.linkname, path)
        return
    source = tar.extractfile(member)
    if source is None:
        raise ProviderError(f"the archive's member {member.name!r} links to nothing.")
    with source, open(path, "wb") as stream:
        shutil.copyfileobj(source, stream, 1024 * 1024)
    os.chmod(path, 0o755 if member.mode & 0o111 else 0o644)


def _link_programs(new: str, url: str) -> None:
    """Link every llama-* program of the archive into bin/, so that the path stays the same from version to version."""
    found = sorted(glob.glob(f"{new}/root/**/llama-server", recursive=True))
    if not found:
        raise ProviderError(f"{url} holds no llama-server.")
    os.mkdir(os.path.join(new, "bin"))
    for program in sorted(glob.glob(os.path.join(os.path.dirname(found[0]), "llama-*"))):
        if os.path.isfile(program) and os.access(program, os.X_OK):
            os.symlink(os.path.relpath(program, f"{new}/bin"), os.path.join(new, "bin", os.path.basename(program)))
