#!/usr/bin/env python3
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start systemd nodes with their own addresses and SSH by key, in podman, from images built here."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import io
import ipaddress
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import checkout, reaper

STARTED = time.monotonic()
ROOT = checkout.ROOT
CACHE = ROOT / ".cache" / "nodes"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
LOCAL_CAS = Path("/usr/local/share/ca-certificates")
LABEL = "magi.llama"
# Prefix of this checkout's containers and networks, so that two checkouts can have beds with the same name.
PREFIX = f"magi-{checkout.name()}-"
WORKERS = 2  # images and nodes in parallel: overlaps waiting without overloading a shared machine of two cores
BOOT_TIMEOUT = 60.0

BASE_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "python3", "openssh-server"),
    *("iproute2", "ca-certificates", "procps"),
)


@dataclasses.dataclass(frozen=True)
class Kind:
    suite: str
    packages: tuple[str, ...]
    about: str


KINDS = {
    "forky": Kind("forky", ("llama.cpp-tools",), "Debian testing, llama.cpp as a package"),
    "podman": Kind("forky", ("llama.cpp-tools", "podman", "crun", "netavark"), "the same, with podman for containers"),
    "bookworm": Kind("bookworm", (), "bare Debian 12, Python 3.11"),
    "python39": Kind("bullseye", (), "bare Debian 11, Python 3.9, the oldest that is supported"),
}

# The machine's requirements: the file that proves each one, and the Debian package that provides it.
NEEDS = {
    "podman": "podman",
    "runc": "runc",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "ssh-keygen": "openssh-client",
    str(KEYRING): "debian-archive-keyring",
}

# Every capability except those that affect the machine itself: its clock, its kernel, its log.
CAPABILITIES = ("--cap-add", "ALL", "--cap-drop", "SYS_TIME,SYS_MODULE,SYS_RAWIO,SYSLOG")

# On a machine with hybrid cgroups podman passes cgroup v1 hierarchies, which today's systemd refuses. Unless mounts are
# shared, as they are on a machine, systemd's credentials do not reach the units.
INIT = "umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; mount --make-rshared /; exec /sbin/init"

SSHD = "HostKey /etc/ssh/ssh_host_ed25519_key\nPasswordAuthentication no\nUseDNS no\nMaxStartups 100\n"
WRITTEN_BY = "# Written by tests/nodes/nodes.py"
# These would hold apt's lock, or use a core, in the middle of a test.
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer")


class BedError(Exception):
    """A complete sentence for the user."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A host by its name, which is unique in its bed; its container's name is unique on the machine."""

    name: str
    kind: str
    address: str

    @property
    def container(self) -> str:
        return f"{PREFIX}{self.name.removeprefix('magi-')}"


# --- the machine ------------------------------------------------------------------------------------------------


