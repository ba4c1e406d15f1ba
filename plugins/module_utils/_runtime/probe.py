# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Find out version and flags of the llama-server on a host: the fact llama_runtime.

Used by the module runtime. The output is parsed in help_text.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import stat
from collections.abc import Sequence
from typing import Any

from .._core.commands import Completed, Run, run_command
from .._core.digests import file_digest
from .._core.errors import MagiError
from .._core.files import json_of, write_atomic
from .._core.ownership import open_trusted, require_trusted
from .flags import flags_to_fact
from .help_text import Version, VersionError, parse_help, parse_version


class ProbeError(MagiError):
    """Raised for a binary that does not run, or is not llama-server."""


# A healthy driver answers within 5 s, even where it has to initialize 8 GPUs first.
PROBE_SECONDS = 30.0
# Nothing is inherited from the caller: LLAMA_ARG_*, AIP_* and a user's configuration file would change the output.
PROBE_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"}

# Remote vulnerabilities and the first upstream build that fixes each.
CVE_FLOORS = (("CVE-2026-33298", 7824), ("CVE-2026-27940", 8146), ("CVE-2026-21869", 8908))

_IK_FLAGS = {"attention_max_batch", "fused_moe", "mla_use", "run_time_repack", "smart_expert_reduction"}
_CHANGING_VARIABLE = re.compile(
    r"^\s*(?:export\s+)?(LLAMA_ARG_\w+|LLAMA_API_KEY|AIP_MODE|AIP_HTTP_PORT)\s*=", re.MULTILINE
)
_CACHE_SCHEMA = 1
_GPU_BACKEND = re.compile(r"libggml-(cann|cuda|hip|metal|musa|opencl|sycl|vulkan)\b")
# Next to the folder of the program: of archives, of distributions, and of a prefix with packages.
_BACKEND_FOLDERS = ("lib", "lib64", "lib/*/ggml/backends*", "lib/ggml*", "root/usr/lib/*/ggml/backends*")


