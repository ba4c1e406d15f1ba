# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""A bill of materials in CycloneDX's JSON: the models that the planned servers read, and the llama-servers.

It has no time: the same servers, models and programs give the same file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from .._core.version import COLLECTION_VERSION
from .parts import Build, ModelFile, Part
from .workloads import Settings, Workload

FILE = "bom.json"
SPEC_VERSION = "1.6"
PREFIX = "magi.llama:"
FLEET = "llama-servers"
# The licences that GGUF files name as model cards do, by SPDX's spelling. Others stay as the file has them.
_SPDX = {
    one.lower(): one
    for one in (
        *("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "BSD-3-Clause-Clear", "ISC", "Unlicense", "Zlib"),
        *("CC0-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-2.0"),
        *("CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-NC-ND-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0"),
        *(
            "MPL-2.0",
            "EPL-2.0",
            "EUPL-1.2",
            "OSL-3.0",
            "AFL-3.0",
            "Artistic-2.0",
            "BSL-1.0",
            "ECL-2.0",
            "MS-PL",
            "NCSA",
        ),
    )
}
_ADDRESS = re.compile(r"https?://[A-Za-z0-9.-]+(?::[0-9]+)?(?:/[A-Za-z0-9._~!&'()*+,;=:@%/?#-]*)?")
_DIGEST = re.compile("[0-9a-f]{64}")


def cyclonedx_files(workloads: Sequence[Workload], _settings: Settings) -> dict[str, Any]:
    """Return the bill of all hosts together by its path."""
    users: dict[Part, list[Workload]] = {}
    needs: dict[str, set[str]] = {}
    builds: dict[Build, list[Workload]] = {}
    for one in workloads:
        if one.build is not None:
            builds.setdefault(one.build, []).append(one)
        for part in map(_same_everywhere, one.parts):
            users.setdefault(part, []).append(one)
            # What goes with a model, such as its projector.
            needs.setdefault(_reference(_same_everywhere(one.parts[0])), set()).add(_reference(part))
            if one.build is not None:
                needs.setdefault(_build_reference(one.build), set()).add(_reference(part))
    references = [_reference(part) for part in users] + [_build_reference(build) for build in builds]
    components = [
        *(_program(build, used) for build, used in builds.items()),
        *(_model(part, used) for part, used in users.items()),
    ]
    components.sort(key=lambda component: str(component["bom-ref"]))
    needs[FLEET] = set(references)
    bill: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": {
            "tools": {
                "components": [{"type": "application", "name": "magi.llama", "version": COLLECTION_VERSION}],
            },
            "component": {"type": "platform", "bom-ref": FLEET, "name": FLEET},
        },
        "components": components,
        "dependencies": [
            {"ref": reference, "dependsOn": sorted(needs.get(reference, set()) - {reference})}
            for reference in [FLEET, *sorted(references)]
        ],
    }
    digest = hashlib.sha256(json.dumps(bill, sort_keys=True).encode()).hexdigest()
    return {FILE: {**bill, "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digest)}"}}


def cyclonedx_notes(workloads: Sequence[Workload], _settings: Settings) -> list[str]:
    """Warnings of what the bill cannot say: files without a checksum, servers without a known program."""
    parts = {part for one in workloads for part in one.parts}
    unknown = sorted({file.path for part in parts for file in part.files if not file.sha256})
    texts = []
    if unknown:
        texts.append(
            f"{len(unknown)} model files have no sha256 in the bill, such as {unknown[0]}: write a manifest with "
            "manifest.yml, or set registry_checksums to true, and run this again."
        )
    absent = sorted({one.host for one in workloads if one.build is None or not one.build.sha256})
    if absent:
        texts.append(f"{', '.join(absent)}: llama-server is not installed yet, so the bill lacks its sha256.")
    return texts


def _same_everywhere(part: Part) -> Part:
    """A part without the folders that its files are in, which hosts may have at other places."""
    files = tuple(ModelFile(os.path.basename(file.path), file.sha256) for file in part.files)
    return Part(**{**vars(part), "files": files})


def _reference(part: Part) -> str:
    """The same for the same content: a name alone may be that of other files on another host."""
    content = hashlib.sha256(repr(part).encode("utf-8", "surrogateescape")).hexdigest()
    return f"model:{part.name}:{content[:16]}"


def _build_reference(build: Build) -> str:
    return f"llama-server:{hashlib.sha256(repr(build).encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def _program(build: Build, users: Sequence[Workload]) -> dict[str, Any]:
    named = {"flavour": build.flavour, "build": build.build, "commit": build.commit, "provided_by": build.source}
    return {
        "type": "application",
        "bom-ref": _build_reference(build),
        "name": "llama-server",
        **({"version": build.version} if build.version else {}),
        **_hashes(build.sha256),
        "properties": _properties([*named.items(), *_places(users)]),
    }


def _model(part: Part, users: Sequence[Workload]) -> dict[str, Any]:
    whole = part.files[0] if len(part.files) == 1 else None
    figures = {
        **{"kind": part.kind, "quantization": part.quantization, "tier": part.tier},
        **{"bits_per_weight": part.bits_per_weight, "parameter_count": part.parameter_count},
        **{"context_length": part.context_length, "size_bytes": part.size_bytes},
    }
    files = [("file", file.path) for file in part.files]
    return {
        "type": "machine-learning-model",
        "bom-ref": _reference(part),
        "name": _text(part.name),
        **(_hashes(whole.sha256) if whole else {}),
        **_licenses(part.license),
        **_pedigree(part.base_model),
        **_address(part.source),
        **({} if whole else {"components": [_shard(file) for file in part.files]}),
        **({"modelCard": {"modelParameters": {"modelArchitecture": part.architecture}}} if part.architecture else {}),
        "properties": _properties([*figures.items(), *files, *_places(users)]),
    }


def _shard(file: ModelFile) -> dict[str, Any]:
    return {"type": "file", "name": _text(file.path), **_hashes(file.sha256)}


def _hashes(sha256: str) -> dict[str, Any]:
    return {"hashes": [{"alg": "SHA-256", "content": sha256}]} if _DIGEST.fullmatch(sha256) else {}


def _licenses(text: str) -> dict[str, Any]:
    if not text:
        return {}
    known = _SPDX.get(text.lower())
    return {"licenses": [{"license": {"id": known} if known else {"name": _text(text)}}]}


def _pedigree(base_model: str) -> dict[str, Any]:
    if not base_model:
        return {}
    return {"pedigree": {"ancestors": [{"type": "machine-learning-model", "name": _text(base_model)}]}}


def _address(source: str) -> dict[str, Any]:
    if not _ADDRESS.fullmatch(source):
        return {}
    return {"externalReferences": [{"type": "distribution", "url": source}]}


def _places(users: Sequence[Workload]) -> list[tuple[str, Any]]:
    return [("server", place) for place in sorted({f"{one.host}/{one.name}" for one in users})]


def _properties(pairs: Iterable[tuple[str, Any]]) -> list[dict[str, str]]:
    return [
        {"name": f"{PREFIX}{name}", "value": _text(str(value))} for name, value in pairs if value not in ("", None, 0)
    ]


def _text(value: str) -> str:
    """A text that JSON can have: the name of a file need not be UTF-8."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
