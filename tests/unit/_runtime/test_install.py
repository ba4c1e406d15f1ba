# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The installation methods of llama-server, with fake package tools and generated archives."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.commands import Completed, run_command
from ansible_collections.magi.llama.plugins.module_utils._core.ownership import OwnershipError
from ansible_collections.magi.llama.plugins.module_utils._runtime.install import ensure
from ansible_collections.magi.llama.plugins.module_utils._runtime.prefix import restore_previous
from ansible_collections.magi.llama.plugins.module_utils._runtime.prefix_manifest import (
    note_in_manifest,
    previous_prefix,
    read_manifest,
    staged_prefix,
    write_manifest,
)
from ansible_collections.magi.llama.plugins.module_utils._runtime.providers.package import parse_apt_policy
from ansible_collections.magi.llama.plugins.module_utils._runtime.providers.portable import (
    apt_configuration,
    find_mirror,
    loader_command,
    parse_apt_simulation,
    parse_deb822_sources,
    parse_one_line_sources,
    portable,
    wrapper_text,
)
from ansible_collections.magi.llama.plugins.module_utils._runtime.providers.release import (
    redact,
    release,
    unpack,
    with_header,
)
from ansible_collections.magi.llama.plugins.module_utils._runtime.requests import ProviderError, Request, secrets_in

OUTPUTS = Path(__file__).parent / "outputs"
SERVER = """#!/bin/sh
case "$1" in
  --version) echo "version: 0.7.0 (build 11669, commit 63248fc3e)" ;;
  --help) cat '{help}' ;;
esac
""".format(help=OUTPUTS / "help-11669.txt")


def make_archive(path: Path, members: Mapping[str, bytes] | None = None, *extra: tarfile.TarInfo) -> str:
    """A tar.gz with upstream's layout; returns its sha256."""
    if members is None:
        members = {"llama-b1/llama-server": SERVER.encode(), "llama-b1/llama-quantize": b"#!/bin/sh\n"}
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
        for info in extra:
            tar.addfile(info)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def never(argv: Sequence[str], environment: Mapping[str, str], seconds: float) -> Completed:
    raise AssertionError(f"nothing should be run, but {argv[0]} was")


@pytest.fixture
def request_for(tmp_path: Path) -> Callable[..., Request]:
    def make(**changes: object) -> Request:
        values: dict[str, object] = {
            "path": str(tmp_path / "none" / "llama-server"),
            "prefix": str(tmp_path / "prefix"),
            "etc": str(tmp_path / "etc"),
            "keyrings": (),
            "package_path": str(tmp_path / "usr" / "llama-server"),
        }
        return Request(**{**values, **changes})  # type: ignore[arg-type]

    return make


# --- existing and auto ------------------------------------------------------------------------------------------------


def test_existing_is_used(tmp_path: Path, request_for: Callable[..., Request]) -> None:
    binary = tmp_path / "llama-server"
    binary.write_text(SERVER)
    binary.chmod(0o755)
    for method in ("existing", "auto"):
        outcome = ensure(request_for(path=str(binary)), method, run_command)
        assert (outcome.method, outcome.changed, outcome.fact["build"]) == ("existing", False, 11669)
        assert [entry["method"] for entry in outcome.tried] == ["existing"]


def test_existing_missing_is_an_error(request_for: Callable[..., Request]) -> None:
    with pytest.raises(ProviderError, match=r"no llama-server at .*none/llama-server.*LLAMA_SERVER_PATH"):
        ensure(request_for(), "existing", never)
    outcome = ensure(request_for(check=True), "existing", never)
    assert (outcome.fact["installed"], outcome.changed) == (False, False)
    assert "there is no llama-server" in outcome.fact["warnings"][0]


def test_auto_without_working_method_lists_reasons(request_for: Callable[..., Request]) -> None:
    with pytest.raises(ProviderError, match="No installation method") as caught:
        ensure(request_for(check=True), "auto", lambda argv, environment, seconds: Completed(0, "", ""))
    for part in ("existing: there is no", "package: ", "portable: ", "release: no runtime_release_url"):
        assert part in str(caught.value)


def test_auto_with_broken_binary_does_not_replace_it(request_for: Callable[..., Request], tmp_path: Path) -> None:
    broken = tmp_path / "llama-server"
    broken.write_text("#!/bin/sh\necho no; exit 1\n")
    broken.chmod(0o755)
    archive = tmp_path / "a.tar.gz"
    request = request_for(path=str(broken), release_url=archive.as_uri(), release_sha256=make_archive(archive))
    with pytest.raises(
        ProviderError, match=r"llama-server does not run: .*exit code 1: no\..* set runtime_install_method"
    ):
        ensure(request, "auto", run_command)


