# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""llama-server as a package of the distribution."""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Callable, Sequence

from ..._core.commands import Run
from ..probe import gpu_backends
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

_APT_NAMES = (PACKAGE_NAME, "llama.cpp")

# --- package ----------------------------------------------------------------------------------------------------------


def package(request: Request, run: Run) -> Provided:
    """Install the distribution's package from the repositories that the host already uses."""
    if os.path.exists(request.package_path):
        return _with_backend(request, run)
    manager = next((name for name in _MANAGERS if shutil.which(name, path=CLEAN_ENVIRONMENT["PATH"])), None)
    if manager is None:
        raise ProviderError(f"the host has none of {', '.join(_MANAGERS)}.")
    candidate, install = _MANAGERS[manager]
    found = candidate(request, run)
    if found is None:
        raise ProviderError(f"{manager} has no llama.cpp in the host's repositories.")
    after = {"method": "package", "packages": {found[0]: found[1]}}
    note = f"{found[0]} {found[1]} from the host's repositories"
    if request.check or not request.install_if_missing:
        return Provided(request.package_path, note, installed=False, changed=True, after=after)
    if os.geteuid() != 0:
        raise ProviderError(f"{manager} has {found[0]}, but only root may install it. Set become or another method.")
    done = run([*install, found[0], *_backends(request, manager, run)], CLEAN_ENVIRONMENT, DOWNLOAD_SECONDS)
    if done.code != 0:
        raise ProviderError(f"{manager} could not install {found[0]}: {last_lines(done)}")
    return Provided(request.package_path, note, changed=True, after=after)


def _with_backend(request: Request, run: Run) -> Provided:
    """What is installed; it gets a backend for the GPUs of the host if it has none, and would serve on the CPU."""
    path, note = request.package_path, f"{request.package_path} is installed"
    missing = [] if not request.gpu_packages or gpu_backends(path) else _missing_backends(request, run)
    if not missing:
        return Provided(path, note)
    names = ", ".join(name for name, _version in missing)
    after = {"method": "package", "packages": dict(missing)}
    if request.check or not request.install_if_missing:
        return Provided(path, f"{note}, with {names} for the host's GPU", changed=True, after=after)
    if os.geteuid() != 0:
        why = "Only root may install it: set become"
    else:
        install = _MANAGERS["apt-get"][1]
        done = run([*install, *(name for name, _version in missing)], CLEAN_ENVIRONMENT, DOWNLOAD_SECONDS)
        if done.code == 0:
            return Provided(path, f"{note}, with {names} for the host's GPU", changed=True, after=after)
        why = f"apt-get could not install it: {last_lines(done)}"
    # It serves all the same: another method would put a second llama-server on the host.
    warning = f"{path} does not use the host's GPU, as {names} is not installed. {why}."
    return Provided(path, note, warnings=[warning])


def _missing_backends(request: Request, run: Run) -> list[tuple[str, str]]:
    """The packages for GPUs that apt has and the host lacks, with versions; none if llama-server is not of apt."""
    if not shutil.which("apt-get", path=CLEAN_ENVIRONMENT["PATH"]):
        return []
    argv = ["apt-cache", "policy", *_APT_NAMES, *request.gpu_packages]
    text = run(argv, CLEAN_ENVIRONMENT, QUICK_SECONDS).stdout
    installed = dict(re.findall(r"^(\S+):\n  Installed: (\S+)$", text, re.MULTILINE))
    absent = {name for name, version in installed.items() if version == "(none)"}
    if not (set(_APT_NAMES) & installed.keys()) - absent:
        return []
    found = [parse_apt_policy(text, [name]) for name in request.gpu_packages if name in absent]
    return [candidate for candidate in found if candidate]


def _backends(request: Request, manager: str, run: Run) -> list[str]:
    """The packages with the backend for the host's GPUs, as far as its repositories have them."""
    names = request.gpu_packages if manager == "apt-get" else ()
    text = run(["apt-cache", "policy", *names], CLEAN_ENVIRONMENT, QUICK_SECONDS).stdout if names else ""
    return [name for name in names if parse_apt_policy(text, [name])]


def parse_apt_policy(text: str, names: Sequence[str]) -> tuple[str, str] | None:
    """Return the first of these names that has a candidate in the output of apt-cache policy, with its version."""
    candidates = dict(re.findall(r"^(\S+):\n(?:  .*\n)*?  Candidate: (\S+)$", text, re.MULTILINE))
    for name in names:
        if candidates.get(name, "(none)") != "(none)":
            return name, candidates[name]
    return None


def _apt_candidate(request: Request, run: Run) -> tuple[str, str] | None:
    policy = ["apt-cache", "policy", *_APT_NAMES]
    found = parse_apt_policy(run(policy, CLEAN_ENVIRONMENT, QUICK_SECONDS).stdout, _APT_NAMES)
    if found or request.check or os.geteuid() != 0 or glob.glob("/var/lib/apt/lists/*Packages*"):
        return found
    # A fresh image has no package lists yet: update them before concluding that the package is missing.
    run(["apt-get", "-q", "update"], CLEAN_ENVIRONMENT, DOWNLOAD_SECONDS)
    return parse_apt_policy(run(policy, CLEAN_ENVIRONMENT, QUICK_SECONDS).stdout, _APT_NAMES)


def _dnf_candidate(_request: Request, run: Run) -> tuple[str, str] | None:
    argv = ["dnf", "--quiet", "repoquery", "--latest-limit=1", "--queryformat", "%{version}-%{release}\n", "llama-cpp"]
    lines = run(argv, CLEAN_ENVIRONMENT, DOWNLOAD_SECONDS).stdout.split()
    return ("llama-cpp", lines[-1]) if lines else None


def _zypper_candidate(_request: Request, run: Run) -> tuple[str, str] | None:
    argv = ["zypper", "--non-interactive", "--quiet", "info", "llamacpp"]
    version = re.search(r"^Version\s*: (\S+)", run(argv, CLEAN_ENVIRONMENT, DOWNLOAD_SECONDS).stdout, re.MULTILINE)
    return ("llamacpp", version[1]) if version else None


_MANAGERS: dict[str, tuple[Callable[[Request, Run], tuple[str, str] | None], list[str]]] = {
    "apt-get": (_apt_candidate, ["apt-get", "install", "-q", "-y", "--no-install-recommends"]),
    "dnf": (_dnf_candidate, ["dnf", "install", "-q", "-y"]),
    "zypper": (_zypper_candidate, ["zypper", "--non-interactive", "--quiet", "install", "--no-recommends"]),
}