def absent(path: str, source: str, warnings: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fact for a binary that is not installed yet, for check mode."""
    return {
        "path": path,
        "installed": False,
        "version": None,
        "build": None,
        "commit": None,
        "flavour": None,
        "sha256": None,
        "identity": None,
        "flags": {},
        "source": source,
        "warnings": list(warnings),
    }


def probe(
    path: str,
    run: Run = run_command,
    *,
    source: str = "existing",
    cache_path: str | None = None,
    write_cache: bool = True,
    etc: str = "/etc",
    file: str | None = None,
    argv: Sequence[str] | None = None,
    owner: str | None = None,
) -> dict[str, Any]:
    """Run the binary at path and return the fact llama_runtime. Raises ProbeError.

    cache_path is a JSON file with the help text by identity, so that a known binary is run only once, with --version.
    A staged binary, which is not at path yet, is at file and is started with argv. owner is a user besides root who may
    own it. Raises OwnershipError if root must not trust the binary or the cache.
    """
    require_trusted(file or path, owner)
    command = list(argv or [path])
    cache = _read_cache(cache_path)
    text = _output(path, "--version", run, command)
    try:
        version = parse_version(text)
    except VersionError as error:
        raise ProbeError(f"{path}: {error} Set runtime_binary_path to a llama-server.") from error
    sha256 = _sha256(file or path, cache)
    # A distribution's llama-server is a small file that uses shared libraries: an upgrade may leave it unchanged, so
    # its output is part of the identity.
    said = [line for line in text.splitlines() if line.startswith(("version:", "built with"))]
    parts = [sha256, *said, *gpu_backends(file or path)]
    identity = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
    help_text = cache["help"].get(identity)
    if not isinstance(help_text, str):
        help_text = _output(path, "--help", run, command)
        cache["help"] = {identity: help_text}
    flags = parse_help(help_text)
    if "model" not in flags:
        raise ProbeError(
            f"{path}: its --help names no flag --model, so it is not llama-server. Check runtime_binary_path."
        )
    if write_cache:
        _write_cache(cache_path, cache)
    flavour = "ik_llama.cpp" if _IK_FLAGS & set(flags) else "llama.cpp"
    return {
        "path": path,
        "installed": True,
        "version": version.version,
        "build": version.build,
        "commit": version.commit,
        "flavour": flavour,
        "sha256": sha256,
        "identity": identity,
        "flags": flags_to_fact(flags),
        "source": source,
        "warnings": build_warnings(path, version, flavour) + configuration_warnings(etc),
    }


def gpu_backend_files(program: str) -> list[str]:
    """The files of GPU backends that a llama-server loads at run time."""
    return [path for path in ggml_files(program) if _GPU_BACKEND.match(os.path.basename(path))]


def ggml_files(program: str) -> list[str]:
    """The shared libraries of ggml that belong to a llama-server, by where builds and packages put them."""
    folders = {os.path.dirname(program), os.path.dirname(os.path.realpath(program))}
    found: set[str] = set()
    for folder in folders:
        above = os.path.dirname(folder)
        for place in _BACKEND_FOLDERS:
            found.update(os.path.realpath(path) for path in glob.glob(f"{glob.escape(above)}/{place}/libggml[-.]*so*"))
        found.update(os.path.realpath(path) for path in glob.glob(f"{glob.escape(folder)}/libggml[-.]*so*"))
    return sorted(found)


def gpu_backends(program: str) -> list[str]:
    """The GPU backends that a llama-server loads from files of their own, with size and time, one text each.

    Without its CUDA library the same file serves on the CPU: such a server is another one.
    """
    texts = []
    for path in gpu_backend_files(program):
        with contextlib.suppress(OSError):
            state = os.stat(path)
            texts.append(f"{os.path.basename(path)}:{state.st_size}:{state.st_mtime_ns}")
    return sorted(texts)


def known_holes(build: int) -> list[tuple[str, int]]:
    """The known remote vulnerabilities of an upstream build, each with the build that fixes it."""
    return [(name, floor) for name, floor in CVE_FLOORS if build < floor]


def build_warnings(path: str, version: Version, flavour: str) -> list[str]:
    """Return a warning about known remote vulnerabilities. Only upstream's build numbers can be compared."""
    if flavour != "llama.cpp":
        return []
    if version.build is None:
        return [f"{path} does not report its build number, so it cannot be checked for known vulnerabilities."]
    open_holes = known_holes(version.build)
    if not open_holes:
        return []
    names = ", ".join(f"{name} (fixed in build {floor})" for name, floor in open_holes)
    return [f"{path} is build {version.build}, which has known remote vulnerabilities: {names}. Update llama.cpp."]


def configuration_warnings(etc: str = "/etc") -> list[str]:
    """Return warnings about files and variables that silently change every llama-server, without their values."""
    warnings = []
    config = os.path.join(etc, "llama.cpp", "config.ini")
    if os.path.exists(config):
        warnings.append(f"{config} changes every llama-server on this host; move its settings into the profile.")
    environment = os.path.join(etc, "environment")
    with contextlib.suppress(OSError), open(environment, encoding="utf-8", errors="replace") as stream:
        names = sorted(set(_CHANGING_VARIABLE.findall(stream.read())))
        if names:
            warnings.append(
                f"{environment} sets {', '.join(names)}: a llama-server started by hand behaves differently from a "
                "managed one."
            )
    return warnings


def _output(path: str, argument: str, run: Run, command: Sequence[str]) -> str:
    """Return what the binary prints for an argument. Raises ProbeError with its output and the fix."""
    try:
        done = run([*command, argument], PROBE_ENVIRONMENT, PROBE_SECONDS)
    except TimeoutError as error:
        raise ProbeError(
            f"{path} {argument} did not end within {PROBE_SECONDS:g} s. A GPU driver may hang: run it by hand."
        ) from error
    except OSError as error:
        raise ProbeError(f"{path} does not run: {explain_start_error(path, error)}") from error
    if done.code != 0:
        raise ProbeError(f"{path} does not run: {explain_exit(done)}")
    # Builds differ in which of the two they print to.
    return f"{done.stdout}\n{done.stderr}"


def explain_start_error(path: str, error: OSError) -> str:
    """Explain why the system could not start path, and what to do."""
    if error.errno == errno.ENOENT and os.path.exists(path):
        return (
            "its loader or interpreter is missing, so it was built for another distribution. "
            "Use a binary for this distribution, or runtime_install_method portable."
        )
    if error.errno == errno.ENOENT:
        return "there is no such file. Set runtime_binary_path, or a runtime_install_method that provides one."
    if error.errno == errno.ENOEXEC:
        machine = os.uname().machine
        return f"it is not a program for this machine ({machine}). Use a binary built for {machine}."
    if error.errno in (errno.EACCES, errno.EPERM):
        return _explain_permission(path)
    return f"{error.strerror or error}."


def _explain_permission(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
        noexec = os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 8)
    except OSError:
        return "this user may not enter one of its parent folders. Check the folders' permissions."
    if stat.S_ISDIR(mode):
        return "it is a folder. Name the file llama-server in it."
    if noexec:
        return (
            "its file system is mounted noexec. Put it elsewhere (runtime_prefix, runtime_binary_path), or remount it."
        )
    closed = _closed_folder(path) if mode & stat.S_IXOTH and os.geteuid() == 0 else None
    if closed:
        return f"the servers' user may not enter {closed}. Run: chmod a+x {closed}, or put the program elsewhere."
    return f"this user may not execute it (mode {stat.S_IMODE(mode):04o}). Run: chmod a+rx {path}"


def _closed_folder(path: str) -> str | None:
    """The first folder above a program that others may not enter; root sees it, and asks the program as another."""
    folder = os.path.dirname(os.path.realpath(path))
    above = ["/"]
    for name in filter(None, folder.split("/")):
        above.append(os.path.join(above[-1], name))
    with contextlib.suppress(OSError):
        return next((part for part in above if not os.stat(part).st_mode & stat.S_IXOTH), None)
    return None


def explain_exit(done: Completed) -> str:
    """Explain why the program ended at once, with its output, and what to do."""
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    said = " | ".join(lines[-3:])[:500] or "it printed nothing"
    library = re.search(r"error while loading shared libraries: (\S+?):", done.stderr)
    if re.search(r"version `(GLIBC|GLIBCXX|CXXABI)_[\d.]+' not found", done.stderr):
        return f"it was built for a newer system than this one: {said}. Use runtime_install_method portable or package."
    if library:
        return (
            f"the shared library {library[1]} is missing: {said}. "
            "Install the package that has it, or keep the libraries of its archive next to the binary."
        )
    if done.code in (-4, 132):
        return f"it uses instructions that this processor lacks (SIGILL): {said}. Use a build for this processor."
    ended = f"signal {-done.code}" if done.code < 0 else f"exit code {done.code}"
    return f"it ended with {ended}: {said}."


def _sha256(path: str, cache: dict[str, Any]) -> str:
    """The binary's sha256; taken from the cache while the file is the same, since a CUDA build has half a gigabyte."""
    try:
        found = os.stat(path)
        mark = [found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev, found.st_ctime_ns]
        known = cache["files"].get(path)
        if isinstance(known, dict) and known.get("mark") == mark and known.get("sha256"):
            return str(known["sha256"])
        sha256 = file_digest(path)
    except OSError as error:
        raise ProbeError(f"{path} cannot be read: {error.strerror}. Give this user read permission.") from error
    cache["files"] = {path: {"mark": mark, "sha256": sha256}}
    return sha256


def _read_cache(path: str | None) -> dict[str, Any]:
    """Return the cache file's content; an unreadable file counts as empty."""
    if path:
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError), open_trusted(path) as stream:
            cache = json.load(stream)
            if cache["schema_version"] == _CACHE_SCHEMA and all(isinstance(cache[k], dict) for k in ("files", "help")):
                return {**cache, "read": json.dumps(cache, sort_keys=True)}
    return {"schema_version": _CACHE_SCHEMA, "files": {}, "help": {}, "read": ""}


def is_cache(path: str) -> bool:
    """Whether a regular file is a cache of this module, of any version."""
    content = json_of(path)
    return isinstance(content.get("schema_version"), int) and all(
        isinstance(content.get(key), dict) for key in ("files", "help")
    )


def _write_cache(path: str | None, cache: dict[str, Any]) -> None:
    text = json.dumps({key: value for key, value in cache.items() if key != "read"}, sort_keys=True)
    if path and text != cache["read"]:
        # Without a cache the next run takes milliseconds longer; do not fail for that.
        with contextlib.suppress(OSError):
            write_atomic(path, text.encode(), 0o644)
