# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Providing llama-server on a host: what is there, the distribution's package, Debian's in a prefix, or an archive.

Used by the module runtime. Every provider takes (request, run) and says where the binary is, or raises ProviderError.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._errors import MagiError
from ._files import write_atomic
from ._runtime_manifest import note_in_manifest, previous_prefix, read_manifest, staged_prefix, write_manifest
from ._runtime_probe import Completed, ProbeError, Run, absent, probe

METHODS = ("existing", "package", "portable", "release")

# How a prefix is laid out: one of another layout is made anew.
PREFIX_LAYOUT = 2

_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "HOME": "/nonexistent",
}
_QUICK_SECONDS = 60.0
_DOWNLOAD_SECONDS = 1800.0
_CONNECT_SECONDS = 60.0
_KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
)
_DEBIAN_SUITES = ("oldstable", "stable", "testing", "unstable", "sid")
# The host's own way out (proxies, time-outs, retries) is kept; what it reads, and from whom it accepts it, is not.
_KEPT_APT_SETTING = re.compile(
    r"Acquire::(?!AllowDowngrade|AllowInsecure|AllowWeak|Changelogs|CompressionTypes|GzipIndexes|IndexTargets|Languages)"
)
_PACKAGE = "llama.cpp-tools"


class ProviderError(MagiError):
    """A way to have llama-server that does not work on this host."""


class MissingError(ProviderError):
    """No binary where one was said to be."""


@dataclass(frozen=True)
class Request:
    """What the role asks for. etc, keyrings and package_path are parameters for the tests."""

    path: str
    prefix: str
    portable_suite: str = "forky"
    portable_mirror: str | None = None
    release_url: str | None = None
    release_sha256: str | None = None
    upgrade: bool = False
    stage: bool = False
    first: bool = True
    check: bool = False
    etc: str = "/etc"
    keyrings: Sequence[str] = _KEYRINGS
    package_path: str = "/usr/bin/llama-server"