def run(*argv: str, check: bool = True, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command and capture its output; an error includes it."""
    # When a node runs out of memory, podman's monitor creates a file named oom in its working directory.
    CACHE.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if argv[0] == "podman":
        # podman's daemons serve other beds too, so they must not end with the test run that started them.
        environment.pop(reaper.MARK, None)
    done = subprocess.run(argv, input=stdin, capture_output=True, check=False, cwd=CACHE, env=environment)
    out, err = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
    if check and done.returncode:
        tail = "\n".join((out + err).strip().splitlines()[-15:])
        raise BedError(f"`{' '.join(argv[:3])} …` exited with code {done.returncode}:\n{tail}")
    return subprocess.CompletedProcess(argv, done.returncode, out, err)


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:5.1f} s] {text}", flush=True)


def present(need: str) -> bool:
    return os.path.exists(need) if need.startswith("/") else shutil.which(need) is not None


def missing_packages() -> list[str]:
    return [package for need, package in NEEDS.items() if not present(need)]


def is_debian() -> bool:
    try:
        return re.search(r"^ID=\"?debian\"?$", Path("/etc/os-release").read_text(), re.MULTILINE) is not None
    except OSError:
        return False


def lacks() -> list[str]:
    """The requirements that this machine does not meet, each with the remedy."""
    if os.geteuid() != 0:
        return ["root: systemd nodes with their own addresses need it; run this with sudo"]
    if not is_debian():
        return ["Debian: the images come from the machine's own apt sources; run this on a Debian machine"]
    found = []
    filesystems = Path("/proc/filesystems").read_text().split()
    found += [f"kernel support for {name}" for name in ("cgroup2", "overlay") if name not in filesystems]
    effective = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    bits = int(effective.group(1), 16) if effective else 0
    for name, bit in (("CAP_SYS_ADMIN", 21), ("CAP_NET_ADMIN", 12)):
        if not bits >> bit & 1:
            found.append(f"{name}: root lacks it here, as in a container without --privileged")
    if missing_packages():
        found.append(f"packages: apt-get install {' '.join(missing_packages())} crun-")
    else:
        backend = run("podman", "info", "--format", "{{.Host.NetworkBackend}}", check=False)
        if backend.returncode:
            found.append(f"a working podman: `podman info` reports {backend.stderr.strip().splitlines()[-1:]}")
        elif backend.stdout.strip() != "netavark":
            found.append('netavark: set network_backend = "netavark" in /etc/containers/containers.conf')
    try:
        mirror()
    except BedError as error:
        found.append(str(error))
    return found


def prepare() -> None:
    """Install missing packages if possible; raise BedError with what is missing otherwise."""
    wanted = missing_packages()
    if wanted and is_debian():
        say(f"installing {' '.join(wanted)}")
        os.environ["DEBIAN_FRONTEND"] = "noninteractive"
        run("apt-get", "update", "-q")
        # crun, which podman recommends, refuses hybrid cgroups.
        run("apt-get", "install", "-y", "-q", "--no-install-recommends", *wanted, "crun-")
    found = lacks()
    if found:
        raise BedError("this machine cannot run nodes; it lacks\n" + "\n".join(f"  - {line}" for line in found))


def mirror() -> str:
    """The Debian mirror that the machine's own apt uses."""
    fields = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(LABEL)"
    listed = run("apt-get", "indextargets", "--format", fields, "Created-By: Packages").stdout
    for line in listed.splitlines():
        uri, release, component, label = line.split("|")
        # The label is known once apt has read the mirror's lists.
        if component == "main" and not set("-/") & set(release) and label in ("Debian", "$(LABEL)"):
            return uri.rstrip("/")
    raise BedError("a Debian mirror: the apt sources have none with the component main")


def apt_options() -> list[str]:
    """The machine's apt settings for the mirror, passed on to the nodes. Signatures are still checked."""
    options = ['Acquire::Check-Valid-Until "false"']  # a mirror may serve an archived or frozen suite
    for line in run("apt-config", "dump").stdout.splitlines():
        if re.match(r"Acquire::(https?::Proxy|Check-Date)\b", line):
            options.append(line.rstrip(";"))
    for scheme in ("http", "https"):
        proxy = os.environ.get(f"{scheme}_proxy")
        if proxy and not any(option.startswith(f"Acquire::{scheme}::Proxy") for option in options):
            options.append(f'Acquire::{scheme}::Proxy "{proxy}"')
    return options


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Only one program at a time changes beds and images on this machine, from any checkout."""
    with open("/run/lock/magi-nodes.lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another nodes.py on this machine to end")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def in_parallel(function: Any, items: list[Any]) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(function, items))


# --- images -----------------------------------------------------------------------------------------------------


def recipe(kind: str) -> list[str]:
    """The arguments of mmdebstrap without the target: everything that the image depends on."""
    spec = KINDS[kind]
    hooks = [
        'rm -f "$1"/etc/ssh/ssh_host_*',  # each node gets its own key
        f"printf '%s' '{SSHD}' > \"$1/etc/ssh/sshd_config.d/nodes.conf\"",
        *(f'ln -sf /dev/null "$1/etc/systemd/system/{unit}"' for unit in MASKED),
    ]
    for path in sorted(LOCAL_CAS.glob("*.crt")):
        hooks.append(f"copy-in {path} {LOCAL_CAS}")
        hooks.append(f": {hashlib.sha256(path.read_bytes()).hexdigest()}")  # so that a new certificate rebuilds
    if LOCAL_CAS.is_dir() and any(LOCAL_CAS.glob("*.crt")):
        hooks.append('chroot "$1" update-ca-certificates')
    return [
        *("--quiet", "--mode=root", "--variant=minbase", "--format=tar"),
        *(f"--aptopt={option}" for option in apt_options()),
        *("--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"),
        f"--include={','.join((*BASE_PACKAGES, *spec.packages))}",
        *(f"--customize-hook={hook}" for hook in hooks),
        *(spec.suite, "{target}", f"deb [signed-by={KEYRING}] {mirror()} {spec.suite} main"),
    ]


def key_of(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def tarballs() -> Path:
    return CACHE / "images"


def ensure_image(kind: str) -> str:
    """Return the name of the kind's image in podman; import it from the cache or build it if it is missing."""
    arguments = recipe(kind)
    key = key_of(arguments)
    image, tarball = f"localhost/magi-node-{kind}:{key}", tarballs() / f"{kind}-{key}.tar"
    if run("podman", "image", "exists", image, check=False).returncode == 0:
        return image
    if not tarball.exists():
        tarballs().mkdir(parents=True, exist_ok=True)
        say(f"image {kind}: building from Debian {KINDS[kind].suite}")
        unfinished = tarball.with_suffix(".unfinished")
        try:
            run("mmdebstrap", *(str(unfinished) if part == "{target}" else part for part in arguments))
        except BedError as error:
            unfinished.unlink(missing_ok=True)
            raise BedError(f"The image {kind} cannot be built. {error}") from None
        unfinished.rename(tarball)
    say(f"image {kind}: importing into podman")
    labelled = ("--change", f"LABEL {LABEL}.kind={kind} {LABEL}.checkout={json.dumps(str(ROOT))}")
    run("podman", "import", "--quiet", *labelled, str(tarball), image)
    forget_images(kind, keep=key)
    return image


def forget_images(kind: str | None = None, keep: str = "") -> None:
    """Remove our images, of one kind or of all, except the one to keep and those that nodes use."""
    for tarball in tarballs().glob(f"{kind or '*'}-*"):
        if not keep or f"-{keep}." not in tarball.name:
            tarball.unlink()
    shown = run("podman", "images", "--filter", f"label={LABEL}.kind", "--format", "json").stdout
    for image in json.loads(shown or "[]"):
        owner = labels_of(image).get(f"{LABEL}.checkout", str(ROOT))
        # Images of other existing checkouts are kept.
        if owner != str(ROOT) and Path(owner).exists():
            continue
        for name in image.get("Names") or []:
            if (kind is None or f"magi-node-{kind}:" in name) and not (keep and name.endswith(f":{keep}")):
                run("podman", "rmi", name, check=False)


# --- beds -------------------------------------------------------------------------------------------------------


def listed(what: str, *filters: str) -> list[dict[str, Any]]:
    """Podman's list of containers (`ps`) or networks (`network`) with the given labels."""
    argv = ["podman", "ps", "--all"] if what == "ps" else ["podman", "network", "ls"]
    for condition in filters:
        argv += ["--filter", f"label={LABEL}.{condition}"]
    return list(json.loads(run(*argv, "--format", "json").stdout or "[]"))


def labels_of(entry: dict[str, Any]) -> dict[str, str]:
    return entry.get("Labels") or entry.get("labels") or {}


def name_of(entry: dict[str, Any]) -> str:
    return str(entry["Names"][0] if "Names" in entry else entry["name"])


def remove_orphans() -> None:
    """Remove the beds of deleted checkouts."""
    for what in ("ps", "network"):
        for entry in listed(what, "checkout"):
            owner = labels_of(entry)[f"{LABEL}.checkout"]
            if not Path(owner).exists():
                say(f"removing {name_of(entry)}, left by the deleted checkout {owner}")
                remove_entry(what, name_of(entry))


def own(what: str, bed: str) -> list[dict[str, Any]]:
    """This checkout's containers or networks of one bed."""
    return listed(what, f"bed={bed}", f"checkout={ROOT}")


def remove_entry(what: str, *names: str) -> None:
    if what == "ps":
        run("podman", "rm", "--force", "--volumes", "--time", "0", *names)
    else:
        run("podman", "network", "rm", "--force", *names)


def remove(bed: str) -> int:
    """Remove a bed's containers, volumes and network; returns the number of removed nodes."""
    containers = [name_of(entry) for entry in own("ps", bed)]
    if containers:
        remove_entry("ps", *containers)
    for entry in own("network", bed):
        remove_entry("network", name_of(entry))
    return len(containers)


def ensure_network(bed: str) -> tuple[ipaddress.IPv4Network, str]:
    """The bed's network and the machine's own address in it."""
    name = f"{PREFIX}{bed}"
    if run("podman", "network", "exists", name, check=False).returncode:
        run("podman", "network", "create", *labels(bed), name)
    subnet = json.loads(run("podman", "network", "inspect", name).stdout)[0]["subnets"][0]
    return ipaddress.IPv4Network(subnet["subnet"]), subnet["gateway"]


def labels(bed: str) -> list[str]:
    return ["--label", f"{LABEL}.bed={bed}", "--label", f"{LABEL}.checkout={ROOT}"]


def make_key(path: Path, comment: str) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path))


