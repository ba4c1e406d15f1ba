# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The console starts, answers, and keeps its data folder to itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.console import PROGRAM, RunningConsole, token_of


def test_health_without_token_answers(console: RunningConsole) -> None:
    answer = console.anonymous.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_unknown_path_is_a_problem_document(console: RunningConsole) -> None:
    answer = console.anonymous.get("/nowhere")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert set(answer.json()) == {"type", "title", "status", "detail", "fix", "nearest", "instance"}


def test_files_of_the_data_folder_are_private(console: RunningConsole) -> None:
    console.wait(console.submit("status")["id"])
    files = [console.data, *console.data.rglob("*")]
    assert {"pid", "rc", "request.json", "vars.json", "output.log", "tokens.json"} <= {path.name for path in files}
    open_to_others = {path: oct(path.stat().st_mode) for path in files if path.stat().st_mode & 0o077}
    assert open_to_others == {}


@pytest.mark.parametrize(
    "arguments, text",
    [
        (("--inventory", "none"), "--inventory none: does not exist"),
        (("--inventory", ".", "--listen", "0.0.0.0:8000"), "tokens would be sent in clear"),
        (("--inventory", ".", "--listen", "8000"), "use ADDRESS:PORT"),
        (("--inventory", ".", "--tls-key", "."), "--tls-key needs --tls-certificate"),
        (("--inventory", ".", "--redis", "redis://:s@h"), "give the password in --redis-password-file"),
        (("--inventory", ".", "--redis", "redis://h?password=s"), "give the password in --redis-password-file"),
        (("--inventory", ".", "--redis", "h:6379"), "--redis h:6379 cannot be used: Redis URL must specify"),
        (("--inventory", ".", "--redis", "redis://127.0.0.1:1"), "--redis redis://127.0.0.1:1 cannot be used: Error"),
    ],
)
def test_options_that_cannot_be_used_are_refused(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    command = [PROGRAM, "--data", str(tmp_path / "data"), *arguments]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (refused.returncode, text in " ".join(refused.stderr.split())) == (2, True), refused.stderr
    assert not (tmp_path / "data").exists()


def test_tls_is_spoken_and_the_cookie_is_secure(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all: {hosts: {node1: {}}}\n")
    arguments = ("--no-watch", "--tls-certificate", str(certificate), "--tls-key", str(key))
    with RunningConsole(inventory, tmp_path / "console", arguments=arguments, authority=certificate) as console:
        answer = console.anonymous.post("/api/v1/session", json={"token": token_of(console.read)})
        assert answer.headers["set-cookie"].startswith(f"__Host-magi-console-{console.port}=")
        assert "; Secure" in answer.headers["set-cookie"]
        assert "max-age" in answer.headers["strict-transport-security"]
        assert console.sign_in(console.read).get("/api/v1/session").json()["name"] == "test-read"