@dataclass(frozen=True)
class Provided:
    """Where the binary is, or will be where installed is false, and what that took.

    lies is the folder that stands for the prefix as long as it is not in its place, removed after a look at it where
    discard is set.
    """

    path: str
    note: str
    installed: bool = True
    changed: bool = False
    lies: str | None = None
    discard: bool = False
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The fact llama_runtime, how it came about, and what was tried on the way."""

    fact: dict[str, Any]
    method: str
    changed: bool
    tried: list[dict[str, str]]
    before: Mapping[str, Any]
    after: Mapping[str, Any]


Provider = Callable[[Request, Run], Provided]


def ensure(request: Request, method: str, run: Run, cache_path: str | None = None) -> Outcome:
    """Find or provide llama-server by method, or for "auto" by the first that works. Raises MagiError."""
    if method != "auto":
        try:
            return _attempt(request, method, run, cache_path, [])
        except MissingError as error:
            if not request.check:
                raise
            # Something else may put it there in the real run.
            fact = {**absent(request.path, method, [str(error)]), "staged": False}
            return Outcome(fact, method, False, [{"method": method, "result": str(error)}], {}, {})
    tried: list[dict[str, str]] = []
    for candidate in _auto_order(request):
        try:
            return _attempt(request, candidate, run, cache_path, tried)
        except ProbeError as error:
            if candidate == "existing":
                # Somebody put it there to be used, a build for this host's GPU perhaps: another must not take its
                # place unnoticed.
                raise ProviderError(
                    f"{error} Mend or remove it, or set runtime_install_method to package, portable or release to "
                    "have another."
                ) from error
            tried.append({"method": candidate, "result": str(error)})
        except MagiError as error:
            tried.append({"method": candidate, "result": str(error)})
    listed = " ".join(f"{entry['method']}: {entry['result']}" for entry in tried)
    raise ProviderError(f"No way to have llama-server works on this host. {listed}")


def _auto_order(request: Request) -> list[str]:
    """The methods in order. What an earlier run chose stays chosen: a package that appears later takes nothing over."""
    chosen = read_manifest(request.prefix).get("method")
    order = [method for method in METHODS if method != chosen]
    return [order[0], chosen, *order[1:]] if chosen in METHODS else order


def _attempt(request: Request, method: str, run: Run, cache: str | None, tried: Sequence[dict[str, str]]) -> Outcome:
    provided = PROVIDERS[method](request, run)
    if provided.lies is not None:
        fact = _probe_staged(request, provided, method, run)
    elif provided.installed:
        fact = probe(
            provided.path, run, source=method, cache_path=cache, write_cache=not request.check, etc=request.etc
        )
        if method in ("portable", "release") and not request.check:
            note_in_manifest(request.prefix, identity=fact["identity"])
    else:
        fact = absent(provided.path, method)
    fact["staged"] = provided.lies is not None and not provided.discard
    steps = [*tried, {"method": method, "result": provided.note}]
    return Outcome(fact, method, provided.changed, steps, provided.before, provided.after)


def _probe_staged(request: Request, provided: Provided, method: str, run: Run) -> dict[str, Any]:
    """Ask a binary that is not in its place yet: what it will say from there."""
    lies = str(provided.lies)
    program = os.path.join(lies, "bin", "llama-server")
    command = [program]
    if method == "portable":
        # Its wrapper is written for the final place.
        command = loader_command(os.path.join(lies, "root"), program, os.path.join(lies, "root/usr/bin/llama-server"))
    try:
        return probe(provided.path, run, source=method, write_cache=False, etc=request.etc, file=program, argv=command)
    finally:
        if provided.discard:
            shutil.rmtree(lies, ignore_errors=True)


# --- existing ---------------------------------------------------------------------------------------------------------


def existing(request: Request, _run: Run) -> Provided:
    """The binary that somebody put there."""
    if not os.path.exists(request.path):
        raise MissingError(
            f"there is no llama-server at {request.path}. Set runtime_binary_path or LLAMA_SERVER_PATH, "
            "or a runtime_install_method that provides one."
        )
    return Provided(request.path, f"{request.path} is there")


# --- package ----------------------------------------------------------------------------------------------------------


def package(request: Request, run: Run) -> Provided:
    """The distribution's package, from the repositories that the host already has."""
    if os.path.exists(request.package_path):
        return Provided(request.package_path, f"{request.package_path} is installed")
    manager = next((name for name in _MANAGERS if shutil.which(name, path=_ENVIRONMENT["PATH"])), None)
    if manager is None:
        raise ProviderError(f"the host has none of {', '.join(_MANAGERS)}.")
    candidate, install = _MANAGERS[manager]
    found = candidate(request, run)
    if found is None:
        raise ProviderError(f"{manager} has no llama.cpp in the host's repositories.")
    after = {"method": "package", "packages": {found[0]: found[1]}}
    note = f"{found[0]} {found[1]} from the host's repositories"
    if request.check or not request.first:
        return Provided(request.package_path, note, installed=False, changed=True, after=after)
    if os.geteuid() != 0:
        raise ProviderError(f"{manager} has {found[0]}, but only root may install it. Set become, or another method.")
    done = run([*install, found[0]], _ENVIRONMENT, _DOWNLOAD_SECONDS)
    if done.code != 0:
        raise ProviderError(f"{manager} could not install {found[0]}: {_said(done)}")
    return Provided(request.package_path, note, changed=True, after=after)


def parse_apt_policy(text: str, names: Sequence[str]) -> tuple[str, str] | None:
    """The first of names that has a candidate in the output of apt-cache policy, with its version."""
    candidates = dict(re.findall(r"^(\S+):\n(?:  .*\n)*?  Candidate: (\S+)$", text, re.MULTILINE))
    for name in names:
        if candidates.get(name, "(none)") != "(none)":
            return name, candidates[name]
    return None