def test_auto_uses_first_working_method_and_keeps_it(request_for: Callable[..., Request], tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    request = request_for(release_url=archive.as_uri(), release_sha256=make_archive(archive))

    def run(argv: Sequence[str], environment: Mapping[str, str], seconds: float) -> Completed:
        inside = argv[0].startswith(str(tmp_path))
        return run_command(argv, environment, seconds) if inside else Completed(0, "", "")

    first = ensure(request, "auto", run)
    assert (first.method, first.changed) == ("release", True)
    assert [entry["method"] for entry in first.tried] == ["existing", "package", "portable", "release"]
    second = ensure(request, "auto", run)
    assert (second.method, second.changed) == ("release", False)
    # The package manager is not called again.
    assert [entry["method"] for entry in second.tried] == ["existing", "release"]


# --- package ----------------------------------------------------------------------------------------------------------

POLICY = """llama.cpp-tools:
  Installed: (none)
  Candidate: {tools}
  Version table:
     1:0.7.0+dfsg-2 500
        500 http://deb.example.org/debian forky/main amd64 Packages
llama.cpp:
  Installed: (none)
  Candidate: {all}
  Version table:
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (POLICY.format(tools="1:0.7.0+dfsg-2", all="(none)"), ("llama.cpp-tools", "1:0.7.0+dfsg-2")),
        (POLICY.format(tools="(none)", all="2"), ("llama.cpp", "2")),
        (POLICY.format(tools="1", all="2"), ("llama.cpp-tools", "1")),
        (POLICY.format(tools="(none)", all="(none)"), None),
        ("", None),
    ],
)
def test_parse_apt_policy(text: str, expected: tuple[str, str] | None) -> None:
    assert parse_apt_policy(text, ("llama.cpp-tools", "llama.cpp")) == expected


def test_package_installed_is_used(tmp_path: Path, request_for: Callable[..., Request]) -> None:
    binary = tmp_path / "llama-server"
    binary.write_text(SERVER)
    binary.chmod(0o755)
    outcome = ensure(request_for(package_path=str(binary)), "package", run_command)
    assert (outcome.fact["path"], outcome.fact["source"], outcome.changed) == (str(binary), "package", False)


@pytest.mark.parametrize(
    ("how", "installs"),
    [({}, True), ({"stage": True}, True), ({"check": True}, False), ({"install_if_missing": False}, False)],
)
def test_package_is_installed_unless_check_only(
    tmp_path: Path,
    request_for: Callable[..., Request],
    monkeypatch: pytest.MonkeyPatch,
    how: dict[str, bool],
    installs: bool,
) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: name if name == "apt-get" else None)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    ran: list[Sequence[str]] = []
    target = tmp_path / "usr" / "llama-server"

    def run(argv: Sequence[str], environment: Mapping[str, str], seconds: float) -> Completed:
        ran.append(argv)
        if argv[:2] == ["apt-cache", "policy"]:
            return Completed(0, POLICY.format(tools="1:0.7", all="(none)"), "")
        if argv[:2] == ["apt-get", "install"]:
            target.parent.mkdir()
            target.write_text(SERVER)
            target.chmod(0o755)
            return Completed(0, "", "")
        return run_command(argv, environment, seconds)

    outcome = ensure(request_for(**how), "package", run)
    assert outcome.changed
    assert outcome.fact["installed"] is installs
    assert outcome.fact["path"] == str(target)
    assert any(argv[:2] == ["apt-get", "install"] for argv in ran) is installs


def test_package_without_root_is_refused(request_for: Callable[..., Request], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: name if name == "apt-get" else None)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ProviderError, match=r"only root may install it\. Set become"):
        ensure(request_for(), "package", lambda *_: Completed(0, POLICY.format(tools="1", all="1"), ""))


# --- portable ---------------------------------------------------------------------------------------------------------

ONE_LINE = """
# deb http://commented.example.org/debian bookworm main
deb-src http://source.example.org/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/x.gpg] http://other.example.org/apt cloud-sdk-bookworm main
deb cdrom:[Debian 12]/ bookworm main
deb [ signed-by=/x ] http://deb.example.org/debian bookworm main contrib # comment
"""
DEB822 = """Types: deb
# a comment in a stanza
URIs: http://security.example.org/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example.org/debian
Suites: bookworm
Components: main

Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian.list
  http://second.example.org/debian
Suites: bookworm
 bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


def test_parse_sources() -> None:
    assert parse_one_line_sources(ONE_LINE.splitlines())[-1] == (
        "http://deb.example.org/debian",
        "bookworm",
        ("main", "contrib"),
    )
    assert parse_deb822_sources(DEB822.splitlines()) == [
        ("http://security.example.org/debian-security", "bookworm-security", ("main",)),
        ("mirror+file:///etc/apt/mirrors/debian.list", "bookworm", ("main", "contrib")),
        ("mirror+file:///etc/apt/mirrors/debian.list", "bookworm-updates", ("main", "contrib")),
        ("http://second.example.org/debian", "bookworm", ("main", "contrib")),
        ("http://second.example.org/debian", "bookworm-updates", ("main", "contrib")),
    ]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sources.list": ONE_LINE}, "http://deb.example.org/debian"),
        ({"sources.list.d/debian.sources": DEB822}, "mirror+file:///etc/apt/mirrors/debian.list"),
        ({"sources.list.d/a.list": ONE_LINE, "sources.list.d/b.sources": DEB822}, "http://deb.example.org/debian"),
        ({"sources.list": "deb http://x.example.org/debian sid main\n"}, "http://x.example.org/debian"),
        ({"sources.list": "deb http://x.example.org/apt nodistro main\n"}, None),
        ({}, None),
    ],
)
def test_find_mirror(tmp_path: Path, files: dict[str, str], expected: str | None) -> None:
    for name, text in files.items():
        path = tmp_path / "apt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert find_mirror(str(tmp_path), "bookworm") == expected