def archive(files: dict[str, tuple[Path, int]]) -> bytes:
    """A tar of files owned by root, which podman unpacks into a node before its first boot."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folder = tarfile.TarInfo("root/.ssh")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o700
        tar.addfile(folder)
        for target, (source, mode) in files.items():
            data = source.read_bytes()
            entry = tarfile.TarInfo(target)
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def limit(which: int, most: int) -> str:
    """The machine's own hard limit: without CAP_SYS_RESOURCE root cannot exceed it."""
    hard = resource.getrlimit(which)[1]
    value = most if hard == resource.RLIM_INFINITY else min(hard, most)
    return f"{value}:{value}"


def create_arguments(bed: str, node: Node, image: str, models: Path | None, memory: str | None) -> list[str]:
    # A fixed MAC address: with a new one the machine would use the old ARP entry for half a minute.
    mac = "02:42:" + ":".join(f"{byte:02x}" for byte in ipaddress.IPv4Address(node.address).packed)
    return [
        *("--name", node.container, "--hostname", node.name, "--network", f"{PREFIX}{bed}"),
        *("--ip", node.address, "--mac-address", mac),
        *("--label", f"{LABEL}.kind={node.kind}", *labels(bed)),
        *("--systemd=always", "--cgroupns=private", *CAPABILITIES),
        *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
        *("--ulimit", f"nofile={limit(resource.RLIMIT_NOFILE, 524288)}"),
        *("--ulimit", f"nproc={limit(resource.RLIMIT_NPROC, 32768)}"),
        "--restart=always",  # so that `systemctl reboot` in a node boots it again
        *(("--volume", f"{models}:/models:ro") if models else ()),
        *(("--memory", memory, "--memory-swap", memory) if memory else ()),
        *(image, "sh", "-c", INIT),
    ]


