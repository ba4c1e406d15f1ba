# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Debian's signed packages in a prefix, with a C library of their own: for hosts whose own is too old."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..._core.commands import Completed, Run
from ..._core.digests import digest_of
from ..._core.files import write_atomic
from ..._core.text import quoted, redact
from ..prefix import PREFIX_LAYOUT, is_current, provide
from ..requests import (
    CLEAN_ENVIRONMENT,
    DOWNLOAD_SECONDS,
    PACKAGE_NAME,
    QUICK_SECONDS,
    Provided,
    ProviderError,
    Request,
    last_lines,
)

_DEBIAN_SUITES = ("oldstable", "stable", "testing", "unstable", "sid")
_SUITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~+/-]*")
_MIRROR = re.compile(r"[a-z][a-z0-9+.-]*:/[!#-Z^-~]*")
# Keep the host's network settings (proxies, time-outs, retries), but not its sources and trust.
_KEPT_APT_SETTING = re.compile(
    r"Acquire::(?!AllowDowngrade|AllowInsecure|AllowWeak|Changelogs|CompressionTypes|GzipIndexes|IndexTargets|Languages)"
)


# --- portable ---------------------------------------------------------------------------------------------------------


def portable(request: Request, run: Run) -> Provided:
    """Unpack Debian's signed packages into a prefix separate from the host's libraries. Does not need root."""
    _check_source("runtime_portable_suite", request.portable_suite, _SUITE)
    if request.portable_mirror:
        _check_source("runtime_portable_mirror", request.portable_mirror, _MIRROR)
    wanted = {"layout": PREFIX_LAYOUT, "method": "portable", "suite": request.portable_suite}
    if request.gpu_packages:
        # A prefix from before the host had a GPU lacks the backend.
        wanted["backends"] = ["vulkan"]
    holds = f"{request.prefix} holds {PACKAGE_NAME} of {request.portable_suite}"
    if not request.upgrade and is_current(request.prefix, wanted):
        return Provided(os.path.join(request.prefix, "bin", "llama-server"), holds)
    keyring, mirror = _portable_source(request)
    if request.upgrade and is_current(request.prefix, wanted):
        wanted["packages"] = _candidates(request, keyring, mirror, run)

    def fill(new: str) -> dict[str, Any]:
        packages = _fetch_packages(request, new, keyring, mirror, run)
        _write_wrappers(request.prefix, new, packages, run)
        return {**wanted, "packages": packages}

    note = f"{PACKAGE_NAME} of {request.portable_suite} in {request.prefix}"
    return provide(request, wanted, fill, (holds, note))


def _check_source(name: str, value: str, pattern: re.Pattern[str]) -> None:
    """Raise ProviderError for text that could add words or lines, and so an unsigned source, to apt's list."""
    if not pattern.fullmatch(value):
        example = "forky" if pattern is _SUITE else "https://deb.debian.org/debian"
        raise ProviderError(f"{name} is {quoted(redact(value))}: set it to one word such as {example}.")


def _portable_source(request: Request) -> tuple[str, str]:
    """Return (keyring, mirror) for Debian's packages."""
    missing = [name for name in ("apt-get", "dpkg-deb") if not shutil.which(name, path=CLEAN_ENVIRONMENT["PATH"])]
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
    """Return the mirror of Debian's main archive that the host's own apt uses."""
    folder = os.path.join(etc, "apt", "sources.list.d")
    sources = parse_one_line_sources(_lines(etc, "apt", "sources.list"))
    for path in sorted(glob.glob(os.path.join(folder, "*.list"))):
        sources += parse_one_line_sources(_lines(path))
    for path in sorted(glob.glob(os.path.join(folder, "*.sources"))):
        sources += parse_deb822_sources(_lines(path))
    suites = {codename, *_DEBIAN_SUITES} - {""}
    for uri, suite, components in sources:
        if suite in suites and "main" in components and _MIRROR.fullmatch(uri) and not uri.startswith("cdrom:"):
            return uri
    return None


Source = tuple[str, str, tuple[str, ...]]