def test_apt_configuration_keeps_proxy_but_not_trust() -> None:
    host = (
        'Acquire::http::Proxy "http://proxy:3128";\nAcquire::Check-Valid-Until "false";\n'
        'Acquire::AllowInsecureRepositories "1";\nAPT::Update::Post-Invoke:: "rm -rf /";\n'
        'Acquire::IndexTargets::deb::DEP-11::MetaKey "x";\nAPT::Get::AllowUnauthenticated "true";\n'
    )
    text = apt_configuration("/p/apt", host)
    assert text.startswith('Acquire::http::Proxy "http://proxy:3128";\nAcquire::Check-Valid-Until "false";\nDir::')
    assert "Post-Invoke" not in text
    assert "DEP-11" not in text
    assert 'Acquire::AllowInsecureRepositories "false";' in text
    assert 'APT::Get::AllowUnauthenticated "false";' in text
    assert 'Dir::State "/p/apt/state";' in text


def _debian(tmp_path: Path, identifier: str = "debian") -> dict[str, object]:
    keyring = tmp_path / "keyring.gpg"
    keyring.write_text("")
    apt = tmp_path / "etc" / "apt"
    apt.mkdir(parents=True)
    (tmp_path / "etc" / "os-release").write_text(f'ID="{identifier}"\nVERSION_CODENAME=bookworm\n')
    (apt / "sources.list").write_text("deb http://deb.example.org/debian bookworm main\n")
    return {"keyrings": (str(keyring),)}


class FakeApt:
    """Fakes apt-get and dpkg-deb: unpacks a tree like Debian's, with a shell script as the loader."""

    def __init__(self, tmp_path: Path, *, backends: bool = True, fail: str = "", version: str = "1:0.7.0-2") -> None:
        self.tmp_path, self.backends, self.fail, self.version = tmp_path, backends, fail, version
        self.ran: list[list[str]] = []

    def __call__(self, argv: Sequence[str], environment: Mapping[str, str], seconds: float) -> Completed:
        self.ran.append(list(argv))
        if argv[0].startswith(str(self.tmp_path)):
            return run_command(argv, environment, seconds)
        if self.fail and self.fail in argv:
            return Completed(100, "", "Reading…\nE: no such suite at http://u:s3cret@deb.example.org/debian\n")
        if "-s" in argv:
            return Completed(0, f"Reading…\nInst llama.cpp-tools ({self.version} Debian:testing [amd64])\n", "")
        if "install" in argv:
            folder = Path(environment["APT_CONFIG"]).parent
            assert stat.S_IMODE((folder / "apt.conf").stat().st_mode) == 0o600
            self.sources = (folder / "sources.list").read_text()
            assert stat.S_IMODE((folder / "sources.list").stat().st_mode) == 0o600
            (folder / "cache" / "archives" / "llama.cpp-tools_1_amd64.deb").write_text("")
        if argv[:2] == ["dpkg-deb", "--show"]:
            return Completed(0, f"llama.cpp-tools {self.version}", "")
        if argv[:2] == ["dpkg-deb", "-x"]:
            self._unpack(Path(argv[3]))
        return Completed(0, "", "")

    def _unpack(self, root: Path) -> None:
        libraries = root / "usr" / "lib" / "x86_64-linux-gnu"
        (libraries / "ggml" / "backends0").mkdir(parents=True)
        (libraries / "llama").mkdir()
        (libraries / "libggml.so.0").write_text("")
        loader = libraries / "ld-linux-x86-64.so.2"
        loader.write_text('#!/bin/sh\nshift 4\nprogram="$1"; shift\nexec "$program" "$@"\n')
        loader.chmod(0o755)
        programs = root / "usr" / "bin"
        programs.mkdir()
        bench = "#!/bin/sh\n" + ("exit 1\n" if self.backends else "echo 'error: CPU backend is not loaded'; exit 1\n")
        for name, text in (("llama-server", SERVER), ("llama-bench", bench)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o700)


@pytest.fixture
def debian_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: name)


