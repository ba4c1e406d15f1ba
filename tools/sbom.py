# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an image contains, as an SPDX 2.3 document, from dpkg's own list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

# For dpkg-query -W -f.
FORMAT = "${db:Status-Status}\\t${Package}\\t${Version}\\t${Architecture}\\t${source:Package}\\t${Maintainer}\\n"


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    # A package URL.
    purl: str
    supplier: str = "NOASSERTION"
    licence: str = "NOASSERTION"


def packages(listed: str) -> list[Package]:
    """The installed packages in what dpkg-query printed."""
    found = []
    for line in listed.splitlines():
        status, name, version, architecture, source, maintainer = line.split("\t")
        if status == "installed":
            purl = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}&upstream={quote(source)}"
            found.append(Package(name, version, purl, f"Organization: {maintainer}"))
    return found


def own(name: str, version: str) -> Package:
    """A package of this project."""
    return Package(name, version, f"pkg:generic/{name}@{version}", licence="GPL-3.0-or-later")


def document(image: str, digest: str, contents: Sequence[Package]) -> dict[str, Any]:
    """The SPDX document of an image; digest is the engine's id of it."""
    listed = [{**entry(one), "SPDXID": f"SPDXRef-{number}-{plain(one.name)}"} for number, one in enumerate(contents)]
    about = {
        "SPDXID": "SPDXRef-image",
        "name": image,
        "versionInfo": digest,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "primaryPackagePurpose": "CONTAINER",
    }
    contained = [
        {"spdxElementId": "SPDXRef-image", "relationshipType": "CONTAINS", "relatedSpdxElement": one["SPDXID"]}
        for one in listed
    ]
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": image,
        "documentNamespace": f"https://spdx.org/spdxdocs/{plain(image)}-{plain(digest)}",
        "creationInfo": {
            "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": ["Tool: magi.llama-tools-sbom"],
        },
        "packages": [about, *listed],
        "relationships": [
            {
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": "SPDXRef-image",
            },
            *contained,
        ],
    }


def entry(package: Package) -> dict[str, Any]:
    return {
        "name": package.name,
        "versionInfo": package.version,
        "supplier": package.supplier,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": package.licence,
        "copyrightText": "NOASSERTION",
        "externalRefs": [
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": package.purl}
        ],
    }


def plain(text: str) -> str:
    """The text with the characters that an SPDX identifier may have."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text)
