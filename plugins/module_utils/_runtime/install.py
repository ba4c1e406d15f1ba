# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Providing llama-server on a host: what is there, the distribution's package, Debian's in a prefix, or an archive.

Used by the module runtime. Every provider takes (request, run) and says where the binary is, or raises ProviderError.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .._core.commands import Run
from .._core.errors import MagiError
from .openmp import uses_openmp
from .prefix_manifest import note_in_manifest, read_manifest
from .probe import ProbeError, absent, probe
from .providers.existing import existing
from .providers.image import image
from .providers.package import package
from .providers.portable import loader_command, portable
from .providers.release import release
from .requests import MissingError, Provided, Provider, ProviderError, Request

METHODS = ("existing", "package", "portable", "release", "image")


@dataclass(frozen=True)
class Provision:
    """The fact llama_runtime, the method that provided llama-server, and the methods tried before it."""

    fact: dict[str, Any]
    method: str
    changed: bool
    tried: list[dict[str, str]]
    before: Mapping[str, Any]
    after: Mapping[str, Any]


def ensure(request: Request, method: str, run: Run, cache_path: str | None = None, ask: Run | None = None) -> Provision:
    """Find or install llama-server by the method, or for "auto" by the first one that works. Raises MagiError.

    ask runs a llama-server to find out its version and flags, as the servers' user if this is root; run is the default.
    """
    request = replace(request, ask=ask or run)
    if method == "auto" and (request.image or request.image_archive):
        method = "image"
    if method != "auto":
        try:
            return _attempt(request, method, run, cache_path, [])
        except MissingError as error:
            if not request.check:
                raise
            # In the real run, another task may install it first.
            fact = {**absent(request.path, method, [str(error)]), "openmp": None, "staged": False}
            return Provision(fact, method, False, [{"method": method, "result": str(error)}], {}, {})
    tried: list[dict[str, str]] = []
    for candidate in _auto_order(request):
        try:
            return _attempt(request, candidate, run, cache_path, tried)
        except ProbeError as error:
            if candidate == "existing":
                # It was installed on purpose, perhaps a build for this host's GPU: do not replace it silently.
                raise ProviderError(
                    f"{error} Fix or remove it, or set runtime_install_method to package, portable or release to "
                    "install another one."
                ) from error
            tried.append({"method": candidate, "result": str(error)})
        except MagiError as error:
            tried.append({"method": candidate, "result": str(error)})
    listed = " ".join(f"{entry['method']}: {entry['result']}" for entry in tried)
    raise ProviderError(f"No installation method works on this host: {listed}")


def _auto_order(request: Request) -> list[str]:
    """Return the methods in order. An earlier run's choice is preserved, even if a package becomes available later."""
    chosen = read_manifest(request.prefix).get("method")
    # An image is used only where one is named.
    methods = [method for method in METHODS if method != "image"]
    order = [method for method in methods if method != chosen]
    return [order[0], chosen, *order[1:]] if chosen in methods else order


def _attempt(request: Request, method: str, run: Run, cache: str | None, tried: Sequence[dict[str, str]]) -> Provision:
    provided = PROVIDERS[method](request, run)
    if provided.image is not None:
        # Only root has the image; llama-server runs without rights in its container.
        request = replace(request, ask=run)
    if provided.staged_dir is not None:
        fact = _probe_staged(request, provided, method, run)
    elif provided.installed:
        fact = probe(
            provided.path,
            request.ask or run,
            source=method,
            cache_path=cache,
            write_cache=not request.check,
            etc=request.etc,
            owner=request.owner,
        )
        fact["openmp"] = None if provided.image else uses_openmp(provided.path)
        if method in ("portable", "release", "image") and not request.check:
            note_in_manifest(request.prefix, identity=fact["identity"])
    else:
        fact = {**absent(provided.path, method), "openmp": None}
    if provided.image is not None:
        fact["image"] = dict(provided.image)
    fact["staged"] = provided.staged_dir is not None and not provided.discard
    fact["warnings"] = [*fact["warnings"], *provided.warnings]
    steps = [*tried, {"method": method, "result": provided.note}]
    return Provision(fact, method, provided.changed, steps, provided.before, provided.after)


def _probe_staged(request: Request, provided: Provided, method: str, run: Run) -> dict[str, Any]:
    """Probe a binary in its staging folder: the fact is the one for its final place."""
    staged_dir = str(provided.staged_dir)
    program = os.path.join(staged_dir, "bin", "llama-server")
    command = [program]
    if method == "portable":
        # Its wrapper script only works in the final place.
        command = loader_command(
            os.path.join(staged_dir, "root"), program, os.path.join(staged_dir, "root/usr/bin/llama-server")
        )
    try:
        ask = request.ask or run
        fact = probe(provided.path, ask, source=method, write_cache=False, etc=request.etc, file=program, argv=command)
        return {**fact, "openmp": None if provided.image else uses_openmp(program)}
    finally:
        if provided.discard:
            shutil.rmtree(staged_dir, ignore_errors=True)


PROVIDERS: dict[str, Provider] = {
    "existing": existing,
    "package": package,
    "portable": portable,
    "release": release,
    "image": image,
}