@pytest.mark.usefixtures("debian_tools")
def test_portable_is_installed(tmp_path: Path, request_for: Callable[..., Request]) -> None:
    request = request_for(**_debian(tmp_path))
    apt = FakeApt(tmp_path)
    old_mask = os.umask(0o077)
    try:
        outcome = ensure(request, "portable", apt)
    finally:
        os.umask(old_mask)
    prefix = Path(request.prefix)
    assert outcome.changed
    assert outcome.fact["path"] == str(prefix / "bin" / "llama-server")
    assert outcome.fact["build"] == 11669
    assert apt.sources == f"deb [signed-by={request.keyrings[0]}] http://deb.example.org/debian forky main\n"
    manifest = json.loads((prefix / "manifest.json").read_text())
    assert manifest == {
        "managed_by": "magi.llama",
        "layout": 2,
        "method": "portable",
        "suite": "forky",
        "packages": {"llama.cpp-tools": "1:0.7.0-2"},
        "identity": outcome.fact["identity"],
    }
    assert (dict(outcome.before), outcome.after["packages"]) == ({}, {"llama.cpp-tools": "1:0.7.0-2"})
    wrapper = (prefix / "bin" / "llama-server").read_text()
    assert ".new" not in wrapper
    assert "/ggml/backends0/ld-linux-x86-64.so.2 --library-path " in wrapper
    assert f'--argv0 "$0" {prefix}/root/usr/bin/llama-server "$@"' in wrapper
    # An unprivileged user must be able to run it, with any umask.
    for path in (prefix, *prefix.rglob("*")):
        wanted = 0o005 if path.is_dir() or os.access(path, os.X_OK) else 0o004
        assert path.lstat().st_mode & wanted == wanted, path
    assert not (prefix / "apt").exists()

    again = ensure(request, "portable", never_but_probe(tmp_path))
    assert (again.changed, again.fact) == (False, outcome.fact)


@pytest.mark.usefixtures("debian_tools")
def test_portable_brings_the_vulkan_backend_once_the_host_has_a_gpu(
    tmp_path: Path, request_for: Callable[..., Request]
) -> None:
    request = request_for(**_debian(tmp_path), dev=str(tmp_path / "dev"))
    before = FakeApt(tmp_path)
    ensure(request, "portable", before)
    assert not any("libggml0-backend-vulkan" in argv for argv in before.ran)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    apt = FakeApt(tmp_path)
    assert ensure(request, "portable", apt).changed
    (install,) = [argv for argv in apt.ran if "--download-only" in argv]
    assert install[-3:] == ["llama.cpp-tools", "libggml0-backend-vulkan", "libvulkan1"]
    assert not ensure(request, "portable", never_but_probe(tmp_path)).changed


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [("1:0.7", ["llama.cpp-tools", "libggml0-backend-vulkan"]), ("(none)", ["llama.cpp-tools"])],
)
def test_package_brings_the_vulkan_backend_where_there_is_a_gpu(
    tmp_path: Path,
    request_for: Callable[..., Request],
    monkeypatch: pytest.MonkeyPatch,
    candidate: str,
    expected: list[str],
) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: name if name == "apt-get" else None)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (tmp_path / "kfd").touch()
    installs: list[list[str]] = []

    def run(argv: Sequence[str], environment: Mapping[str, str], seconds: float) -> Completed:
        if argv[:2] == ["apt-get", "install"]:
            installs.append([word for word in argv[2:] if not word.startswith("-")])
            return Completed(100, "", "E: stop here")
        if "libggml0-backend-vulkan" in argv:
            return Completed(0, f"libggml0-backend-vulkan:\n  Installed: (none)\n  Candidate: {candidate}\n", "")
        return Completed(0, POLICY.format(tools="1:0.7", all="(none)"), "")

    with pytest.raises(ProviderError):
        ensure(request_for(dev=str(tmp_path)), "package", run)
    assert installs == [expected]


GPU_POLICY = "".join(
    f"{name}:\n  Installed: {{{key}}}\n  Candidate: 1:0.7\n  Version table:\n"
    for name, key in {"llama.cpp-tools": "tools", "libggml0-backend-vulkan": "backend", "libvulkan1": "loader"}.items()
)
HAS_BACKEND = {"tools": "1:0.7", "backend": "1:0.7", "loader": "1.4"}
LACKS_BACKEND = {**HAS_BACKEND, "backend": "(none)"}


@pytest.mark.parametrize(
    ("policy", "how", "code", "expected", "warns"),
    [
        (LACKS_BACKEND, {}, 0, ["libggml0-backend-vulkan"], None),
        ({**LACKS_BACKEND, "loader": "(none)"}, {}, 0, ["libggml0-backend-vulkan", "libvulkan1"], None),
        (LACKS_BACKEND, {"check": True}, 0, [], None),
        (LACKS_BACKEND, {"install_if_missing": False}, 0, [], None),
        (
            LACKS_BACKEND,
            {},
            100,
            ["libggml0-backend-vulkan"],
            "libggml0-backend-vulkan is not installed. apt-get could",
        ),
        (HAS_BACKEND, {}, 0, None, None),
        # Copied there by hand: Debian's backend may not fit it.
        ({**LACKS_BACKEND, "tools": "(none)"}, {}, 0, None, None),
        (LACKS_BACKEND, {"dev": "/nonexistent"}, 0, None, None),
    ],
)
def test_installed_package_gets_the_vulkan_backend_that_it_lacks(
    tmp_path: Path,
    request_for: Callable[..., Request],
    monkeypatch: pytest.MonkeyPatch,
    policy: Mapping[str, str],
    how: Mapping[str, object],
    code: int,
    expected: list[str] | None,
    warns: str | None,
) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: name if name == "apt-get" else None)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (tmp_path / "kfd").touch()
    binary = tmp_path / "llama-server"
    binary.write_text(SERVER)
    binary.chmod(0o755)
    installs: list[str] = []

    def run(argv: Sequence[str], environment: Mapping[str, str], seconds: float) -> Completed:
        if argv[:2] == ["apt-get", "install"]:
            installs.extend(word for word in argv[2:] if not word.startswith("-"))
            return Completed(code, "", "E: no network")
        if argv[0] == "apt-cache":
            return Completed(0, GPU_POLICY.format(**policy), "")
        return run_command(argv, environment, seconds)

    request = request_for(**{"package_path": str(binary), "dev": str(tmp_path), **how})
    outcome = ensure(request, "package", run)
    assert installs == (expected or [])
    assert outcome.changed is (expected is not None and code == 0)
    assert [warns in text for text in outcome.fact["warnings"] if "GPU" in text] == ([True] if warns else [])
    # A backend of another kind will do.
    backend = tmp_path / "libggml-hip.so"
    backend.touch()
    assert not ensure(request, "package", run).changed