def _apt_candidate(request: Request, run: Run) -> tuple[str, str] | None:
    names = (_PACKAGE, "llama.cpp")
    found = parse_apt_policy(run(["apt-cache", "policy", *names], _ENVIRONMENT, _QUICK_SECONDS).stdout, names)
    if found or request.check or os.geteuid() != 0 or glob.glob("/var/lib/apt/lists/*Packages*"):
        return found
    # A fresh image comes without lists, which is not the same as without the package.
    run(["apt-get", "-q", "update"], _ENVIRONMENT, _DOWNLOAD_SECONDS)
    return parse_apt_policy(run(["apt-cache", "policy", *names], _ENVIRONMENT, _QUICK_SECONDS).stdout, names)


def _dnf_candidate(_request: Request, run: Run) -> tuple[str, str] | None:
    argv = ["dnf", "--quiet", "repoquery", "--latest-limit=1", "--queryformat", "%{version}-%{release}\n", "llama-cpp"]
    lines = run(argv, _ENVIRONMENT, _DOWNLOAD_SECONDS).stdout.split()
    return ("llama-cpp", lines[-1]) if lines else None


def _zypper_candidate(_request: Request, run: Run) -> tuple[str, str] | None:
    argv = ["zypper", "--non-interactive", "--quiet", "info", "llamacpp"]
    version = re.search(r"^Version\s*: (\S+)", run(argv, _ENVIRONMENT, _DOWNLOAD_SECONDS).stdout, re.MULTILINE)
    return ("llamacpp", version[1]) if version else None


_MANAGERS: dict[str, tuple[Callable[[Request, Run], tuple[str, str] | None], list[str]]] = {
    "apt-get": (_apt_candidate, ["apt-get", "install", "-q", "-y", "--no-install-recommends"]),
    "dnf": (_dnf_candidate, ["dnf", "install", "-q", "-y"]),
    "zypper": (_zypper_candidate, ["zypper", "--non-interactive", "--quiet", "install", "--no-recommends"]),
}


# --- portable ---------------------------------------------------------------------------------------------------------


def portable(request: Request, run: Run) -> Provided:
    """Debian's signed packages, unpacked into a prefix of their own beside the host's own libraries. Needs no root."""
    wanted = {"layout": PREFIX_LAYOUT, "method": "portable", "suite": request.portable_suite}
    holds = f"{request.prefix} holds {_PACKAGE} of {request.portable_suite}"
    if not request.upgrade and _is_current(request.prefix, wanted):
        return Provided(os.path.join(request.prefix, "bin", "llama-server"), holds)
    keyring, mirror = _portable_source(request)
    if request.upgrade and _is_current(request.prefix, wanted):
        wanted["packages"] = _candidates(request, keyring, mirror, run)

    def fill(new: str) -> dict[str, Any]:
        packages = _fetch_packages(request, new, keyring, mirror, run)
        _write_wrappers(request.prefix, new, packages, run)
        return {**wanted, "packages": packages}

    note = f"{_PACKAGE} of {request.portable_suite} in {request.prefix}"
    return _provide(request, wanted, fill, (holds, note))


def _portable_source(request: Request) -> tuple[str, str]:
    """(keyring, mirror) to take Debian's packages from."""
    missing = [name for name in ("apt-get", "dpkg-deb") if not shutil.which(name, path=_ENVIRONMENT["PATH"])]
    if missing:
        raise ProviderError(f"the host has no {' and no '.join(missing)}: this method is for Debian hosts.")
    keyring = next((path for path in request.keyrings if os.path.exists(path)), None)
    if keyring is None:
        raise ProviderError("the host has no Debian keyring to check signatures with. Install debian-archive-keyring.")
    if request.portable_mirror:
        return keyring, request.portable_mirror
    release = _os_release(request.etc)
    if release.get("ID") != "debian":
        raise ProviderError("the host is not Debian, so it names no Debian mirror. Set runtime_portable_mirror.")
    mirror = find_mirror(request.etc, release.get("VERSION_CODENAME", ""))
    if mirror is None:
        raise ProviderError("the host's apt configuration names no Debian mirror. Set runtime_portable_mirror.")
    return keyring, mirror


def _os_release(etc: str) -> dict[str, str]:
    return {
        key: value.strip("\"'") for key, _equals, value in (line.partition("=") for line in _lines(etc, "os-release"))
    }


