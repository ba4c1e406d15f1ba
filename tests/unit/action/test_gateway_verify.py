# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gateway is asked for every model by the machine that reaches it, with its certificate verified."""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.action import gateway_verify
from ansible_collections.magi.llama.plugins.action.gateway_verify import Gateway
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import FILLED_IN
from ansible_collections.magi.llama.plugins.module_utils._gateway.verification import ask_from_host
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

KEY = "key-of-a-client"
ROUTED = [{"model_id": "a", "kind": "model"}, {"model_id": "e", "kind": "embedding"}]


class Fake(BaseHTTPRequestHandler):
    """A gateway of two models."""

    serves = "itself"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self.answer(401, {"error": {"message": "No.", "code": "invalid_api_key"}}, "")
        model = body["model"] if self.serves == "itself" else self.serves
        found = {"model": model, "choices": [], "data": []}
        if body.get("stream"):
            return self.answer(200, f"data: {json.dumps(found)}\n\ndata: [DONE]\n\n", model)
        return self.answer(200, {**found, "timings": {"predicted_n": 8, "predicted_ms": 70.0}}, model)

    def answer(self, status: int, content: Any, model: str) -> None:
        text = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        if model:
            self.send_header("X-Magi-Model", model)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_arguments: Any) -> None:
        pass