def never_but_probe(tmp_path: Path) -> Callable[[Sequence[str], Mapping[str, str], float], Completed]:
    def run(argv: Sequence[str], environment: Mapping[str, str], seconds: float) -> Completed:
        assert argv[0].startswith(str(tmp_path)), argv
        return run_command(argv, environment, seconds)

    return run


@pytest.mark.usefixtures("debian_tools")
def test_portable_of_another_suite_keeps_previous(tmp_path: Path, request_for: Callable[..., Request]) -> None:
    tools = _debian(tmp_path)
    ensure(request_for(**tools), "portable", FakeApt(tmp_path))
    outcome = ensure(request_for(**tools, portable_suite="sid"), "portable", FakeApt(tmp_path))
    assert (outcome.before["suite"], outcome.after["suite"]) == ("forky", "sid")
    assert json.loads((tmp_path / "prefix.previous" / "manifest.json").read_text())["suite"] == "forky"
    assert not (tmp_path / "prefix.new").exists()


@pytest.mark.usefixtures("debian_tools")
def test_portable_upgrade_fetches_newer_packages(tmp_path: Path, request_for: Callable[..., Request]) -> None:
    tools = _debian(tmp_path)
    ensure(request_for(**tools), "portable", FakeApt(tmp_path))
    same = ensure(request_for(**tools, upgrade=True), "portable", FakeApt(tmp_path))
    assert not same.changed
    kept = ensure(request_for(**tools), "portable", never_but_probe(tmp_path))
    assert not kept.changed
    newer = ensure(request_for(**tools, upgrade=True), "portable", FakeApt(tmp_path, version="1:0.8.0-1"))
    assert (newer.changed, newer.after["packages"]) == (True, {"llama.cpp-tools": "1:0.8.0-1"})
    assert newer.fact["identity"] != kept.fact["identity"]


def test_parse_apt_simulation() -> None:
    text = "NOTE: this is a simulation\nInst libc6 (2.42-2 Debian:testing [amd64]) []\nConf libc6 (2.42-2 Debian:testing)\n"
    assert parse_apt_simulation(text) == {"libc6": "2.42-2"}


@pytest.mark.usefixtures("debian_tools")
def test_portable_staged_fact_equals_installed_fact(tmp_path: Path, request_for: Callable[..., Request]) -> None:
    tools = _debian(tmp_path)
    ensure(request_for(**tools), "portable", FakeApt(tmp_path))
    newer = {**tools, "upgrade": True}
    staged = ensure(request_for(**newer, stage=True), "portable", FakeApt(tmp_path, version="2"))
    assert (staged.changed, staged.fact["staged"]) == (True, True)
    assert read_manifest(str(tmp_path / "prefix"))["packages"] == {"llama.cpp-tools": "1:0.7.0-2"}
    placed = ensure(request_for(**newer), "portable", FakeApt(tmp_path, version="2"))
    assert (placed.changed, placed.fact) == (True, {**staged.fact, "staged": False})


@pytest.mark.usefixtures("debian_tools")
def test_portable_repairs_interrupted_run(tmp_path: Path, request_for: Callable[..., Request]) -> None:
    request = request_for(**_debian(tmp_path))
    (tmp_path / "prefix.new" / "apt").mkdir(parents=True)
    (tmp_path / "prefix.new" / "root").mkdir()
    write_manifest(str(tmp_path / "prefix.new"), {})
    # Killed between the two renames: the old prefix is kept, the new one is not installed yet.
    (tmp_path / "prefix.previous").mkdir()
    assert ensure(request, "portable", FakeApt(tmp_path)).fact["installed"]
    assert not (tmp_path / "prefix.new").exists()


@pytest.mark.usefixtures("debian_tools")
def test_portable_in_check_mode_changes_nothing(tmp_path: Path, request_for: Callable[..., Request]) -> None:
    outcome = ensure(request_for(**_debian(tmp_path), check=True), "portable", never)
    assert (outcome.changed, outcome.fact["installed"], outcome.fact["flags"]) == (True, False, {})
    assert outcome.fact["path"] == str(tmp_path / "prefix" / "bin" / "llama-server")
    assert not list(tmp_path.glob("prefix*"))