def ensure_node(bed: str, node: Node, arguments: list[str]) -> str:
    """Create, replace or start one node and wait until it has booted; returns what was done."""
    folder = CACHE / bed
    keys = {
        "etc/ssh/ssh_host_ed25519_key": (folder / "host_keys" / node.name, 0o600),
        "etc/ssh/ssh_host_ed25519_key.pub": (folder / "host_keys" / f"{node.name}.pub", 0o644),
        "root/.ssh/authorized_keys": (folder / "id_ed25519.pub", 0o600),
    }
    # New keys require a new node: the old node would refuse the connection.
    spec = key_of([*arguments, *(path.read_text() for path, _ in keys.values())])
    wanted = f'{{{{.State.Status}}}} {{{{index .Config.Labels "{LABEL}.spec"}}}}'
    inspected = run("podman", "inspect", "--format", wanted, node.container, check=False)
    status, _, actual = inspected.stdout.strip().partition(" ")
    did = "kept"
    # The state `created` means that an `up` was interrupted, perhaps before the keys were copied.
    if inspected.returncode or actual != spec or status == "created":
        if not inspected.returncode:
            remove_entry("ps", node.container)
        run("podman", "--runtime", "runc", "create", "--label", f"{LABEL}.spec={spec}", *arguments)
        run("podman", "cp", "-", f"{node.container}:/", stdin=archive(keys))
        run("podman", "start", node.container)
        did = "created"
    elif status == "paused":
        run("podman", "unpause", node.container)
        did = "unpaused"
    elif status != "running":
        run("podman", "start", node.container)
        did = "started"
    state = wait_until_booted(node)
    if did == "created" and state != "running":
        failed = run("podman", "exec", node.container, "systemctl", "--failed", "--plain", "--no-legend").stdout
        raise BedError(f"{node.name} has booted with failed units:\n{failed}")
    say(f"{node.name}: {did}, {node.kind}, {node.address}, {state}")
    return did


