# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The list of an image's packages."""

from __future__ import annotations

import sbom

LISTED = (
    "installed\tlibssl3t64\t3.6.0-2\tamd64\topenssl\tDebian OpenSSL Team <pkg-openssl@example.org>\n"
    "config-files\tgone\t1\tall\tgone\tA <a@example.org>\n"
    "installed\ttzdata\t2026a+b\tall\ttzdata\tB <b@example.org>\n"
)


def test_each_installed_package_has_a_package_url() -> None:
    found = sbom.packages(LISTED)
    assert [one.purl for one in found] == [
        "pkg:deb/debian/libssl3t64@3.6.0-2?arch=amd64&upstream=openssl",
        "pkg:deb/debian/tzdata@2026a%2Bb?arch=all&upstream=tzdata",
    ]


def test_the_document_names_the_image_and_all_that_it_contains() -> None:
    found = sbom.document(
        "magi-llama/magi:latest", "sha256:1", [*sbom.packages(LISTED), sbom.own("magi.llama", "0.1.0")]
    )
    assert found["spdxVersion"] == "SPDX-2.3"
    ids = [one["SPDXID"] for one in found["packages"]]
    assert len(set(ids)) == len(ids) == 4
    contained = [one["relatedSpdxElement"] for one in found["relationships"] if one["relationshipType"] == "CONTAINS"]
    assert contained == ids[1:]