@pytest.mark.usefixtures("debian_tools")
@pytest.mark.parametrize("fail", ["update", "install"])
def test_portable_failing_keeps_old_prefix(tmp_path: Path, request_for: Callable[..., Request], fail: str) -> None:
    tools = _debian(tmp_path)
    ensure(request_for(**tools), "portable", FakeApt(tmp_path))
    with pytest.raises(ProviderError, match="E: no such suite") as caught:
        ensure(request_for(**tools, portable_suite="sid"), "portable", FakeApt(tmp_path, fail=fail))
    assert "s3cret" not in str(caught.value)
    assert json.loads((tmp_path / "prefix" / "manifest.json").read_text())["suite"] == "forky"
    assert not (tmp_path / "prefix.new").exists()


@pytest.mark.usefixtures("debian_tools")
def test_portable_without_a_backend_is_refused(tmp_path: Path, request_for: Callable[..., Request]) -> None:
    with pytest.raises(ProviderError, match="no CPU backend"):
        ensure(request_for(**_debian(tmp_path)), "portable", FakeApt(tmp_path, backends=False))


@pytest.mark.usefixtures("debian_tools")
def test_portable_unavailable_is_refused(tmp_path: Path, request_for: Callable[..., Request]) -> None:
    tools = _debian(tmp_path, identifier="ubuntu")
    for changes, message in (
        (tools, "not Debian.*runtime_portable_mirror"),
        ({}, "no Debian keyring"),
        ({**tools, "portable_mirror": "http://m", "prefix": "relative"}, "absolute path"),
        ({**tools, "portable_mirror": "http://m", "prefix": "/a:b"}, "absolute path"),
    ):
        with pytest.raises(ProviderError, match=message):
            portable(request_for(**changes), never)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_prefix_not_writable_is_refused(request_for: Callable[..., Request]) -> None:
    with pytest.raises(ProviderError, match="may not write to"):
        release(request_for(prefix="/nowhere/x", release_url="file:///x", release_sha256="0" * 64), never)


def test_loader_command_of_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="unknown layout"):
        loader_command(str(tmp_path), "a", "b")


def test_wrapper_text_quotes_any_path(tmp_path: Path) -> None:
    script = tmp_path / "wrapper"
    script.write_text(wrapper_text(["/bin/echo", "it's $HOME and `x`"], "0" * 64))
    script.chmod(0o755)
    done = subprocess.run([str(script), "a b", "*"], capture_output=True, text=True, check=True)
    assert done.stdout == "it's $HOME and `x` a b *\n"


# --- release ----------------------------------------------------------------------------------------------------------


def test_release_is_installed(tmp_path: Path, request_for: Callable[..., Request]) -> None:
    archive = tmp_path / "a.tar.gz"
    request = request_for(release_url=archive.as_uri(), release_sha256=make_archive(archive).upper())
    checked = ensure(request_for(**{**request.__dict__, "check": True}), "release", never)
    assert (checked.changed, checked.fact["installed"]) == (True, False)
    assert not Path(request.prefix).exists()
    outcome = ensure(request, "release", run_command)
    assert (outcome.changed, outcome.fact["build"]) == (True, 11669)
    server = Path(request.prefix) / "bin" / "llama-server"
    assert os.readlink(server) == "../root/llama-b1/llama-server"
    assert (server.parent / "llama-quantize").exists()
    assert not (Path(request.prefix) / "archive").exists()
    # Nothing is fetched again, so the archive may be missing.
    archive.unlink()
    assert ensure(request, "release", run_command).changed is False


def _release(tmp_path: Path, version: str) -> dict[str, str]:
    """The settings for an archive whose llama-server reports this version."""
    archive = tmp_path / f"{version}.tar.gz"
    server = SERVER.replace("11669", version, 1).encode()
    sha256 = make_archive(archive, {"llama-b1/llama-server": server})
    return {"release_url": archive.as_uri(), "release_sha256": sha256}


def _builds(prefix: Path) -> dict[str, str]:
    """The build of each prefix, by the archives' names."""
    found = {part: read_manifest(f"{prefix}{part}").get("url", "") for part in ("", ".previous", ".staged", ".new")}
    return {part: Path(url).name.partition(".")[0] for part, url in found.items() if url}


def test_release_staged_without_prefix_is_not_activated(tmp_path: Path, request_for: Callable[..., Request]) -> None:
    prefix, release = tmp_path / "prefix", _release(tmp_path, "1")
    for changed in (True, False):
        planned = ensure(request_for(**release, stage=True, install_if_missing=False), "release", run_command)
        assert (planned.changed, planned.fact["staged"], _builds(prefix)) == (changed, True, {".staged": "1"})
    # Fetched only once.
    (tmp_path / "1.tar.gz").unlink()
    placed = ensure(request_for(**release, stage=True), "release", run_command)
    assert (placed.changed, placed.fact["staged"], _builds(prefix)) == (True, False, {"": "1"})