def wait_until_booted(node: Node) -> str:
    """Wait until systemd has finished its jobs and sshd answers; returns systemd's state, `running` or `degraded`."""
    deadline, state = time.monotonic() + BOOT_TIMEOUT, "offline"
    while time.monotonic() < deadline:
        # Without --wait: an older systemd may never return from it near the end of a boot.
        asked = run("podman", "exec", node.container, "systemctl", "is-system-running", check=False)
        state = asked.stdout.strip() or asked.stderr.strip()
        if state in ("running", "degraded") and sshd_greets(node.address):
            return state
        time.sleep(0.1)
    log = run("podman", "logs", "--tail", "10", node.container, check=False)
    raise BedError(
        f"{node.name} has not booted within {BOOT_TIMEOUT:.0f} s, systemd's state: {state}\n{log.stdout}{log.stderr}"
    )


def sshd_greets(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def render(value: dict[str, Any], indent: str = "") -> str:
    """YAML of nested dicts and strings: sufficient for an inventory, without a library."""
    lines = []
    for key, item in value.items():
        if isinstance(item, dict):
            lines.append(f"{indent}{key}:{'' if item else ' {}'}")
            lines += [render(item, indent + "  ")] if item else []
        else:
            lines.append(f"{indent}{key}: {json.dumps(item)}")
    return "\n".join(lines)


def inventory(bed: str, nodes: list[Node], gateway: str) -> str:
    folder = CACHE / bed
    shared = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(folder / "id_ed25519"),
        "ansible_ssh_common_args": f"-o 'UserKnownHostsFile=\"{folder / 'known_hosts'}\"' -o StrictHostKeyChecking=yes",
        "ansible_python_interpreter": "/usr/bin/python3",
        "nodes_bed": bed,
        "nodes_controller_address": gateway,
    }
    kinds = dict.fromkeys(node.kind for node in nodes)
    hosts = {n: {"ansible_host": n.address, "nodes_container": n.container} for n in nodes}
    groups = {kind: {"hosts": {n.name: hosts[n] for n in nodes if n.kind == kind}} for kind in kinds}
    return f"{WRITTEN_BY}\n---\n{render({'all': {'vars': shared, 'children': groups}})}\n"


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def place_inventory(bed: str, chosen: Path | None) -> Path:
    """The path of the bed's inventory. A path outside the cache is stored there, so that `down` finds it."""
    note, usual = CACHE / bed / "inventory", CACHE / bed / "hosts.yml"
    before = Path(note.read_text()) if note.exists() else usual
    place = chosen or usual
    if place.exists() and not place.read_text().startswith(WRITTEN_BY):
        raise BedError(f"{place} was not written by nodes.py and would be overwritten. Choose another --inventory.")
    if place != before:
        before.unlink(missing_ok=True)
    write_if_changed(note, str(place))
    return place


# --- commands ---------------------------------------------------------------------------------------------------


def up(bed: str, kinds: list[str], models: Path | None, memory: str | None, chosen: Path | None) -> None:
    remove_orphans()
    place = place_inventory(bed, chosen)
    images = dict(zip(dict.fromkeys(kinds), in_parallel(ensure_image, list(dict.fromkeys(kinds)))))
    network, gateway = ensure_network(bed)
    # Addresses start at .11 and depend on the node's number, so a restart or a second `up` keeps them.
    nodes = [Node(f"magi-{bed}-{n}", kind, str(network[10 + n])) for n, kind in enumerate(kinds, 1)]
    make_key(CACHE / bed / "id_ed25519", f"magi-{bed}")
    wanted = {node.container for node in nodes}
    surplus = [name_of(entry) for entry in own("ps", bed) if name_of(entry) not in wanted]
    if surplus:
        remove_entry("ps", *surplus)
    known = []
    for node in nodes:
        host_key = CACHE / bed / "host_keys" / node.name
        make_key(host_key, node.name)
        known.append(f"{node.address} {' '.join(host_key.with_suffix('.pub').read_text().split()[:2])}\n")
    write_if_changed(CACHE / bed / "known_hosts", "".join(known))

    def one(node: Node) -> str:
        return ensure_node(bed, node, create_arguments(bed, node, images[node.kind], models, memory))

    done = in_parallel(one, nodes)
    write_if_changed(place, inventory(bed, nodes, gateway))
    changed = len(surplus) + sum(did != "kept" for did in done)
    say(f"bed {bed}: {len(nodes)} nodes, changed={changed}, inventory {place}")


def down(bed: str) -> None:
    remove_orphans()
    removed = remove(bed)
    place_inventory(bed, None)  # removes one outside the cache
    shutil.rmtree(CACHE / bed)
    say(f"bed {bed}: changed={removed}, removed")


