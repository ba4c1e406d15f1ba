# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the containers read from their environment, and the inventory that follows from it; pure but for read_secret.

An empty variable counts as one that is not set, which is how Compose passes on what .env does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Places in the containers. /data and /config are volumes, /control is what magi and gateway share.
DATA, CONFIG, CONTROL, RUN = Path("/data"), Path("/config"), Path("/control"), Path("/run/magi")
INVENTORY = CONFIG / "hosts.yml"
STATE, GATEWAY_STATE = DATA / "state", DATA / "gateway"
CONSOLE_TOKEN, GATEWAY_KEY = DATA / "console.token", DATA / "gateway.key"
SSH_PORT = 2222
# The user of the images.
USER = "magi"
MAX_PORT = 65535
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class SettingsError(Exception):
    """A variable that cannot be used. The text names it, its value and the fix."""


@dataclass(frozen=True)
class Settings:
    """The environment of a container, checked."""

    # Variables of the collection for all hosts.
    variables: Mapping[str, Any]
    # Name of the gateway's container in a network that it shares with this one; empty without a gateway.
    gateway: str = ""
    gateway_port: int = 8070
    console_port: int = 8000
    redis_url: str = ""
    redis_password: str = ""
    # Seconds that servers have to finish their requests when the container is stopped.
    stop_seconds: int = 30
    # Whether the API is started again when its sources change.
    is_development: bool = False


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings of an environment. Raises SettingsError, also for a file with a secret that cannot be read."""
    found = {name: value.strip() for name, value in environment.items() if value.strip()}
    return Settings(
        variables=variables_of(found),
        gateway=found.get("MAGI_GATEWAY", ""),
        gateway_port=number(found, "MAGI_GATEWAY_PORT", 8070, MAX_PORT),
        console_port=number(found, "MAGI_CONSOLE_PORT", 8000, MAX_PORT),
        redis_url=found.get("MAGI_REDIS_URL", ""),
        redis_password=read_secret(found, "REDIS_PASSWORD"),
        stop_seconds=number(found, "MAGI_STOP_SECONDS", 30, 3600),
        is_development=boolean(found, "MAGI_DEVELOPMENT") or False,
    )


def variables_of(found: Mapping[str, str]) -> dict[str, Any]:
    """The collection's variables that these variables of the environment set, with what a container needs instead."""
    binary = found.get("LLAMA_SERVER_PATH", "/usr/bin/llama-server")
    first, last = (
        number(found, name, default, MAX_PORT)
        for name, default in (("MODEL_PORT_RANGE_START", 8080), ("MODEL_PORT_RANGE_END", 8099))
    )
    if last < first:
        raise SettingsError(
            f"MODEL_PORT_RANGE_END={last} is below MODEL_PORT_RANGE_START={first}: set the last port of the range."
        )
    given: dict[str, Any] = {
        "runtime_install_method": "existing",
        "runtime_binary_path": binary,
        "registry_scan_paths": [path for path in found.get("MODEL_SCAN_PATH", "/models").split(":") if path],
        "registry_path": found.get("REGISTRY_PATH", str(STATE / "registry.json")),
        "servers_port_range_start": first,
        "servers_port_range_end": last,
    }
    if profile := found.get("MAGI_PROFILE"):
        given["profile"] = profile
    if seconds := number(found, "MODEL_MAX_STARTUP_TIME", 0, 86400):
        given["servers_max_startup_time"] = seconds
    if (concurrent := boolean(found, "MODEL_CONCURRENT_STARTS")) is not None:
        given["servers_concurrent_starts"] = concurrent
    return given


def number(found: Mapping[str, str], name: str, default: int, most: int) -> int:
    """The whole number of a variable, from 1. Raises SettingsError."""
    text = found.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 9 and (text == str(default) or 1 <= int(text) <= most)):
        raise SettingsError(f"{name}={text:.40}: set it to a whole number from 1 to {most}.")
    return int(text)


def boolean(found: Mapping[str, str], name: str) -> bool | None:
    """Whether a variable is true; None if it is not set. Raises SettingsError."""
    text = found.get(name, "").lower()
    if text not in ("", *TRUE, *FALSE):
        raise SettingsError(f"{name}={text:.40}: set it to true or false.")
    return None if not text else text in TRUE


def read_secret(found: Mapping[str, str], name: str) -> str:
    """A secret from the file that NAME_FILE names, or else from NAME. Raises SettingsError."""
    path = found.get(f"{name}_FILE")
    if path is None:
        return found.get(name, "")
    try:
        secret = Path(path).read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name}_FILE={path}: cannot be read ({error}); run make docker-setup.") from error
    if not secret:
        raise SettingsError(f"{name}_FILE={path}: the file is empty; run make docker-setup.")
    return secret


def inventory(settings: Settings, address: str) -> dict[str, Any]:
    """The inventory of a container: itself, at an address for the gateway, and the gateway's container.

    It is one for a fleet, except that the models are here: the gateway is reached by SSH, as any other host.
    """
    common: dict[str, Any] = {
        "ansible_python_interpreter": "/usr/bin/python3",
        "runtime_cache_path": str(STATE / "runtime.json"),
        "servers_state_dir": str(STATE),
        "servers_service_manager": "supervisor",
        "servers_user": USER,
        # The container's own addresses: who reaches them is decided by the networks and published ports.
        "servers_host": "0.0.0.0",
        "servers_api_key_file": "auto",
        **settings.variables,
    }
    here = {"ansible_connection": "local", "servers_address": address}
    children: dict[str, Any] = {"models": {"hosts": {"magi": here}}}
    if settings.gateway:
        children["gateways"] = {"hosts": {"gateway": gateway_variables(settings)}}
    return {"all": {"vars": common, "children": children}}


def gateway_variables(settings: Settings) -> dict[str, Any]:
    """The variables of the gateway's container as a host."""
    return {
        "ansible_host": settings.gateway,
        "ansible_port": SSH_PORT,
        "ansible_user": USER,
        "ansible_ssh_private_key_file": str(CONTROL / "client_key"),
        "ansible_ssh_common_args": (
            f"-F none -o UserKnownHostsFile={CONTROL}/known_hosts -o StrictHostKeyChecking=yes -o HostKeyAlias=gateway"
        ),
        "ansible_remote_tmp": "/tmp/ansible",
        "gateway_state_dir": str(GATEWAY_STATE),
        "gateway_service_manager": "supervisor",
        "gateway_user": USER,
        "gateway_host": "0.0.0.0",
        "gateway_allow_plain": True,
        "gateway_port": settings.gateway_port,
        "gateway_api_keys": [{"name": "local", "key": f"{{{{ lookup('ansible.builtin.file', '{GATEWAY_KEY}') }}}}"}],
    }


def redis_configuration(password: str, data: Path = DATA) -> str:
    """The configuration of the Redis that console and controllers share. Raises SettingsError without a password."""
    if not password:
        raise SettingsError(
            "REDIS_PASSWORD_FILE is not set, and a Redis without a password would be open to its network."
        )
    if '"' in password or "\\" in password or not password.isprintable():
        raise SettingsError("REDIS_PASSWORD: use printable characters other than quotes and backslashes.")
    return (
        'bind * -::*\nport 6379\nprotected-mode no\ndaemonize no\nlogfile ""\nalways-show-logo no\n'
        f'dir "{data}"\nsave ""\nappendonly yes\nappendfsync everysec\n'
        "maxclients 1000\nmaxmemory 128mb\nmaxmemory-policy volatile-lru\n"
        f'requirepass "{password}"\n'
    )