def test_release_staged_is_activated_later(tmp_path: Path, request_for: Callable[..., Request]) -> None:
    prefix = tmp_path / "prefix"
    first = ensure(request_for(**_release(tmp_path, "1"), stage=True), "release", run_command)
    # The prefix does not exist yet, so there is nothing to keep.
    assert (first.fact["staged"], _builds(prefix)) == (False, {"": "1"})

    newer = _release(tmp_path, "2")
    checked = ensure(request_for(**newer, stage=True, check=True), "release", run_command)
    assert (checked.changed, checked.fact["build"], checked.fact["staged"]) == (True, 2, False)
    assert (_builds(prefix), list(tmp_path.glob("prefix.*"))) == ({"": "1"}, [])

    for changed in (True, False):
        staged = ensure(request_for(**newer, stage=True), "release", run_command)
        assert (staged.changed, staged.fact["build"], staged.fact["staged"]) == (changed, 2, True)
        assert staged.fact["path"] == str(prefix / "bin" / "llama-server")
        assert _builds(prefix) == {"": "1", ".staged": "2"}

    (tmp_path / "2.tar.gz").unlink()
    placed = ensure(request_for(**newer), "release", run_command)
    assert (placed.changed, placed.fact) == (True, {**staged.fact, "staged": False})
    assert _builds(prefix) == {"": "2", ".previous": "1"}
    assert not ensure(request_for(**newer, stage=True), "release", run_command).fact["staged"]


def test_release_never_working_does_not_replace_working_previous(
    tmp_path: Path, request_for: Callable[..., Request]
) -> None:
    prefix = tmp_path / "prefix"
    ensure(request_for(**_release(tmp_path, "1")), "release", run_command)
    note_in_manifest(str(prefix), good=True)
    for version in ("2", "3"):
        ensure(request_for(**_release(tmp_path, version)), "release", run_command)
        assert _builds(prefix) == {"": version, ".previous": "1"}
    note_in_manifest(str(prefix), good=True)
    ensure(request_for(**_release(tmp_path, "4")), "release", run_command)
    assert _builds(prefix) == {"": "4", ".previous": "3"}


