# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the images with Docker or podman, and writes what each contains as SPDX to .cache/images: `make images`.

The base is debian:forky-slim, any other Debian image by --base, or with --base packages one that mmdebstrap makes from
Debian's signed packages alone, without a registry.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sbom
import yaml

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache/images"
IMAGES = ("llama-server", "llama-server-vulkan", "magi")
PREFIX = "magi-llama"
FROM_PACKAGES = "packages"
SUITE = "forky"
DEFAULT_BASE = f"debian:{SUITE}-slim"
EXCLUDED = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*")


class ImageError(Exception):
    """An image cannot be built; the message says what to do."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Build the images of the containers.")
    parser.add_argument("images", nargs="*", default=("llama-server", "magi"), help=f"of {', '.join(IMAGES)}")
    parser.add_argument("--base", default=DEFAULT_BASE, help="a Debian image, or packages (default: %(default)s)")
    parser.add_argument("--engine", help="docker or podman; by default the first that works")
    parser.add_argument("--tag", default="latest")
    parser.add_argument("--name", default="", help="another name for the image, where it is one")
    parser.add_argument("--update", action="store_true", help="with the newest base and packages, not those of before")
    given = parser.parse_args(arguments)
    try:
        if given.name and len(given.images) != 1:
            raise ImageError("--name is for one image: name that.")
        if unknown := sorted(set(given.images) - set(IMAGES)):
            raise ImageError(f"{', '.join(unknown)}: use {', '.join(IMAGES)}.")
        engine = given.engine or find_engine()
        for image in given.images:
            began = time.monotonic()
            name = given.name or f"{PREFIX}/{image}:{given.tag}"
            build(engine, image, given.base, name, update=given.update)
            size = image_size(engine, name)
            print(f"{name}: {size / 1e6:.0f} MB, {time.monotonic() - began:.0f} s, {write_sbom(engine, image, name)}")
    except ImageError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


def find_engine() -> str:
    """The engine that answers. Raises ImageError."""
    for name in ("docker", "podman"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0:
            return name
    raise ImageError("neither `docker info` nor `podman info` works: install one of them, or start Docker's daemon.")


def build(engine: str, image: str, base: str, name: str, *, update: bool = False) -> str:
    """Build an image and return its name. An update takes nothing that was fetched before."""
    version = yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"]
    options, fresh = [], ["--pull", "--no-cache"] if update else []
    if base == FROM_PACKAGES:
        # Another base has nothing in the engine's cache, and is in no registry.
        base, fresh = base_from_packages(engine, image, update=update), []
        # Nothing is fetched any more.
        options = ["--network", "none"]
    file = "magi" if image == "magi" else "llama-server"
    arguments = {"BASE": base, "VERSION": version} if file == "magi" else {"BASE": base, "VARIANT": variant_of(image)}
    command = [*(engine, "build", "--quiet", *options), "--file", str(ROOT / f"containers/{file}.Containerfile")]
    command += [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
    if engine == "podman":
        # The OCI format has no health checks.
        command += ["--format", "docker"]
    # Once more with the build of llama-server that is in it: everything else is in the engine's cache.
    run(*command, *fresh, "--tag", name, str(ROOT))
    labels = labels_of(image, version, base, server_build(engine, name))
    run(*command, *(word for key in labels for word in ("--label", f"{key}={labels[key]}")), "--tag", name, str(ROOT))
    return name


def variant_of(image: str) -> str:
    return "vulkan" if image.endswith("-vulkan") else "cpu"


def labels_of(image: str, version: str, base: str, server: str) -> dict[str, str]:
    """The labels of an image: OCI's, and the build of llama-server."""
    oci = {
        "title": image,
        "description": "llama.cpp's server"
        if image != "magi"
        else "magi.llama: controller, servers and console in one",
        "version": version,
        "revision": revision(),
        "licenses": "GPL-3.0-or-later",
        "base.name": base,
    }
    return {f"org.opencontainers.image.{key}": value for key, value in oci.items()} | {"magi.llama-server": server}