def _lines(*parts: str) -> list[str]:
    with contextlib.suppress(OSError), open(os.path.join(*parts), encoding="utf-8", errors="replace") as stream:
        return stream.read().splitlines()
    return []


def find_mirror(etc: str, codename: str) -> str | None:
    """The mirror of Debian's main archive that the host's own apt uses."""
    folder = os.path.join(etc, "apt", "sources.list.d")
    sources = parse_one_line_sources(_lines(etc, "apt", "sources.list"))
    for path in sorted(glob.glob(os.path.join(folder, "*.list"))):
        sources += parse_one_line_sources(_lines(path))
    for path in sorted(glob.glob(os.path.join(folder, "*.sources"))):
        sources += parse_deb822_sources(_lines(path))
    suites = {codename, *_DEBIAN_SUITES} - {""}
    for uri, suite, components in sources:
        if suite in suites and "main" in components and not uri.startswith("cdrom:"):
            return uri
    return None


Source = tuple[str, str, tuple[str, ...]]


def parse_one_line_sources(lines: Iterable[str]) -> list[Source]:
    """(uri, suite, components) of every "deb …" line."""
    found: list[Source] = []
    for line in lines:
        match = re.match(r"\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if match:
            found.append((match[1], match[2], tuple(match[3].split())))
    return found


def parse_deb822_sources(lines: Iterable[str]) -> list[Source]:
    """(uri, suite, components) of every enabled deb stanza."""
    stanzas: list[dict[str, list[str]]] = [{}]
    key = ""
    for line in lines:
        if line.startswith("#"):
            continue
        if not line.strip():
            stanzas.append({})
        elif line[0].isspace():
            stanzas[-1].setdefault(key, []).extend(line.split())
        else:
            name, _colon, value = line.partition(":")
            key = name.strip().lower()
            stanzas[-1][key] = value.split()
    found: list[Source] = []
    for stanza in stanzas:
        if "deb" in stanza.get("types", []) and stanza.get("enabled", ["yes"])[0].lower() not in ("no", "false", "0"):
            components = tuple(stanza.get("components", []))
            found += [(uri, suite, components) for uri in stanza.get("uris", []) for suite in stanza.get("suites", [])]
    return found


def apt_configuration(folder: str, host_settings: str) -> str:
    """An apt configuration that reads and writes below folder only, and reaches the network as the host does."""
    kept = [line for line in host_settings.splitlines() if _KEPT_APT_SETTING.match(line)]
    own = {
        "Dir::Etc::sourcelist": f"{folder}/sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State": f"{folder}/state",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": f"{folder}/cache",
        "Dir::Log": f"{folder}/log",
        "Debug::NoLocking": "true",
        "Acquire::Languages": "none",
        "APT::Update::Error-Mode": "any",
        "APT::Get::AllowUnauthenticated": "false",
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::AllowWeakRepositories": "false",
        "Acquire::AllowDowngradeToInsecureRepositories": "false",
    }
    return "\n".join([*kept, *(f'{key} "{value}";' for key, value in own.items())]) + "\n"


def _candidates(request: Request, keyring: str, mirror: str, run: Run) -> dict[str, str]:
    """The packages that the suite has now, with their versions."""
    with tempfile.TemporaryDirectory(prefix="magi-llama-") as folder:
        argv = ["apt-get", "-q", "-s", "--no-install-recommends", "install", _PACKAGE]
        return parse_apt_simulation(_run_apt(request, folder, keyring, mirror, run, argv).stdout)


def parse_apt_simulation(text: str) -> dict[str, str]:
    """The packages that apt-get -s would install, with their versions."""
    return dict(re.findall(r"^Inst (\S+) \((\S+)", text, re.MULTILINE))


def _fetch_packages(request: Request, new: str, keyring: str, mirror: str, run: Run) -> dict[str, str]:
    """Download the packages with apt, which checks the signatures, and unpack them below new/root; their versions."""
    folder = os.path.join(new, "apt")
    argv = ["apt-get", "-q", "-y", "--download-only", "--no-install-recommends", "install", _PACKAGE]
    _run_apt(request, folder, keyring, mirror, run, argv)
    environment = {**_ENVIRONMENT, "APT_CONFIG": os.path.join(folder, "apt.conf")}
    packages: dict[str, str] = {}
    for archive in sorted(glob.glob(os.path.join(folder, "cache", "archives", "*.deb"))):
        show = ["dpkg-deb", "--show", "--showformat=${Package} ${Version}", archive]
        done = run(show, environment, _QUICK_SECONDS)
        name, _space, version = done.stdout.strip().partition(" ")
        unpacked = run(["dpkg-deb", "-x", archive, os.path.join(new, "root")], environment, _QUICK_SECONDS)
        if done.code or unpacked.code:
            raise ProviderError(f"{os.path.basename(archive)} could not be unpacked: {_said(unpacked)}")
        packages[name] = version
    shutil.rmtree(folder)
    return packages


def _run_apt(request: Request, folder: str, keyring: str, mirror: str, run: Run, command: Sequence[str]) -> Completed:
    """Read the suite's lists and run an apt command, all of it below folder."""
    for part in ("state/lists/partial", "cache/archives/partial", "log"):
        os.makedirs(os.path.join(folder, part), mode=0o755)
    host = run(["apt-config", "dump"], _ENVIRONMENT, _QUICK_SECONDS).stdout
    # The host's settings may hold a proxy's password.
    write_atomic(os.path.join(folder, "apt.conf"), apt_configuration(folder, host).encode(), 0o600)
    source = f"deb [signed-by={keyring}] {mirror} {request.portable_suite} main\n"
    write_atomic(os.path.join(folder, "sources.list"), source.encode(), 0o644)
    environment = {**_ENVIRONMENT, "APT_CONFIG": os.path.join(folder, "apt.conf")}
    for argv in (["apt-get", "-q", "update"], command):
        done = run(argv, environment, _DOWNLOAD_SECONDS)
        if done.code != 0:
            where = f"suite {request.portable_suite} of {redact(mirror)}"
            raise ProviderError(f"apt-get could not take {_PACKAGE} from {where}: {_said(done)}")
    return done


def loader_command(root: str, argv0: str, program: str) -> list[str]:
    """How to start a program of the prefix with the prefix's own loader and libraries.

    The loader is called by its copy beside the CPU backends: ggml looks for them in the folder of the running program,
    which then is the loader, and takes the best one for this very processor itself.
    """
    libraries = os.path.dirname(next(iter(sorted(glob.glob(f"{root}/usr/lib/*/libggml.so*"))), ""))
    backends = next(iter(sorted(glob.glob(f"{libraries}/ggml/backends*"), reverse=True)), "")
    loader = next(iter(sorted(glob.glob(f"{backends}/ld-linux*.so.*"))), "")
    if not (libraries and backends and loader):
        raise ProviderError(f"the packages below {root} are laid out in a way that is not known here.")
    folders = [libraries, os.path.join(libraries, "llama"), backends]
    search = ":".join(folder for folder in folders if os.path.isdir(folder))
    return [loader, "--library-path", search, "--argv0", argv0, program]


def _copy_loader(root: str) -> None:
    """Put a copy of the loader beside the backends (see loader_command)."""
    for libraries in glob.glob(f"{root}/usr/lib/*/ggml"):
        loaders = glob.glob(f"{os.path.dirname(libraries)}/ld-linux*.so.*") + glob.glob(f"{root}/lib*/ld-linux*.so.*")
        for backends in glob.glob(f"{libraries}/backends*"):
            if loaders:
                shutil.copy(loaders[0], os.path.join(backends, os.path.basename(loaders[0])))


def _write_wrappers(prefix: str, new: str, packages: Mapping[str, str], run: Run) -> None:
    """Write bin/llama-server and its like, and see that the CPU backend is found."""
    root = os.path.join(new, "root")
    _copy_loader(root)
    digest = hashlib.sha256(json.dumps(packages, sort_keys=True).encode()).hexdigest()
    programs = sorted(glob.glob(f"{root}/usr/bin/llama-*"))
    if f"{root}/usr/bin/llama-server" not in programs:
        raise ProviderError(f"{_PACKAGE} holds no llama-server.")
    os.mkdir(os.path.join(new, "bin"))
    for program in programs:
        name = os.path.basename(program)
        argv0 = os.path.join(prefix, "bin", name)
        # Written for the final place: the prefix is renamed there when it is whole.
        command = [word.replace(new, prefix) for word in loader_command(root, argv0, program)]
        text = wrapper_text(command, digest)
        write_atomic(os.path.join(new, "bin", name), text.encode(), 0o755)
    bench = f"{root}/usr/bin/llama-bench"
    done = run([*loader_command(root, bench, bench), "-m", "/dev/null"], _ENVIRONMENT, _QUICK_SECONDS)
    if re.search(r"no backends are loaded|backend is not loaded", done.stdout + done.stderr):
        raise ProviderError(f"llama.cpp finds no CPU backend in the packages: {_said(done)}")


def wrapper_text(command: Sequence[str], digest: str) -> str:
    """A shell script that becomes command with its own arguments added."""
    # Called by the name that it is called by: by that, through links too, the plan knows the running process again.
    words = ['"$0"' if before == "--argv0" else shlex.quote(word) for before, word in zip(["", *command], command)]
    return (
        "#!/bin/sh\n"
        "# Starts a program of this prefix with the prefix's own loader and libraries.\n"
        # So that the file's sha256 says when a package changed.
        f"# packages: {digest}\n"
        f'exec {" ".join(words)} "$@"\n'
    )


# --- release ----------------------------------------------------------------------------------------------------------


def release(request: Request, _run: Run) -> Provided:
    """Upstream's archive, or a mirror's or a file's, by address and sha256."""
    if not request.release_url:
        raise ProviderError("no runtime_release_url is given.")
    expected = (request.release_sha256 or "").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", expected):
        raise ProviderError("runtime_release_sha256 must be the archive's sha256, 64 hexadecimal digits.")
    wanted = {"layout": PREFIX_LAYOUT, "method": "release", "sha256": expected}
    address, url = request.release_url, redact(request.release_url)

    def fill(new: str) -> dict[str, Any]:
        archive = os.path.join(new, "archive")
        found = _download(address, archive)
        if found != expected:
            raise ProviderError(
                f"{url} has sha256 {found}, but runtime_release_sha256 is {expected}. Nothing was unpacked. "
                "The download was altered or is another version: compare with the publisher's sum."
            )
        unpack(archive, os.path.join(new, "root"))
        os.unlink(archive)
        _link_programs(new, url)
        return {**wanted, "url": url}

    holds = f"{request.prefix} holds the archive with sha256 {expected[:12]}…"
    return _provide(request, wanted, fill, (holds, f"{url} in {request.prefix}"))


def redact(url: str) -> str:
    """The address without the user and password that may stand in it."""
    return re.sub(r"//[^/@\s]*@", "//", url)


def _download(url: str, target: str) -> str:
    """Download url to target; its sha256."""
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme not in ("http", "https", "file"):
        raise ProviderError(f"runtime_release_url must begin with https://, http:// or file://, not {scheme or url}.")
    digest = hashlib.sha256()
    try:
        with (
            urllib.request.build_opener().open(url, timeout=_CONNECT_SECONDS) as response,
            open(target, "wb") as stream,
        ):
            for block in iter(lambda: response.read(1024 * 1024), b""):
                digest.update(block)
                stream.write(block)
    except urllib.error.URLError as error:
        raise ProviderError(
            f"{redact(url)} could not be downloaded: {error.reason}. Check runtime_release_url."
        ) from error
    except (OSError, ValueError) as error:
        raise ProviderError(f"{redact(url)} could not be downloaded: {error}.") from error
    return digest.hexdigest()


def unpack(archive: str, target: str) -> None:
    """Unpack a tar archive below target. Devices and what would leave target are refused before anything is written."""
    try:
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
            for member in members:
                _refuse_unsafe(member)
            os.makedirs(target, mode=0o755)
            for member in members:
                _unpack_member(tar, member, target)
    except (tarfile.TarError, EOFError) as error:
        raise ProviderError(f"the archive is not a readable tar archive: {error}.") from error


def _refuse_unsafe(member: tarfile.TarInfo) -> None:
    # Without ".." and absolute names nothing can leave the target, however links are chained.
    names = [member.name, member.linkname] if member.issym() or member.islnk() else [member.name]
    for name in names:
        if name.startswith("/") or ".." in name.split("/"):
            raise ProviderError(f"the archive's member {member.name!r} points outside of it. Nothing was unpacked.")
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise ProviderError(f"the archive's member {member.name!r} is a device or pipe. Nothing was unpacked.")


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: str) -> None:
    path = os.path.join(target, member.name)
    if member.isdir():
        os.makedirs(path, exist_ok=True)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)
    if member.issym():
        os.symlink(member.linkname, path)
        return
    source = tar.extractfile(member)
    if source is None:
        raise ProviderError(f"the archive's member {member.name!r} links to nothing.")
    with source, open(path, "wb") as stream:
        shutil.copyfileobj(source, stream, 1024 * 1024)
    os.chmod(path, 0o755 if member.mode & 0o111 else 0o644)