@pytest.mark.parametrize("part", ["", ".new", ".staged", ".previous"])
@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("foreign", ["text", "manifest", "link"])
def test_release_foreign_folder_is_refused(
    tmp_path: Path, request_for: Callable[..., Request], part: str, check: bool, foreign: str
) -> None:
    prefix, folder = tmp_path / "prefix", tmp_path / f"prefix{part}"
    if foreign == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        (folder / "manifest.json").write_text('{"name": "else"}' if foreign == "manifest" else "not JSON")
    before = folder.lstat()
    with pytest.raises(OwnershipError, match=f"{folder} already exists.* Set runtime_prefix to a folder of its own"):
        ensure(request_for(**_release(tmp_path, "1"), check=check, stage=True), "release", run_command)
    with pytest.raises(OwnershipError, match=f"{folder} already exists"):
        restore_previous(str(prefix))
    assert (folder.lstat().st_ino, folder.lstat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(path.name for path in tmp_path.glob("prefix*")) == [folder.name]


def test_release_empty_folder_and_folder_of_first_version_are_used(
    tmp_path: Path, request_for: Callable[..., Request]
) -> None:
    prefix = tmp_path / "prefix"
    prefix.mkdir()
    ensure(request_for(**_release(tmp_path, "1")), "release", run_command)
    manifest = read_manifest(str(prefix))
    del manifest["managed_by"]
    (prefix / "manifest.json").write_text(json.dumps(manifest))
    ensure(request_for(**_release(tmp_path, "2")), "release", run_command)
    assert _builds(prefix) == {"": "2", ".previous": "1"}


@pytest.mark.parametrize("interrupted", [False, True])
def test_previous_prefix_is_restored(tmp_path: Path, request_for: Callable[..., Request], interrupted: bool) -> None:
    prefix = tmp_path / "prefix"
    for version in ("1", "2"):
        ensure(request_for(**_release(tmp_path, version)), "release", run_command)
    if interrupted:
        prefix.rename(tmp_path / "prefix.new")
    restore_previous(str(prefix))
    assert _builds(prefix) == ({"": "1"} if interrupted else {"": "1", ".previous": "2"})
    assert (staged_prefix("/p"), previous_prefix("/p")) == ("/p.staged", "/p.previous")
    if interrupted:
        with pytest.raises(ProviderError, match="could not take the place"):
            restore_previous(str(prefix))


def test_release_with_wrong_checksum_shows_both(tmp_path: Path, request_for: Callable[..., Request]) -> None:
    archive = tmp_path / "a.tar.gz"
    actual, wrong = make_archive(archive), "0" * 64
    with pytest.raises(ProviderError, match="Nothing was unpacked") as caught:
        ensure(request_for(release_url=archive.as_uri(), release_sha256=wrong), "release", never)
    assert actual in str(caught.value)
    assert wrong in str(caught.value)
    assert not list(tmp_path.glob("prefix*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "no runtime_release_url"),
        ({"release_url": "https://x"}, "64 hexadecimal"),
        ({"release_url": "https://x", "release_sha256": "abc"}, "64 hexadecimal"),
        ({"release_url": "ftp://x", "release_sha256": "0" * 64}, "must begin with https"),
        ({"release_url": "file:///no/such/file", "release_sha256": "0" * 64}, "could not be downloaded"),
    ],
)
def test_release_unavailable_is_refused(
    request_for: Callable[..., Request], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ProviderError, match=message):
        release(request_for(**changes), never)


def _member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "member",
    [
        _member("../evil", tarfile.REGTYPE),
        _member("a/../../evil", tarfile.REGTYPE),
        _member("/etc/evil", tarfile.REGTYPE),
        _member("link", tarfile.SYMTYPE, "/etc/passwd"),
        _member("link", tarfile.SYMTYPE, "a/../../b"),
        _member("link", tarfile.LNKTYPE, "../x"),
        _member("pipe", tarfile.FIFOTYPE),
        _member("device", tarfile.CHRTYPE),
    ],
    ids=lambda member: f"{member.name}->{member.linkname}",
)
def test_archives_unsafe_are_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    archive = tmp_path / "a.tar.gz"
    make_archive(archive, None, member)
    with pytest.raises(ProviderError, match="Nothing was unpacked"):
        unpack(str(archive), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_archive_links_inside_are_kept(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    members = {"d/libllama.so.0": b"library", "d/llama-server": b"x"}
    links = (
        _member("d/libllama.so", tarfile.SYMTYPE, "libllama.so.0"),
        _member("d/hard", tarfile.LNKTYPE, "d/llama-server"),
    )
    make_archive(archive, members, *links)
    unpack(str(archive), str(tmp_path / "out"))
    assert (tmp_path / "out" / "d" / "libllama.so").read_bytes() == b"library"
    assert (tmp_path / "out" / "d" / "hard").read_bytes() == b"x"


def test_archives_invalid_are_refused(tmp_path: Path, request_for: Callable[..., Request]) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(b"PK\x03\x04 a zip")
    with pytest.raises(ProviderError, match="not a readable tar archive"):
        unpack(str(archive), str(tmp_path / "out"))
    sha256 = make_archive(archive, {"readme": b"nothing here"})
    with pytest.raises(ProviderError, match="holds no llama-server"):
        release(request_for(release_url=archive.as_uri(), release_sha256=sha256), never)


def test_redact_hides_credentials() -> None:
    assert redact("https://user:pw@host/a@b") == "https://host/a@b"
    assert redact("E: http://u@h/x http://v:w@i/y") == "E: http://h/x http://i/y"
    assert redact("https://user:p@ss@host/a") == "https://host/a"
    assert redact("https://host/a?sig=s3cret&x=1 and more") == "https://host/a?… and more"


def test_credentials_of_a_url_become_a_header_that_no_redirect_takes() -> None:
    request = with_header("https://us%40er:p%3Aw@host:8443/a.tar.gz?x=1")
    assert request.full_url == "https://host:8443/a.tar.gz?x=1"
    assert request.unredirected_hdrs == {"Authorization": "Basic dXNAZXI6cDp3"}
    assert request.headers == {}
    assert with_header("file:///a.tar.gz").unredirected_hdrs == {}
    assert secrets_in("https://us%40er:p%3Aw@host/a") == ["us%40er:p%3Aw"]
    assert secrets_in("") == secrets_in("https://host/a@b") == []


def test_release_with_credentials_is_downloaded(tmp_path: Path, request_for: Callable[..., Request]) -> None:
    settings = _release(tmp_path, "1")
    content = (tmp_path / "1.tar.gz").read_bytes()

    class Mirror(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers["Authorization"] == "Basic dTpzM2NyZXQ="
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(content if allowed else b"")

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as mirror:
        threading.Thread(target=mirror.serve_forever, kwargs={"poll_interval": 0.01}).start()
        url = f"http://u:s3cret@127.0.0.1:{mirror.server_port}/1.tar.gz"
        try:
            outcome = ensure(request_for(**{**settings, "release_url": url}), "release", run_command)
        finally:
            mirror.shutdown()
    assert outcome.changed
    assert "s3cret" not in (tmp_path / "prefix" / "manifest.json").read_text() + str(outcome)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"portable_suite": "forky main\ndeb [trusted=yes] http://evil /"}, "runtime_portable_suite is 'forky main"),
        ({"portable_suite": "[trusted=yes]"}, "runtime_portable_suite"),
        ({"portable_suite": ""}, "runtime_portable_suite"),
        ({"portable_mirror": "http://m forky main\ndeb http://evil"}, "runtime_portable_mirror is 'http://m forky"),
        ({"portable_mirror": "[trusted=yes] http://evil"}, "runtime_portable_mirror"),
        ({"portable_mirror": "evil"}, "runtime_portable_mirror"),
    ],
)
@pytest.mark.usefixtures("debian_tools")
def test_portable_source_is_one_word(
    tmp_path: Path, request_for: Callable[..., Request], changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ProviderError, match=message):
        portable(request_for(**_debian(tmp_path), **changes), never)