def revision() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def server_build(engine: str, name: str) -> str:
    """What the llama-server of an image says that it is, such as `version: 0.7.0 (build 11669)`."""
    command = [engine, "run", "--rm", "--network", "none", "--read-only", "--entrypoint", "/usr/bin/llama-server"]
    done = subprocess.run([*command, name, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"^version: .*$", done.stdout + done.stderr, re.MULTILINE)
    if done.returncode or not found:
        raise ImageError(f"llama-server of {name} does not start: {(done.stdout + done.stderr).strip()[-300:]}")
    return found.group()


def image_size(engine: str, name: str) -> int:
    return int(run(engine, "image", "inspect", "--format", "{{.Size}}", name))


def write_sbom(engine: str, image: str, name: str) -> Path:
    """Write the image's packages as SPDX, and return the path."""
    query = ["run", "--rm", "--network", "none", "--entrypoint", "/usr/bin/dpkg-query", name, "-W", "-f", sbom.FORMAT]
    packages = sbom.packages(run(engine, *query))
    if image == "magi":
        version = yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"]
        packages += [sbom.own("magi.llama", version), sbom.own("magi-llama-console", version)]
    digest = run(engine, "image", "inspect", "--format", "{{.Id}}", name).strip()
    path = CACHE / f"{image}.spdx.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sbom.document(name, digest, packages), indent=1) + "\n")
    return path.relative_to(ROOT)


# --- a base from packages alone ---------------------------------------------------------------------------------


def base_from_packages(engine: str, image: str, *, update: bool = False) -> str:
    """The name of an image with the packages of a list, made by mmdebstrap and kept until an update."""
    listed = f"llama-server-{variant_of(image)}" if image != "magi" else "magi"
    packages = (ROOT / f"containers/packages/{listed}.txt").read_text().split()
    arguments = recipe(packages)
    key = hashlib.sha256("\0".join(arguments).encode()).hexdigest()[:12]
    name, tarball = f"{PREFIX}/base-{listed}:{key}", CACHE / f"base-{listed}-{key}.tar"
    known = subprocess.run([engine, "image", "inspect", name], capture_output=True, check=False)
    if known.returncode == 0 and not update:
        return name
    if update or not tarball.exists():
        if not shutil.which("mmdebstrap") or os.geteuid() != 0:
            raise ImageError("--base packages needs mmdebstrap and root: apt-get install mmdebstrap, and use sudo.")
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = tarball.with_suffix(f".{os.getpid()}")
        try:
            run("mmdebstrap", *(str(unfinished) if word == "{target}" else word for word in arguments))
            unfinished.rename(tarball)
        finally:
            unfinished.unlink(missing_ok=True)
        for old in CACHE.glob(f"base-{listed}-*.tar"):
            if old != tarball:
                old.unlink()
    run(engine, "import", str(tarball), name)
    return name


def recipe(packages: Sequence[str]) -> list[str]:
    """The arguments of mmdebstrap: everything that a base depends on, but for the state of the mirror."""
    sys.path.insert(0, str(ROOT / "tests/nodes"))
    import nodes  # how this machine reaches its mirror

    return [
        *("--quiet", "--mode=root", "--variant=essential", "--format=tar"),
        *(f"--aptopt={option}" for option in nodes.apt_options()),
        *(f"--dpkgopt=path-exclude={path}" for path in EXCLUDED),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        f"--include={','.join(packages)}",
        *(SUITE, "{target}", f"deb [signed-by={nodes.KEYRING}] {nodes.mirror()} {SUITE} main"),
    ]


def run(*command: Any) -> str:
    """Run a command and return what it printed. Raises ImageError with its last lines."""
    # Docker's classic builder: BuildKit is a plug-in of its own, which not every installation has.
    environment = {**os.environ, "DOCKER_BUILDKIT": os.environ.get("DOCKER_BUILDKIT", "0")}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()[-15:]
        raise ImageError(f"{' '.join(map(str, command[:2]))} has failed:\n" + "\n".join(lines))
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
