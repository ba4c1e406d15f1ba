# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probing a binary, and the explanation for one that does not run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._runtime.help_text import Version
from ansible_collections.magi.llama.plugins.module_utils._runtime.probe import (
    Completed,
    ProbeError,
    absent,
    build_warnings,
    configuration_warnings,
    explain_exit,
    explain_start_error,
    gpu_backends,
    probe,
    run_command,
)
from ansible_collections.magi.llama.plugins.module_utils._runtime.render_flags import render_flags

OUTPUTS = Path(__file__).parent / "outputs"
VERSION = "version: 0.7.0 (build 11669, commit 63248fc3e)\nbuilt with GNU 16.2.0 for Linux x86_64\n"


class FakeRun:
    """Answers --version and --help, and records its calls."""

    def __init__(self, version: str = VERSION, help_file: str = "help-11669.txt", stream: str = "stdout") -> None:
        self.version = version
        self.help = (OUTPUTS / help_file).read_text()
        self.stream = stream
        self.asked: list[str] = []
        self.environments: list[Mapping[str, str]] = []

    def __call__(self, argv: Sequence[str], environment: Mapping[str, str], seconds: float) -> Completed:
        self.asked.append(argv[1])
        self.environments.append(environment)
        assert 0 < seconds <= 30
        text = self.version if argv[1] == "--version" else self.help
        return Completed(0, text, "") if self.stream == "stdout" else Completed(0, "", text)


@pytest.fixture
def binary(tmp_path: Path) -> str:
    path = tmp_path / "llama-server"
    path.write_bytes(b"a binary")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_probe_reads_version_and_flags(binary: str, tmp_path: Path, stream: str) -> None:
    fact = probe(binary, FakeRun(stream=stream), source="portable", etc=str(tmp_path))
    flags = fact.pop("flags")
    identity = fact.pop("identity")
    assert fact == {
        "path": binary,
        "installed": True,
        "version": "0.7.0",
        "build": 11669,
        "commit": "63248fc3e",
        "flavour": "llama.cpp",
        "sha256": hashlib.sha256(b"a binary").hexdigest(),
        "source": "portable",
        "warnings": [],
    }
    assert len(identity) == 16
    assert render_flags({"ctx_size": 1}, flags) == ["--ctx-size", "1"]


def test_probe_hides_environment_of_caller(binary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "1")
    run = FakeRun()
    probe(binary, run)
    assert run.environments
    assert all(set(environment) == {"PATH", "LANG", "HOME"} for environment in run.environments)


def test_probe_of_known_binary_runs_version_only(binary: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache" / "runtime.json")
    first, second = FakeRun(), FakeRun()
    fact = probe(binary, first, cache_path=cache, etc=str(tmp_path))
    written = os.stat(cache).st_mtime_ns
    assert probe(binary, second, cache_path=cache, etc=str(tmp_path)) == fact
    assert (first.asked, second.asked) == (["--version", "--help"], ["--version"])
    assert os.stat(cache).st_mtime_ns == written
    assert os.stat(cache).st_mode & 0o777 == 0o644


def test_probe_of_changed_binary_is_repeated(binary: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "runtime.json")
    before = probe(binary, FakeRun(), cache_path=cache)
    Path(binary).write_bytes(b"another binary")
    run = FakeRun()
    after = probe(binary, run, cache_path=cache)
    assert run.asked == ["--version", "--help"]
    assert after["identity"] != before["identity"]


def test_probe_with_new_libraries_is_repeated(binary: str) -> None:
    before = probe(binary, FakeRun())
    after = probe(binary, FakeRun(version=VERSION.replace("11669", "11700")))
    assert before["sha256"] == after["sha256"]
    assert before["identity"] != after["identity"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 1, "files": [], "help": {}}', "null"])
def test_probe_cache_damaged_is_rebuilt(binary: str, tmp_path: Path, text: str) -> None:
    cache = tmp_path / "runtime.json"
    cache.write_text(text)
    probe(binary, FakeRun(), cache_path=str(cache))
    assert json.loads(cache.read_text())["schema_version"] == 1


def test_probe_cache_in_check_mode_or_unwritable_is_not_written(binary: str, tmp_path: Path) -> None:
    cache = tmp_path / "runtime.json"
    probe(binary, FakeRun(), cache_path=str(cache), write_cache=False)
    assert not cache.exists()
    probe(binary, FakeRun(), cache_path=os.path.join(binary, "below", "a", "file.json"))


def test_fork_is_recognised_by_its_flags(binary: str) -> None:
    fact = probe(binary, FakeRun(version="version: 3957 (abcdef12)\n", help_file="help-ik_llama.txt"))
    assert (fact["flavour"], fact["build"]) == ("ik_llama.cpp", 3957)
    # A fork has its own build numbers: upstream's known vulnerabilities do not apply to them.
    assert not [warning for warning in fact["warnings"] if "CVE" in warning]


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (7823, ["CVE-2026-33298", "CVE-2026-27940", "CVE-2026-21869"]),
        (7824, ["CVE-2026-27940", "CVE-2026-21869"]),
        (8146, ["CVE-2026-21869"]),
        (8908, []),
        (11669, []),
    ],
)
def test_vulnerable_builds_are_reported(build: int, named: list[str]) -> None:
    text = " ".join(build_warnings("/x", Version(str(build), build, None), "llama.cpp"))
    for name in ("CVE-2026-33298", "CVE-2026-27940", "CVE-2026-21869"):
        assert (name in text) == (name in named)