def _link_programs(new: str, url: str) -> None:
    """Link every llama-* program of the archive into bin/, so that the path stays the same from version to version."""
    found = sorted(glob.glob(f"{new}/root/**/llama-server", recursive=True))
    if not found:
        raise ProviderError(f"{url} holds no llama-server.")
    os.mkdir(os.path.join(new, "bin"))
    for program in sorted(glob.glob(os.path.join(os.path.dirname(found[0]), "llama-*"))):
        if os.path.isfile(program) and os.access(program, os.X_OK):
            os.symlink(os.path.relpath(program, f"{new}/bin"), os.path.join(new, "bin", os.path.basename(program)))


# --- prefix -----------------------------------------------------------------------------------------------------------


def _provide(
    request: Request, wanted: Mapping[str, Any], fill: Callable[[str], dict[str, Any]], notes: tuple[str, str]
) -> Provided:
    """Have in the prefix what is wanted, or beside it where the request says stage and there is one already.

    fill lays it into an empty folder and returns its manifest. notes are for a prefix that has it and one that gets it.
    """
    prefix = request.prefix
    path = os.path.join(prefix, "bin", "llama-server")
    if _is_current(prefix, wanted):
        return Provided(path, notes[0])
    _require_prefix(prefix)
    before = _summary(read_manifest(prefix))
    # A first installation leaves nothing behind when the plan is refused, so it needs no look ahead.
    if request.check and not (request.stage and before):
        return Provided(path, notes[1], installed=False, changed=True, before=before, after=_summary(wanted))
    if request.check:
        folder = tempfile.mkdtemp(prefix=f"{os.path.basename(prefix)}.check-", dir=os.path.dirname(prefix))
        try:
            after = _summary(fill(folder))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Provided(path, notes[1], False, True, folder, discard=True, before=before, after=after)
    staged = staged_prefix(prefix)
    places = not request.stage or (request.first and not before)
    if _is_current(staged, wanted) and places:
        return Provided(path, notes[1], changed=_put_staged(prefix), before=before, after=_summary(wanted))
    place = prefix if places else staged
    with _new_prefix(prefix, place, wanted) as new:
        if new is not None:
            write_manifest(new, fill(new))
    after = _summary(read_manifest(place))
    lies = place if place != prefix else None
    return Provided(path, notes[1], lies is None, new is not None, lies, before=before, after=after)


