#!/usr/bin/env python3
# systemd's effective settings of a host's units, as JSON. The oldest systemd here cannot print JSON itself.
import glob
import json
import re
import subprocess

SHOWN = (
    "CPUWeight,LimitCORE,NRestarts,NUMAMask,NUMAPolicy,Result,UnitFileState,User,"
    "Restart,RestartPreventExitStatus,RestartUSec,RestartSteps,RestartMaxDelayUSec,StartLimitBurst,StartLimitIntervalUSec,"
    "KillMode,OOMPolicy,TimeoutStopUSec,NoNewPrivileges,ProtectSystem,MemoryMax"
)

# Those that differ between hosts or units. What a version does not know is not in its units' text.
BOUNDS = ("MemorySwapMax", "PrivateUsers", "SocketBindAllow", "SocketBindDeny", "TasksMax")


def query(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode()


def without_effect(unit, shown):
    """What the unit's text sets and systemd does not show; it shows tcp:8080 as tcp8080."""
    with open(f"/etc/systemd/system/{unit}", encoding="utf-8") as text:
        written = dict(
            line.strip().split("=", 1) for line in text if line.startswith(tuple(f"{key}=" for key in BOUNDS))
        )
    return [
        f"{unit}: {key}={value} in its text, {shown.get(key)} in effect"
        for key, value in written.items()
        if value.replace(":", "") != shown.get(key, "").replace(":", "")
    ] + [f"{unit}: its text has no {key}" for key in ("MemorySwapMax", "TasksMax") if key not in written]


with open("/var/lib/magi-llama/deployment.json", encoding="utf-8") as stream:
    planned = {server["name"]: server["memory_max_bytes"] for server in json.load(stream)["deployed"]["servers"]}
units = [path.split("/")[-1] for path in sorted(glob.glob("/etc/systemd/system/magi-llama-*.service"))]
names = [unit[len("magi-llama-") : -len(".service")] for unit in units]
blocks = query("systemctl", "show", "-p", ",".join((SHOWN, *BOUNDS)), *units).strip().split("\n\n")
scores = [query("systemd-analyze", "security", "--no-pager", unit) for unit in units]
shown = [dict(line.split("=", 1) for line in block.splitlines()) for block in blocks]
ineffective = [text for unit, known in zip(units, shown) for text in without_effect(unit, known)]
for unit in shown:
    for bound in BOUNDS:
        unit.pop(bound, None)
print(
    json.dumps(
        {
            "units": shown,
            "ineffective": ineffective,
            "memory": [int(unit.pop("MemoryMax")) == planned[name] for unit, name in zip(shown, names)],
            "security": [float(re.search(r"Overall exposure level .*: ([0-9.]+)", score).group(1)) for score in scores],
            "verify": query("systemd-analyze", "verify", *units).splitlines(),
            "logged": [name for name in names if query("journalctl", "-q", "-n", "1", "-t", name).strip()],
            "target": [query("systemctl", f"is-{what}", "magi-llama.target").strip() for what in ("enabled", "active")],
        }
    )
)
