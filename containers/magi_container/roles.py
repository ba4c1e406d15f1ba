# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each container does: magi (models, controller and console), gateway (HAProxy), redis."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from . import settings as places
from .children import Child, run_until, stop_requested, wait_for
from .files import ensure_secret, write
from .health import DEPLOYED
from .logs import LogFollower, show
from .network import accepts, own_address
from .settings import Settings, SettingsError, inventory, redis_configuration
from .sharing import daemon_configuration, make_keys
from .stopping import end_gateway, end_servers

GATEWAY_SECONDS = 60.0
DEVELOPMENT_SECONDS = 0.5
CONSOLE_SOURCES = Path("/usr/lib/python3/dist-packages/magi_llama_console")
REDIS_PASSWORD = places.RUN / "redis.password"
PLAYBOOK = "/usr/bin/ansible-playbook"
SUPERVISORD = "/usr/bin/supervisord"
CONSOLE = [sys.executable, "-m", "magi_llama_console.cli"]


def run_magi(settings: Settings, environment: Mapping[str, str]) -> int:
    """Run the playbooks once and the console until the container is stopped; then end the servers."""
    stop = stop_requested()
    DEPLOYED.unlink(missing_ok=True)
    logs = LogFollower(places.STATE / "log")
    logs.start()
    own = without_secrets(environment)
    address = reachable_address(settings.gateway, GATEWAY_SECONDS, stop) if settings.gateway else "127.0.0.1"
    if stop.is_set():
        return 0
    write(places.INVENTORY, json.dumps(inventory(settings, address), indent=2) + "\n")
    console = Child("console", console_command(settings, own), own)
    if settings.redis_url:
        # It shows the run as it goes: the events of both are in one Redis.
        console.start()
    code = deploy(settings, own, stop)
    if code is not None:
        write(DEPLOYED, f"{code}\n")
        if code:
            show(
                f"the playbooks have failed with exit status {code}: correct what they name, and restart the container"
            )
        if not settings.redis_url:
            console.start()
        wait_for_stop(settings, console, stop)
    console.end()
    end_servers(places.STATE, settings.stop_seconds)
    logs.end()
    return 0


def reachable_address(gateway: str, seconds: float, stop: threading.Event) -> str:
    """This container's address for the gateway's container, which may have no name yet; "" if it is stopped meanwhile.

    Raises SettingsError: with any other address the gateway would send requests elsewhere, such as to itself.
    """
    found: list[str] = []

    def is_known() -> bool:
        with contextlib.suppress(OSError):
            found.append(own_address(gateway))
        return bool(found)

    if not wait_for(is_known, seconds, stop) and not stop.is_set():
        raise SettingsError(
            f"MAGI_GATEWAY={gateway}: there is no such name after {seconds:g} s. Start the gateway's container, in "
            "a network of both."
        )
    return found[0] if found else ""


def wait_for_stop(settings: Settings, console: Child, stop: threading.Event) -> None:
    """Wait until the container is stopped; meanwhile start the console again when its sources change (development)."""
    if not settings.is_development:
        stop.wait()
        return
    sources = state_of_sources(CONSOLE_SOURCES)
    while not stop.wait(DEVELOPMENT_SECONDS):
        if (changed := state_of_sources(CONSOLE_SOURCES)) != sources:
            sources = changed
            show("the console's sources have changed: it is started again")
            console.restart()


def state_of_sources(folder: Path) -> dict[str, int]:
    """When each Python file below a folder was changed, in nanoseconds."""
    found: dict[str, int] = {}
    for path in folder.rglob("*.py"):
        with contextlib.suppress(OSError):
            found[str(path)] = path.stat().st_mtime_ns
    return found


