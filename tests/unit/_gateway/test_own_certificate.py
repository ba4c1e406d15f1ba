# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The certificate that a gateway makes for itself: made once, kept, renewed, and taken by clients that have it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import stat
import struct
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway import own_certificate as own
from ansible_collections.magi.llama.plugins.module_utils._gateway.files import Places
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend, GatewayError
from cryptography import x509
from support.fake_server import FakeServer
from support.running_gateway import HAPROXY, Running, free_port, rendered, server

pytestmark = pytest.mark.skipif(not shutil.which("openssl", path=own._PATH), reason="no openssl on this machine")
HOST = "127.0.0.1"
MAX_FRAME_SIZE = 5


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "state").mkdir()
    return Places(str(tmp_path / "state"))


def made(places: Places, host: str = HOST, name: str = "gw1", *, dry_run: bool = False) -> tuple[str, list[str]]:
    warnings: list[str] = []
    return own.own_certificate(places, host, name, warnings, dry_run=dry_run), warnings


def test_certificate_is_made_once_and_kept(places: Places) -> None:
    first, warnings = made(places)
    assert warnings == []
    assert made(places) == (first, [])
    assert made(places, dry_run=True) == (first, [])
    assert Path(places.own_certificate).read_text() == first
    assert stat.S_IMODE(os.stat(places.own_certificate).st_mode) == 0o600
    public = Path(places.certificate).read_text()
    assert "PRIVATE" not in public
    assert first.startswith(public)
    assert sorted(os.listdir(places.state_dir)) == ["certificate.pem", "own-certificate.pem"]
    assert {places.own_certificate, places.certificate} <= set(places.all())
    certificate = x509.load_pem_x509_certificate(public.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"gw1", "localhost"} <= set(names.get_values_for_type(x509.DNSName))
    assert HOST in map(str, names.get_values_for_type(x509.IPAddress))
    days = (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days
    assert days == own.DAYS


def test_dry_run_makes_none(places: Places) -> None:
    assert made(places, dry_run=True) == ("", [])
    assert os.listdir(places.state_dir) == []


@pytest.mark.parametrize(("days", "is_new"), [(31, False), (29, True), (-1, True)])
def test_certificate_is_renewed_in_its_last_days(
    places: Places, monkeypatch: pytest.MonkeyPatch, days: int, is_new: bool
) -> None:
    first, _warnings = made(places)
    later = time.time() + (own.DAYS - days) * 86400
    monkeypatch.setattr(own.time, "time", lambda: later)
    second, warnings = made(places)
    assert (second != first) is is_new
    expected = f"as the previous one ends within 30 days: give {places.certificate} to its clients."
    assert [warning.endswith(expected) for warning in warnings] == [True] * is_new
    assert Path(places.certificate).read_text() in second


def test_certificate_is_renewed_for_another_name_only(places: Places) -> None:
    first, _warnings = made(places, "0.0.0.0")
    assert made(places, "0.0.0.0")[0] == made(places, "::")[0] == first
    second, [warning] = made(places, "192.0.2.10")
    assert second != first
    assert "is not for 192.0.2.10: give" in warning
    assert made(places, "192.0.2.10", "gw2.example.com")[0] != second


def test_names_are_those_that_a_certificate_can_have() -> None:
    given = [
        "0.0.0.0",
        "::",
        "",
        "GW1.example.com",
        "a b",
        "x\n[y]",
        "2001:DB8::1",
        "192.0.2.1",
        "gw1.example.com",
        "a_b",
    ]
    assert own.alternative_names(given) == ["DNS:gw1.example.com", "IP:2001:db8::1", "IP:192.0.2.1"]
    assert own.alternative_names(["a," + "b"]) == []


def test_host_without_openssl_is_told_so(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "_PATH", "/nowhere")
    with pytest.raises(GatewayError, match=r"this host has no openssl .* install the package openssl"):
        made(places)


@pytest.mark.skipif(not os.path.exists(HAPROXY), reason="no HAProxy on this machine")
def test_clients_with_the_file_verify_it(places: Places, tmp_path: Path) -> None:
    port = free_port()
    content, _warnings = made(places)
    with FakeServer() as fake:
        backends = [Backend("m", "M", "Q4", "model", (server(fake.port),))]
        files = rendered(backends, host=HOST, tls_port=port, certificate="auto", metrics_port=free_port())
        gateway = Running(tmp_path, {**files, "certificate.pem": content}, f"https://{HOST}:{port}", "")
        try:
            assert gateway.admin.wait_for_worker(None, 10), gateway.log.read_text()
            gateway.wait_until({f"s_{fake.port}": "UP"})
            trust = ssl.create_default_context(cafile=places.certificate)
            trust.verify_flags |= ssl.VERIFY_X509_STRICT
            for host in (HOST, "localhost"):
                found = httpx.get(f"https://{host}:{port}/v1/models", trust_env=False, verify=trust)
                assert [one["id"] for one in found.json()["data"]] == ["m"]
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                httpx.get(f"{gateway.url}/health", trust_env=False)
            assert settings_of_http2(port, trust).get(MAX_FRAME_SIZE, 16384) < 2**24
            if curl := shutil.which("curl"):
                body = tmp_path / "body"
                body.write_text('{"model":"m","prompt":"' + "a" * 2_000_000 + '"}')
                command = [curl, "-sf", "--noproxy", "*", "--cacert", places.certificate, "-d", f"@{body}", "--http2"]
                done = subprocess.run([*command, f"{gateway.url}/v1/completions"], capture_output=True, check=True)
                assert json.loads(done.stdout)["port"] == fake.port
        finally:
            gateway.stop()


def settings_of_http2(port: int, trust: ssl.SSLContext) -> dict[int, int]:
    """What a gateway says first to a client of HTTP/2, by number. A client hangs up at a value that is not allowed."""
    trust.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((HOST, port), 10) as plain,
        trust.wrap_socket(plain, server_hostname=HOST) as connection,
        connection.makefile("rb") as stream,
    ):
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        head = stream.read(9)
        assert head[3] == 4
        content = stream.read(int.from_bytes(head[:3], "big"))
        return dict(struct.iter_unpack(">HI", content))