def parse_one_line_sources(lines: Iterable[str]) -> list[Source]:
    """Return (uri, suite, components) of every "deb …" line."""
    found: list[Source] = []
    for line in lines:
        match = re.match(r"\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if match:
            found.append((match[1], match[2], tuple(match[3].split())))
    return found


def parse_deb822_sources(lines: Iterable[str]) -> list[Source]:
    """Return (uri, suite, components) of every enabled deb stanza."""
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
    """Return an apt configuration that only uses files below folder, with the host's network settings."""
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
    """Return the packages that the suite has now, with their versions."""
    with tempfile.TemporaryDirectory(prefix="magi-llama-") as folder:
        argv = ["apt-get", "-q", "-s", "--no-install-recommends", "install", PACKAGE_NAME, *request.gpu_packages]
        return parse_apt_simulation(_run_apt(request, folder, keyring, mirror, run, argv).stdout)


def parse_apt_simulation(text: str) -> dict[str, str]:
    """Return the packages that apt-get -s would install, with their versions."""
    return dict(re.findall(r"^Inst (\S+) \((\S+)", text, re.MULTILINE))


def _fetch_packages(request: Request, new: str, keyring: str, mirror: str, run: Run) -> dict[str, str]:
    """Download the packages with apt, which checks the signatures, and unpack them below new/root; return versions."""
    folder = os.path.join(new, "apt")
    argv = ["apt-get", "-q", "-y", "--download-only", "--no-install-recommends", "install", PACKAGE_NAME]
    argv += request.gpu_packages
    _run_apt(request, folder, keyring, mirror, run, argv)
    environment = {**CLEAN_ENVIRONMENT, "APT_CONFIG": os.path.join(folder, "apt.conf")}
    packages: dict[str, str] = {}
    for archive in sorted(glob.glob(os.path.join(folder, "cache", "archives", "*.deb"))):
        show = ["dpkg-deb", "--show", "--showformat=${Package} ${Version}", archive]
        done = run(show, environment, QUICK_SECONDS)
        name, _space, version = done.stdout.strip().partition(" ")
        unpacked = run(["dpkg-deb", "-x", archive, os.path.join(new, "root")], environment, QUICK_SECONDS)
        if done.code or unpacked.code:
            raise ProviderError(f"{os.path.basename(archive)} could not be unpacked: {last_lines(unpacked)}")
        packages[name] = version
    shutil.rmtree(folder)
    return packages


def _run_apt(request: Request, folder: str, keyring: str, mirror: str, run: Run, command: Sequence[str]) -> Completed:
    """Read the suite's lists and run an apt command, all of it below folder."""
    for part in ("state/lists/partial", "cache/archives/partial", "log"):
        os.makedirs(os.path.join(folder, part), mode=0o755)
    host = run(["apt-config", "dump"], CLEAN_ENVIRONMENT, QUICK_SECONDS).stdout
    # The host's settings may contain a proxy password.
    write_atomic(os.path.join(folder, "apt.conf"), apt_configuration(folder, host).encode(), 0o600)
    source = f"deb [signed-by={keyring}] {mirror} {request.portable_suite} main\n"
    # The mirror's address may hold a password.
    write_atomic(os.path.join(folder, "sources.list"), source.encode(), 0o600)
    environment = {**CLEAN_ENVIRONMENT, "APT_CONFIG": os.path.join(folder, "apt.conf")}
    for argv in (["apt-get", "-q", "update"], command):
        done = run(argv, environment, DOWNLOAD_SECONDS)
        if done.code != 0:
            where = f"suite {request.portable_suite} of {redact(mirror)}"
            raise ProviderError(f"apt-get could not fetch {PACKAGE_NAME} from {where}: {last_lines(done)}")
    return done


def loader_command(root: str, argv0: str, program: str) -> list[str]:
    """Return the command that starts a program of the prefix with the prefix's own loader and libraries.

    The loader is called through its copy next to the CPU backends: ggml looks for them in the folder of the running
    program, which is then the loader, and selects the best one for this processor itself.
    """
    libraries = os.path.dirname(next(iter(sorted(glob.glob(f"{root}/usr/lib/*/libggml.so*"))), ""))
    backends = next(iter(sorted(glob.glob(f"{libraries}/ggml/backends*"), reverse=True)), "")
    loader = next(iter(sorted(glob.glob(f"{backends}/ld-linux*.so.*"))), "")
    if not (libraries and backends and loader):
        raise ProviderError(f"the packages below {root} have an unknown layout.")
    folders = [libraries, os.path.join(libraries, "llama"), backends]
    search = ":".join(folder for folder in folders if os.path.isdir(folder))
    return [loader, "--library-path", search, "--argv0", argv0, program]


def _copy_loader(root: str) -> None:
    """Copy the loader next to the backends (see loader_command)."""
    for libraries in glob.glob(f"{root}/usr/lib/*/ggml"):
        loaders = glob.glob(f"{os.path.dirname(libraries)}/ld-linux*.so.*") + glob.glob(f"{root}/lib*/ld-linux*.so.*")
        for backends in glob.glob(f"{libraries}/backends*"):
            if loaders:
                shutil.copy(loaders[0], os.path.join(backends, os.path.basename(loaders[0])))


def _write_wrappers(prefix: str, new: str, packages: Mapping[str, str], run: Run) -> None:
    """Write wrapper scripts such as bin/llama-server, and check that llama.cpp finds its CPU backend."""
    root = os.path.join(new, "root")
    _copy_loader(root)
    digest = digest_of(packages)
    programs = sorted(glob.glob(f"{root}/usr/bin/llama-*"))
    if f"{root}/usr/bin/llama-server" not in programs:
        raise ProviderError(f"{PACKAGE_NAME} holds no llama-server.")
    os.mkdir(os.path.join(new, "bin"))
    for program in programs:
        name = os.path.basename(program)
        argv0 = os.path.join(prefix, "bin", name)
        # Written for the final place: the prefix is renamed when it is complete.
        command = [word.replace(new, prefix) for word in loader_command(root, argv0, program)]
        text = wrapper_text(command, digest)
        write_atomic(os.path.join(new, "bin", name), text.encode(), 0o755)
    bench = f"{root}/usr/bin/llama-bench"
    done = run([*loader_command(root, bench, bench), "-m", "/dev/null"], CLEAN_ENVIRONMENT, QUICK_SECONDS)
    if re.search(r"no backends are loaded|backend is not loaded", done.stdout + done.stderr):
        raise ProviderError(f"llama.cpp finds no CPU backend in the packages: {last_lines(done)}")


def wrapper_text(command: Sequence[str], digest: str) -> str:
    """Return a shell script that executes command with the script's arguments appended."""
    # argv0 is the name that the script was called by, even through a link, so that the plan recognises the process.
    words = ['"$0"' if before == "--argv0" else shlex.quote(word) for before, word in zip(["", *command], command)]
    return (
        "#!/bin/sh\n"
        "# Starts a program of this prefix with the prefix's own loader and libraries.\n"
        # So that the file's sha256 says when a package changed.
        f"# packages: {digest}\n"
        f'exec {" ".join(words)} "$@"\n'
    )
