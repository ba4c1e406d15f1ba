#!/usr/bin/env python3
# What systemd says of the units of a host, as JSON. systemd-analyze's own JSON came later than the oldest systemd here.
import glob
import json
import re
import subprocess

SHOWN = (
    "CPUWeight,LimitCORE,NRestarts,NUMAMask,NUMAPolicy,Result,UnitFileState,User,"
    "Restart,RestartPreventExitStatus,RestartUSec,RestartSteps,RestartMaxDelayUSec,StartLimitBurst,StartLimitIntervalUSec,"
    "KillMode,OOMPolicy,TimeoutStopUSec,NoNewPrivileges,ProtectSystem,MemoryMax"
)


def say(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode()


with open("/var/lib/magi-llama/servers.json", encoding="utf-8") as stream:
    planned = {server["name"]: server["memory_max_bytes"] for server in json.load(stream)["servers"]}
units = [path.split("/")[-1] for path in sorted(glob.glob("/etc/systemd/system/magi-llama-*.service"))]
names = [unit[len("magi-llama-") : -len(".service")] for unit in units]
blocks = say("systemctl", "show", "-p", SHOWN, *units).strip().split("\n\n")
scores = [say("systemd-analyze", "security", "--no-pager", unit) for unit in units]
shown = [dict(line.split("=", 1) for line in block.splitlines()) for block in blocks]
print(
    json.dumps(
        {
            "units": shown,
            "memory": [int(unit.pop("MemoryMax")) == planned[name] for unit, name in zip(shown, names)],
            "security": [float(re.search(r"Overall exposure level .*: ([0-9.]+)", score).group(1)) for score in scores],
            "verify": say("systemd-analyze", "verify", *units).splitlines(),
            "logged": [name for name in names if say("journalctl", "-q", "-n", "1", "-t", name).strip()],
            "target": [say("systemctl", f"is-{what}", "magi-llama.target").strip() for what in ("enabled", "active")],
        }
    )
)