def test_build_unknown_is_reported() -> None:
    assert "does not report its build number" in build_warnings("/x", Version("0", None, None), "llama.cpp")[0]


def test_host_settings_are_reported_without_values(tmp_path: Path) -> None:
    assert configuration_warnings(str(tmp_path)) == []
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp" / "config.ini").write_text("ctx-size = 1\n")
    (tmp_path / "environment").write_text('# LLAMA_ARG_NO=1\nLLAMA_API_KEY="s3cret"\nexport LLAMA_ARG_HOST=0.0.0.0\n')
    config, environment = configuration_warnings(str(tmp_path))
    assert "config.ini" in config
    assert "sets LLAMA_API_KEY, LLAMA_ARG_HOST:" in environment
    assert "s3cret" not in environment


def _failing(result: Any) -> Any:
    def run(argv: Sequence[str], environment: Mapping[str, str], seconds: float) -> Completed:
        if isinstance(result, Exception):
            raise result
        assert isinstance(result, Completed)
        return result

    return run


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            Completed(0, "GNU bash, version 5.2\nmore\n", ""),
            "not that of llama-server; it printed: GNU bash, version 5.2 ",
        ),
        (Completed(1, "", "bad thing\n"), "exit code 1: bad thing"),
        (Completed(-11, "", ""), "signal 11: it printed nothing"),
        (TimeoutError(), "did not end within 30 s"),
        (OSError(errno.ENOEXEC, "Exec format error"), "not a program for this machine"),
    ],
)
def test_binary_not_running_is_explained(binary: str, result: Any, message: str) -> None:
    with pytest.raises(ProbeError, match=message) as caught:
        probe(binary, _failing(result))
    assert binary in str(caught.value)


@pytest.mark.parametrize(
    ("done", "message"),
    [
        (
            Completed(
                127, "", "x: error while loading shared libraries: libllama.so.0: cannot open shared object file"
            ),
            "the shared library libllama.so.0 is missing",
        ),
        (
            Completed(1, "", "x: /lib/libc.so.6: version `GLIBC_2.38' not found (required by x)"),
            "built for a newer system.*portable",
        ),
        (Completed(-4, "", ""), "processor lacks"),
    ],
)
def test_explain_exit(done: Completed, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(explain_exit(done))


def test_explain_start_error(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    plain = tmp_path / "plain"
    plain.write_text("text")
    plain.chmod(0o644)
    for path, message in (
        (script, "its loader or interpreter is missing"),
        (plain, f"chmod a\\+rx {plain}"),
        (tmp_path, "it is a folder"),
        (tmp_path / "none", "there is no such file"),
    ):
        with pytest.raises(OSError) as caught:
            run_command([str(path), "--version"], {}, 5)
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(explain_start_error(str(path), caught.value))


def test_run_command() -> None:
    done = run_command(["/bin/sh", "-c", 'echo "$A"; echo err >&2; exit 3'], {"A": "b"}, 5)
    assert done == Completed(3, "b\n", "err\n")
    with pytest.raises(TimeoutError):
        run_command(["/bin/sleep", "5"], {}, 0.05)


def test_binary_absent_has_the_same_keys(binary: str) -> None:
    fact = absent("/x", "portable")
    assert set(fact) == set(probe(binary, FakeRun()))
    assert fact["installed"] is False
    assert render_flags({"anything": 1}, fact["flags"]) == ["--anything", "1"]


@pytest.mark.parametrize(
    ("program", "library"),
    [
        ("llama/llama-server", "llama/libggml-cuda.so"),
        ("bin/llama-server", "lib/libggml-hip.so.0"),
        ("usr/bin/llama-server", "usr/lib/x86_64-linux-gnu/ggml/backends0/libggml-vulkan.so"),
        ("p/bin/llama-server", "p/root/usr/lib/x86_64-linux-gnu/ggml/backends0/libggml-vulkan.so"),
    ],
)
def test_gpu_backends_are_part_of_the_identity(tmp_path: Path, program: str, library: str) -> None:
    for path in (program, library, str(Path(library).parent / "libggml-cpu-haswell.so")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"12")
    os.utime(tmp_path / library, ns=(7, 7))
    assert gpu_backends(str(tmp_path / program)) == [f"{Path(library).name}:2:7"]
    (tmp_path / library).unlink()
    assert gpu_backends(str(tmp_path / program)) == []
