#!/usr/bin/env python3
"""Build four release archives in a folder from this host's own llama-server; print the role's settings for each.

older is Debian's build. fake-newer is the same with another version and --ctx-size renamed to --ctx-span, both changed
in copies of its libraries. fake-broken aborts as soon as it loads a model. fake-mute is healthy and never answers.
"""

import glob
import gzip
import hashlib
import io
import json
import os
import sys
import tarfile

LIBRARIES = {
    "libllama-common.so.0": (b"--ctx-size", b"--ctx-span"),
    "libllama.so.0": (b"\x000.7.0\x00", b"\x000.8.0\x00"),
}
LAUNCHER = """#!/bin/bash
# {name}
export LD_LIBRARY_PATH="$(dirname "$(readlink -f "$0")")"
{broken}exec -a "$0" /usr/bin/llama-server "$@"{mute}
"""
MUTE = " --api-key unknown-key"
BROKEN = 'case "$*" in *--model*) echo "GGML_ASSERT(fake) failed" >&2; kill -ABRT $$ ;; esac\n'


def changed(library):
    found = glob.glob(f"/usr/lib/*/{library}")[0]
    with open(found, "rb") as stream:
        content = stream.read()
    before, after = LIBRARIES[library]
    assert before in content, f"{found} holds no {before!r} any more"
    return content.replace(before, after)


def archive(name):
    newer = {library: changed(library) for library in LIBRARIES} if name == "fake-newer" else {}
    launcher = LAUNCHER.format(
        name=name, broken=BROKEN if name == "fake-broken" else "", mute=MUTE if name == "fake-mute" else ""
    )
    data = io.BytesIO()
    # No timestamps: the archive must be the same on every host, so that one checksum is valid for all.
    with gzip.GzipFile(fileobj=data, mode="wb", mtime=0) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for member, content in {**newer, "llama-server": launcher.encode()}.items():
            info = tarfile.TarInfo(f"llama-{name}/{member}")
            info.size, info.mode = len(content), 0o755
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def main(folder):
    os.makedirs(folder, exist_ok=True)
    settings = {}
    for name in ("older", "fake-newer", "fake-mute", "fake-broken"):
        data, path = archive(name), f"{folder}/{name}.tar.gz"
        with open(path, "wb") as stream:
            stream.write(data)
        sha256 = hashlib.sha256(data).hexdigest()
        settings[name] = {"runtime_release_url": f"file://{path}", "runtime_release_sha256": sha256}
    print(json.dumps(settings))


main(sys.argv[1])