def _put_staged(prefix: str) -> bool:
    """Put what is staged in place; tells whether it was still there."""
    staged = staged_prefix(prefix)
    try:
        with _locked(os.path.dirname(prefix)):
            is_there = os.path.lexists(staged)
            if is_there:
                _put_in_place(staged, prefix)
    except OSError as error:
        raise ProviderError(f"{staged} could not be put in place: {error}.") from error
    return is_there


def restore_previous(prefix: str) -> None:
    """Let the prefix and the one before it change places. Raises ProviderError."""
    previous, aside = previous_prefix(prefix), f"{prefix}.new"
    try:
        with _locked(os.path.dirname(prefix)):
            shutil.rmtree(aside, ignore_errors=True)
            if os.path.lexists(prefix):
                os.rename(prefix, aside)
            os.rename(previous, prefix)
            if os.path.lexists(aside):
                os.rename(aside, previous)
    except OSError as error:
        raise ProviderError(f"{previous} could not take the place of {prefix}: {error}.") from error


def _summary(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest that people compare."""
    shown = {key: manifest[key] for key in ("method", "suite", "sha256") if key in manifest}
    packages = manifest.get("packages")
    if isinstance(packages, dict) and _PACKAGE in packages:
        shown["packages"] = {_PACKAGE: packages[_PACKAGE]}
    return shown


def _is_current(prefix: str, wanted: Mapping[str, Any]) -> bool:
    manifest = read_manifest(prefix)
    same = all(manifest.get(key) == value for key, value in wanted.items())
    return same and os.path.exists(os.path.join(prefix, "bin", "llama-server"))


def _require_prefix(prefix: str) -> None:
    """Refuse a prefix that cannot be made or written into a script."""
    if not os.path.isabs(prefix) or re.search(r'[:;"\n]', prefix):
        raise ProviderError(f'runtime_prefix must be an absolute path without : ; and ", not {prefix}.')
    folder = os.path.dirname(os.path.normpath(prefix))
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ProviderError(
            f"this user may not write to {folder}. Set become, or runtime_prefix to a folder of this user's, such as "
            "~/.local/share/magi-llama/runtime."
        )


@contextlib.contextmanager
def _new_prefix(prefix: str, place: str, wanted: Mapping[str, Any]) -> Iterator[str | None]:
    """A folder beside prefix to fill; when filled it takes its place, the prefix itself or the staged one.

    None where another run has filled it meanwhile. What an interrupted run left is cleared first.
    """
    # Ansible may hand down a umask that shuts the unprivileged user of the servers out.
    mask = os.umask(0o022)
    new = f"{prefix}.new"
    try:
        os.makedirs(os.path.dirname(prefix), exist_ok=True)
        with _locked(os.path.dirname(prefix)):
            if _is_current(place, wanted):
                yield None
                return
            shutil.rmtree(new, ignore_errors=True)
            os.mkdir(new)
            try:
                yield new
                _open_to_all(new)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
            if place == prefix:
                _put_in_place(new, prefix)
                # Whatever else waited there is not wanted any more.
                shutil.rmtree(staged_prefix(prefix), ignore_errors=True)
            else:
                shutil.rmtree(place, ignore_errors=True)
                os.rename(new, place)
    except OSError as error:
        raise ProviderError(f"{prefix} could not be made: {error}.") from error
    finally:
        os.umask(mask)


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """One run at a time; what it renames in the folder is on disk when it ends."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        os.fsync(lock)
    finally:
        os.close(lock)


def _put_in_place(new: str, prefix: str) -> None:
    """Rename new to prefix; the old one is kept, unless that is one that never worked while a kept one has."""
    previous = previous_prefix(prefix)
    if os.path.lexists(prefix):
        if read_manifest(previous).get("good") and not read_manifest(prefix).get("good"):
            shutil.rmtree(prefix)
        else:
            shutil.rmtree(previous, ignore_errors=True)
            os.rename(prefix, previous)
    os.rename(new, prefix)


def _open_to_all(top: str) -> None:
    """Readable and executable for everyone, writable for the owner, no set-id bits."""
    for folder, _folders, files in os.walk(top):
        os.chmod(folder, 0o755)
        for name in files:
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            if not stat.S_ISLNK(mode):
                os.chmod(path, 0o755 if mode & 0o111 else 0o644)


def _said(done: Completed) -> str:
    """The last lines that a command printed, errors before the rest."""
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "Err:", "W: GPG", "W: Failed"))]
    return redact(" | ".join((errors or lines)[-4:])) or f"exit code {done.code}"


PROVIDERS: dict[str, Provider] = {"existing": existing, "package": package, "portable": portable, "release": release}