def console_command(settings: Settings, environment: Mapping[str, str]) -> list[str]:
    """The command of the console. Writes the files with secrets that it needs."""
    ensure_secret(places.GATEWAY_KEY)
    tokens = places.DATA / "console/tokens.json"
    if not (places.CONSOLE_TOKEN.exists() and tokens.exists()):
        command = [*CONSOLE, "token", "local", "--role", "operate", "--tokens", str(tokens)]
        made = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(environment))
        write(places.CONSOLE_TOKEN, made.stdout, 0o600)
    command = [*CONSOLE, "--inventory", str(places.INVENTORY), "--data", str(places.DATA / "console")]
    # Who reaches the container's port is decided by where it is published.
    command += ["--listen", f"0.0.0.0:{settings.console_port}", "--allow-plain", "--ansible-bin", "/usr/bin"]
    if settings.redis_url:
        write(REDIS_PASSWORD, settings.redis_password + "\n", 0o600)
        command += ["--redis", settings.redis_url, "--redis-password-file", str(REDIS_PASSWORD)]
    return command


def deploy(settings: Settings, environment: Mapping[str, str], stop: threading.Event) -> int | None:
    """Run the playbooks and return their exit status; None if the container is stopped meanwhile."""
    playbooks = ["magi.llama.site"]
    if settings.gateway:
        known = places.CONTROL / "known_hosts"
        if (
            not wait_for(lambda: known.exists() and accepts(settings.gateway, places.SSH_PORT), GATEWAY_SECONDS, stop)
            and not stop.is_set()
        ):
            show(f"{settings.gateway} does not accept connections: is the container of the gateway running?")
        playbooks.append("magi.llama.gateway")
    return run_until([PLAYBOOK, "-i", str(places.INVENTORY), *playbooks], {**environment, **events(settings)}, stop)


def events(settings: Settings) -> dict[str, str]:
    """The environment with which a run reports to the Redis that the console reads."""
    if not settings.redis_url:
        return {}
    return {
        "MAGI_EVENTS": settings.redis_url,
        "MAGI_EVENTS_PASSWORD_FILE": str(REDIS_PASSWORD),
        "ANSIBLE_CALLBACKS_ENABLED": "magi.llama.events",
    }


def run_gateway(settings: Settings, environment: Mapping[str, str]) -> int:
    """Accept the playbooks of magi, and run the HAProxy that they have set up, until the container is stopped."""
    stop = stop_requested()
    logs = LogFollower(places.GATEWAY_STATE / "log")
    logs.start()
    make_keys(places.CONTROL)
    configuration = places.RUN / "sshd.conf"
    address = reachable_address(settings.gateway, GATEWAY_SECONDS, stop) if settings.gateway else ""
    if stop.is_set():
        return 0
    write(configuration, daemon_configuration(places.CONTROL, address))
    resume_gateway(places.GATEWAY_STATE)
    daemon = Child("sshd", ["/usr/sbin/sshd", "-D", "-e", "-f", str(configuration)], without_secrets(environment))
    daemon.start()
    stop.wait()
    daemon.end()
    end_gateway(places.GATEWAY_STATE, settings.stop_seconds)
    logs.end()
    return 0


def resume_gateway(state: Path) -> None:
    """Start the HAProxy that earlier playbooks have set up: supervisor starts nothing by itself."""
    if not (state / "supervisor/conf.d/gateway.conf").exists() or not (state / "config").exists():
        return
    from ansible_collections.magi.llama.plugins.module_utils._services.supervisor_driver import SupervisorDriver

    for fault in SupervisorDriver(str(state), SUPERVISORD).start(["gateway"]).values():
        show(f"HAProxy does not start: {fault}")


def run_redis(settings: Settings, environment: Mapping[str, str]) -> int:
    """Become redis-server."""
    configuration = places.RUN / "redis.conf"
    write(configuration, redis_configuration(settings.redis_password), 0o600)
    os.execve("/usr/bin/redis-server", ["redis-server", str(configuration)], without_secrets(environment))


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of the programs: secrets reach them in files."""
    return {name: value for name, value in environment.items() if name != "REDIS_PASSWORD"}


ROLES = {"magi": run_magi, "gateway": run_gateway, "redis": run_redis}
