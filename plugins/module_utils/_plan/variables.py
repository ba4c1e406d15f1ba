# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The role servers' variables: what is wrong with them by themselves, before anything is looked at or touched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .._core.addresses import address_errors
from .._core.values import MAX_PORT, ValueTypeError, address_error, is_loopback, parse_bool

WHOLE_NUMBER = re.compile(r"[1-9][0-9]*")
# Each with the environment variable that sets it on the controller.
NUMBERS = {
    "servers_port_range_start": "MODEL_PORT_RANGE_START",
    "servers_port_range_end": "MODEL_PORT_RANGE_END",
    "servers_stop_timeout": None,
    "servers_max_startup_time": "MODEL_MAX_STARTUP_TIME",
}
# Least and greatest value.
RANGES: dict[str, tuple[int, int | None]] = {"servers_cpu_weight": (1, 10000), "servers_lock_wait": (0, None)}
NUMA_MASK = re.compile(r"[0-9]+(-[0-9]+)?([ ,]+[0-9]+(-[0-9]+)?)*")
# Also auto, or empty.
# Paths on the host, with the environment variable that sets one on the controller.
HOST_PATHS = {
    "registry_scan_paths": "MODEL_SCAN_PATH",
    "registry_path": "REGISTRY_PATH",
    "runtime_prefix": None,
    "runtime_cache_path": None,
    "runtime_binary_path": "LLAMA_SERVER_PATH",
    "servers_state_dir": None,
    "servers_registry_path": "REGISTRY_PATH",
    "servers_api_key_file": None,
    "servers_supervisord_path": None,
    "servers_runtime_prefix": None,
    "servers_runtime_cache_path": None,
}
BOOLEANS = ("servers_gpu_access", "servers_concurrent_starts")
# What setting_errors explains better than an argument spec.
EXPLAINED = (*NUMBERS, *BOOLEANS)


def setting_errors(settings: Mapping[str, Any]) -> list[str]:
    """What is wrong with variables of the role servers, as far as they are given (by name), a sentence each.

    An empty servers_max_startup_time or servers_concurrent_starts leaves it to the profile.
    """
    return [
        *_numbers(settings),
        *_ranges(settings),
        *_relative_paths(settings),
        *_booleans(settings),
        *_port_range(settings),
        *_set_ports(settings),
        *_numa_mask(settings),
        *_named_servers(settings),
        *address_errors(settings.get("servers_allow_addresses") or []),
        *(_address(settings) or _open_to_all(settings)),
    ]


def _numbers(settings: Mapping[str, Any]) -> list[str]:
    numbers = {name: str(settings[name]) for name in NUMBERS if name in settings}
    if not numbers.get("servers_max_startup_time"):
        numbers.pop("servers_max_startup_time", None)
    return [
        f"{name} is {text}: set it to a whole number of at least 1{f' (or {NUMBERS[name]})' if NUMBERS[name] else ''}."
        for name, text in numbers.items()
        if not WHOLE_NUMBER.fullmatch(text)
    ]


def _relative_paths(settings: Mapping[str, Any]) -> list[str]:
    """A relative path would be below the folder that a module happens to run in."""
    wrong = []
    for name, environment in HOST_PATHS.items():
        value = settings.get(name)
        for path in value if isinstance(value, (list, tuple)) else [value]:
            if not isinstance(path, str) or path == "" or path.startswith(("/", "~")):
                continue
            if name == "servers_api_key_file" and path == "auto":
                continue
            by = f" (or {environment})" if environment else ""
            wrong.append(f"{name} is {path}, a relative path: set it to an absolute path on the host{by}.")
    return wrong


def _ranges(settings: Mapping[str, Any]) -> list[str]:
    """A value of another type is an error by its argument spec."""
    return [
        f"{name} is {settings[name]}: set it to a whole number {_words(first, last)}."
        for name, (first, last) in RANGES.items()
        if isinstance(settings.get(name), int)
        and not (first <= settings[name] and (last is None or settings[name] <= last))
    ]


def _words(first: int, last: int | None) -> str:
    return f"of at least {first}" if last is None else f"from {first} to {last}"


def _booleans(settings: Mapping[str, Any]) -> list[str]:
    wrong = []
    try:
        if settings.get("servers_gpu_access", "auto") != "auto":
            parse_bool("servers_gpu_access", settings["servers_gpu_access"])
    except ValueTypeError as error:
        wrong.append(str(error))
    concurrent = settings.get("servers_concurrent_starts", "")
    try:
        if concurrent != "":
            parse_bool("servers_concurrent_starts", concurrent)
    except ValueTypeError:
        wrong.append(
            f"servers_concurrent_starts is {concurrent}: set it to true or false (or MODEL_CONCURRENT_STARTS)."
        )
    return wrong


def _port_range(settings: Mapping[str, Any]) -> list[str]:
    texts = [str(settings.get(name, "")) for name in ("servers_port_range_start", "servers_port_range_end")]
    if not all(map(WHOLE_NUMBER.fullmatch, texts)):
        return []
    first, last = map(int, texts)
    if 1 <= first <= last <= 65535:
        return []
    return [
        f"The port range {first} to {last} is empty or not within 1 to 65535: set servers_port_range_start and "
        "servers_port_range_end (or MODEL_PORT_RANGE_START, MODEL_PORT_RANGE_END)."
    ]


def _numa_mask(settings: Mapping[str, Any]) -> list[str]:
    mask = str(settings.get("servers_numa_mask", ""))
    if mask in ("", "all") or NUMA_MASK.fullmatch(mask):
        return []
    return [f"servers_numa_mask is {mask}: set it to NUMA nodes such as 0-1,3, to all, or leave it empty."]


def _named_servers(settings: Mapping[str, Any]) -> list[str]:
    if "servers" not in settings or str(settings["servers"]).strip(" ,"):
        return []
    return ["servers names no server: set it to names separated by commas, or to all."]


def _set_ports(settings: Mapping[str, Any]) -> list[str]:
    try:
        set_ports(settings.get("servers_ports") or {})
    except ValueTypeError as error:
        return [str(error)]
    return []


def set_ports(given: Mapping[str, Any]) -> dict[str, int]:
    """The ports that servers_ports sets, by server. Raises ValueTypeError for another value, or a port set twice."""
    ports: dict[str, int] = {}
    for name, value in given.items():
        text = str(value)
        if isinstance(value, bool) or not WHOLE_NUMBER.fullmatch(text) or int(text[:6]) > MAX_PORT:
            raise ValueTypeError(
                f"servers_ports.{name} is {text:.40}: set it to a port, a whole number from 1 to {MAX_PORT}."
            )
        twin = next((other for other, port in ports.items() if port == int(text)), None)
        if twin is not None:
            raise ValueTypeError(f"servers_ports sets {text} for {twin} and for {name}: a port is for one server.")
        ports[str(name)] = int(text)
    return ports


def _address(settings: Mapping[str, Any]) -> list[str]:
    if "servers_host" not in settings:
        return []
    error = address_error("servers_host", str(settings["servers_host"]))
    return [error] if error else []


def _open_to_all(settings: Mapping[str, Any]) -> list[str]:
    if not {"servers_host", "servers_api_key_file", "servers_allow_open"} <= set(settings):
        return []
    host = str(settings["servers_host"])
    if is_loopback(host) or settings["servers_api_key_file"] or settings["servers_allow_open"]:
        return []
    return [
        f"servers_host is {host}, which other machines can reach, without a servers_api_key_file: set that to a file "
        "with API keys on the host, or set servers_allow_open if a firewall or gateway protects the servers."
    ]