def restart(bed: str, names: list[str]) -> None:
    entries = {f"magi-{name_of(entry).removeprefix(PREFIX)}": entry for entry in own("ps", bed)}
    unknown = sorted(set(names) - set(entries))
    if unknown or not entries:
        raise BedError(f"The bed {bed} has no node {', '.join(unknown)}; it has: {', '.join(entries) or 'none'}.")

    def one(name: str) -> None:
        container = name_of(entries[name])
        run("podman", "restart", "--time", "10", container)
        # Read now: a node that was stopped had none.
        template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        address = run("podman", "inspect", "--format", template, container).stdout.strip()
        state = wait_until_booted(Node(name, labels_of(entries[name])[f"{LABEL}.kind"], address))
        say(f"{name}: restarted, {address}, {state}")

    in_parallel(one, names or list(entries))


def own_beds() -> list[str]:
    """The beds of this checkout, including those of which only the folder or the network is left."""
    entries = listed("ps", f"checkout={ROOT}") + listed("network", f"checkout={ROOT}")
    folders = [path.name for path in CACHE.glob("*") if path.is_dir() and path != tarballs()]
    return sorted({labels_of(entry)[f"{LABEL}.bed"] for entry in entries} | set(folders))


def bed_name(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,29}", text) or text == tarballs().name:
        raise argparse.ArgumentTypeError(f"{text}: lower-case letters, digits and dashes, and not `{tarballs().name}`")
    return text


def kind_count(text: str) -> list[str]:
    kind, _, count = text.partition("=")
    if kind not in KINDS or not re.fullmatch(r"[0-9]{1,3}|", count):
        raise argparse.ArgumentTypeError(f"{text}: KIND or KIND=COUNT, with KIND one of {', '.join(KINDS)}")
    return [kind] * int(count or 1)


def existing_folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return Path(text).resolve()


def new_file(text: str) -> Path:
    return Path(text).absolute()


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        description=__doc__, epilog="Kinds: " + "; ".join(f"{k}: {v.about}" for k, v in KINDS.items())
    )
    commands = top.add_subparsers(dest="command", required=True)
    bed = argparse.ArgumentParser(add_help=False)
    bed.add_argument("--name", type=bed_name, default="nodes", help="the bed's name (default: %(default)s)")
    one = commands.add_parser("up", parents=[bed], help="start a bed, or update an existing one")
    one.add_argument("kinds", nargs="*", type=kind_count, metavar="KIND[=COUNT]", help="default: one of each kind")
    one.add_argument("--models", type=existing_folder, help="a folder to mount read-only at /models")
    one.add_argument("--memory", metavar="SIZE", help="a hard limit for each node, 512m for example (default: none)")
    one.add_argument("--inventory", type=new_file, help="path of the inventory (default: .cache/nodes/NAME/hosts.yml)")
    one = commands.add_parser("down", parents=[bed], help="remove a bed and everything that belongs to it")
    one.add_argument("--all", action="store_true", help="every bed of this checkout")
    one.add_argument("--images", action="store_true", help="the cached images too")
    one = commands.add_parser("restart", parents=[bed], help="restart nodes and wait until they have booted")
    one.add_argument("nodes", nargs="*", metavar="NODE", help="default: all nodes of the bed")
    commands.add_parser("image", help="build the images that are missing or out of date")
    commands.add_parser("check", help="list what this machine lacks to run nodes; changes nothing")
    return top


def main() -> int:
    options = parser().parse_args()
    try:
        if options.command == "check":
            found = lacks()
            print("\n".join(f"lacks {line}" for line in found) or "this machine can run nodes")
            return 1 if found else 0
        if options.command == "down" and shutil.which("podman") is None:
            return 0  # without podman there are no nodes to remove
        if os.geteuid() != 0:
            raise BedError(f"this machine cannot run nodes; it lacks {lacks()[0]}")
        with lock():
            if options.command == "down":
                for bed in own_beds() if options.all else [options.name]:
                    down(bed)
                if options.images:
                    forget_images()
                    shutil.rmtree(tarballs(), ignore_errors=True)
                return 0
            prepare()
            if options.command == "up":
                kinds = [kind for group in options.kinds for kind in group] or list(KINDS)
                up(options.name, kinds, options.models, options.memory, options.inventory)
            elif options.command == "restart":
                restart(options.name, options.nodes)
            else:
                in_parallel(ensure_image, list(KINDS))
    except BedError as error:
        print(f"nodes.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
