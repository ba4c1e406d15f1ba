# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gateway with a certificate of one's own authority, made as the documentation says, and clients that verify it."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from support.doc_blocks import ROOT, blocks_of
from support.gateway import KEY, Q2, Q3, Q4, Gateway

PAGE = ROOT / "docs/gateway.md"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Run the commands of the page; returns the gateway's file and the authority's certificate."""
    [block] = [block for block in blocks_of("gateway.md", PAGE.read_text()) if "openssl x509 -req" in block.text]
    done = subprocess.run(
        ["bash", "-euc", block.text.replace("192.0.2.10", "127.0.0.1")], cwd=folder, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "gateway.pem", folder / "authority.pem"


@pytest.fixture
def secured(gateway: Gateway, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of the gateway with TLS, and its authority's certificate."""
    own, authority = make_certificate(tmp_path)
    port = gateway.bed.port + 9
    gateway.set(gateway_tls_certificate=str(own), gateway_tls_port=port)
    gateway.bed.run("gateway").expect(f"gateway https://127.0.0.1:{port}")
    gateway.wait_up(4)
    yield f"https://127.0.0.1:{port}", authority
    gateway.set(gateway_tls_certificate="")
    gateway.bed.run("gateway")


def test_clients_verify_the_certificate(gateway: Gateway, secured: tuple[str, Path]) -> None:
    url, authority = secured
    trust = ssl.create_default_context(cafile=str(authority))
    plain = openai.DefaultHttpxClient(trust_env=False, verify=trust)
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, http_client=plain) as client:
        assert client.completions.create(model=Q2, prompt="a", max_tokens=2).model == Q2
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{url}/health", trust_env=False)
    # Without TLS nothing is served.
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{gateway.url}/health", trust_env=False)
    given = ("-e", "verify_through=gateway", "-e", f"verify_api_key={KEY}")
    verified = gateway.bed.run("verify", *given, "-e", f"verify_ca_file={authority}")
    verified.expect(*(f"{model} through {url}: ok in" for model in (Q2, Q3, Q4)))
    gateway.bed.run("verify", *given, code=2).expect("0 of 3 models answered", "set verify_ca_file to a file")
    other = url.replace("127.0.0.1", "127.0.0.2")
    named = ("-e", f"verify_ca_file={authority}", "-e", f"verify_gateway_url={other}")
    gateway.set(gateway_host="0.0.0.0")
    gateway.bed.run("gateway")
    gateway.bed.run("verify", *given, *named, code=2).expect("set verify_gateway_url to an address with a name")
    gateway.set(gateway_host="127.0.0.1")