Serve = Callable[..., int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a fake gateway, with TLS where a certificate is given; returns its port."""
    started = []

    def start(certificate: Path | None = None, serves: str = "itself") -> int:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Fake,), {"serves": serves}))
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        started.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return int(server.server_address[1])

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An authority's certificate, and a certificate for 127.0.0.1 of it with its key."""
    folder = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.timezone.utc)

    def certificate(name: str, signer: Any, issuer: str, key: Any, *, is_authority: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(is_authority, None), True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
        )
        if is_authority:
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, True)
        return builder.sign(signer, hashes.SHA256())

    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    form = serialization.Encoding.PEM
    authority, own = folder / "authority.pem", folder / "gateway.pem"
    authority.write_bytes(certificate("root", root, "root", root, is_authority=True).public_bytes(form))
    secret = leaf.private_bytes(form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    own.write_bytes(certificate("gateway", root, "root", leaf, is_authority=False).public_bytes(form) + secret)
    return authority, own


def known(**more: Any) -> dict[str, Any]:
    return {"changed": False, "routed": ROUTED, "answers": [], **more}


def arguments(port: int, **more: Any) -> dict[str, Any]:
    return {"state_dir": "/s", "name": "gw1", "port": port, "timeout": 5, "api_key": KEY, **more}


def test_every_model_is_asked_whole_and_streamed(run_action, serve: Serve) -> None:
    port = serve()
    run = run_action("gateway_verify", arguments(port), answers=[known()], transport="local")
    assert not run.result.get("failed")
    assert run.result["msg"] == f"2 of 2 models answered through the gateway gw1 (http://127.0.0.1:{port})"
    first, second = run.result["models"]
    assert (first["name"], first["ok"], first["via"], first["tokens_per_second"]) == ("a", True, "controller", 100.0)
    assert first["streamed_seconds"] is not None
    assert (second["name"], second["ok"], second["streamed_seconds"]) == ("e", True, None)
    assert run.lines[0].startswith(f"h | a through http://127.0.0.1:{port}: ok in 0.")
    # The host is sent no key, as the controller asks.
    assert "api_key" not in run.calls[0][1]


def test_other_model_fails_the_task(run_action, serve: Serve) -> None:
    run = run_action("gateway_verify", arguments(serve(serves="b")), answers=[known()], transport="local")
    assert run.result["failed"]
    assert "a: /v1/completions was answered by the model b" in run.result["msg"]


def test_missing_and_wrong_key_name_the_variable(run_action, serve: Serve) -> None:
    port = serve()
    without = {key: value for key, value in arguments(port).items() if key != "api_key"}
    run = run_action("gateway_verify", without, answers=[known()], transport="local")
    assert "set verify_api_key to the key of a client in gateway_api_keys" in run.result["msg"]
    run = run_action("gateway_verify", arguments(port, api_key="wrong"), answers=[known()], transport="local")
    assert "verify_api_key is not the key of a client" in run.result["msg"]


def test_certificate_is_verified_by_file_or_system(run_action, serve: Serve, pem: tuple[Path, Path]) -> None:
    authority, own = pem
    port = serve(own)
    given = arguments(port, tls=True, ca_file=str(authority))
    assert not run_action("gateway_verify", given, answers=[known()], transport="local").result.get("failed")
    system = run_action("gateway_verify", arguments(port, tls=True), answers=[known()], transport="local").result
    assert system["failed"]
    assert "set verify_ca_file to a file with the certificate of its authority" in system["msg"]
    other = arguments(port, tls=True, ca_file=str(authority), url=f"https://localhost:{port}")
    other_name = run_action("gateway_verify", other, answers=[known()], transport="local").result
    assert "set verify_gateway_url to an address with a name of the certificate" in other_name["msg"]


def test_unreadable_authorities_are_refused_before_anything_is_asked(run_action, tmp_path: Path) -> None:
    for path in (tmp_path / "none.pem", tmp_path / "empty.pem"):
        given = arguments(8443, tls=True, host="192.0.2.1", ca_file=str(path))
        with pytest.raises(AnsibleActionFail, match=r"verify_ca_file .* has no certificates that can be read"):
            run_action("gateway_verify", given)
        (tmp_path / "empty.pem").write_text("")


def test_refused_connection_names_gateway_and_fix(run_action, serve: Serve) -> None:
    run = run_action("gateway_verify", arguments(1), answers=[known()], transport="local")
    assert "through the gateway gw1 (http://127.0.0.1:1)" in run.result["msg"]
    assert "run magi.llama.gateway if nothing listens there" in run.result["msg"]


def test_host_asks_where_gateway_is_on_its_loopback(run_action) -> None:
    models = [
        {
            **{"name": "a", "ok": True, "via": "host", "seconds": 0.1, "streamed_seconds": 0.2},
            **{"tokens_per_second": None, "error": None},
        }
    ]
    run = run_action("gateway_verify", arguments(8070), answers=[known(answers=models)])
    assert run.result["models"] == models
    assert run.calls[0][1]["api_key"] == KEY
    assert run.calls[0][1][FILLED_IN] == {"asks": True}
    assert run.lines == ["h | a through http://127.0.0.1:8070: ok in 0.10 s, streamed in 0.20 s"]


def test_half_of_the_host_asks_the_same(serve: Serve) -> None:
    port = serve()
    found = ask_from_host(("127.0.0.1", port), ROUTED, KEY, 5)
    assert [(model["name"], model["ok"], model["via"]) for model in found] == [("a", True, "host"), ("e", True, "host")]
    refused = ask_from_host(("127.0.0.1", port), ROUTED, None, 5)
    assert "set verify_api_key" in refused[0]["error"]
    closed = ask_from_host(("127.0.0.1", 1), ROUTED, KEY, 5)
    assert closed[0]["error"].startswith("http://127.0.0.1:1: ")


@pytest.mark.parametrize(
    ("gateway", "url"),
    [
        (Gateway("g", "gw1", ("192.0.2.1", 8443), has_tls=True), "https://192.0.2.1:8443"),
        (Gateway("g", "gw1", ("0.0.0.0", 8443), has_tls=True), "https://gw1:8443"),
        (Gateway("g", "gw1", ("::", 8443), has_tls=True), "https://gw1:8443"),
        (Gateway("g", "gw1", ("0.0.0.0", 8443), has_tls=True, local=True), "https://127.0.0.1:8443"),
        (Gateway("g", "gw1", ("127.0.0.1", 8070), local=True), "http://127.0.0.1:8070"),
        (Gateway("g", "gw1", ("127.0.0.1", 8070), url="https://gw.example.com/"), "https://gw.example.com"),
    ],
)
def test_address_is_of_the_inventory(gateway: Gateway, url: str) -> None:
    assert gateway.asked_url() == url
    assert not gateway.asked_by_host("auto")


@pytest.mark.parametrize(
    "url", ["gw1:8443", "https://", "ftp://gw1", "https://gw1/v1", "https://a:b@gw1", "http://[", 7]
)
def test_url_that_is_not_an_address_is_refused(url: str) -> None:
    with pytest.raises(AnsibleActionFail, match="it is the address of the gateway without a path"):
        Gateway("g", "gw1", ("127.0.0.1", 8070), url=str(url)).asked_url()


def test_machine_that_cannot_ask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, closed = Gateway("g", "gw1", ("127.0.0.1", 8070)), Gateway("g", "gw1", ("127.0.0.1", 8443), has_tls=True)
    with pytest.raises(AnsibleActionFail, match="only the host g reaches its gateway"):
        hidden.asked_by_host("controller")
    with pytest.raises(AnsibleActionFail, match="set verify_from=controller, and verify_gateway_url"):
        closed.asked_by_host("auto")
    monkeypatch.setattr(gateway_verify, "httpx", None)
    with pytest.raises(AnsibleActionFail, match="pip install httpx, or set verify_from=host"):
        Gateway("g", "gw1", ("127.0.0.1", 8070), local=True).asked_by_host("auto")


def test_gateway_without_models_is_refused(run_action) -> None:
    with pytest.raises(AnsibleActionFail, match=r"has no model yet: run magi\.llama\.site first"):
        run_action("gateway_verify", arguments(8070), answers=[known(routed=[])])
