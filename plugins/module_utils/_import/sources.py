# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Configurations of llama-swap and of llama-server's router, and folders of Ollama and LM Studio, as servers."""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Mapping
from typing import Any

from .._models.names import split_name
from .._models.ollama import is_ollama_store, ollama_blobs
from .settings import ImportFault, Server, parse_command, plain_settings

ALL = "*"
_TOP = "__top__"
_MACRO = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")
_PORT = re.compile(r":([0-9]{1,5})/?$")
# Keys of a preset's section that are the router's and not llama-server's.
_OF_ROUTER = ("load-on-startup", "stop-timeout", "version")
# What a model of llama-swap has and is taken over, or means nothing here.
_TAKEN = {
    "cmd",
    "proxy",
    "env",
    "checkEndpoint",
    "useModelName",
    "concurrencyLimit",
    "name",
    "description",
    "unloadTimeout",
}
_REASONS = {
    "ttl": "servers run all the time; an entry's start: {on_demand: true, idle_stop: SECONDS} stops idle ones",
    "aliases": "other names of models are the gateway's: gateway_aliases",
    "filters": "requests are not changed; set defaults as parameters",
    "cmdStop": "the service manager stops servers",
    "macros": "they are filled in",
}
_MAX_FILES = 10_000


def llama_swap(content: Any) -> list[Server]:
    """The servers of llama-swap's configuration. Raises ImportFault."""
    models = content.get("models") if isinstance(content, Mapping) else None
    if not isinstance(models, Mapping) or not models:
        raise ImportFault("It has no mapping `models`, so llama-swap did not write it. Nothing was written.")
    macros = content.get("macros")
    known = {str(key): str(value) for key, value in macros.items()} if isinstance(macros, Mapping) else {}
    return [_swapped(str(name), model, known) for name, model in models.items()]


def _swapped(name: str, model: Any, macros: Mapping[str, str]) -> Server:
    if not isinstance(model, Mapping) or not isinstance(model.get("cmd"), str):
        raise ImportFault(f"models.{name} has no command line `cmd`. Nothing was written. Remove it, or add one.")
    own = model.get("macros")
    values = {**macros, **({str(key): str(value) for key, value in own.items()} if isinstance(own, Mapping) else {})}
    server = parse_command(name, _filled(model["cmd"], {**values, "MODEL_ID": name}))
    proxy = _PORT.search(str(model.get("proxy") or ""))
    if server.port is None and proxy:
        server.port = int(proxy[1])
    for pair in model.get("env") or ():
        variable, _equals, value = str(pair).partition("=")
        server.add_environment(variable, value)
    for key in model:
        if key not in _TAKEN and model[key]:
            server.left_out.append(f"{key}: {_REASONS.get(str(key), 'it has no counterpart')}.")
    return server


def _filled(text: str, macros: Mapping[str, str]) -> str:
    """A command line with its macros, which may have others in them; ${PORT} is llama-swap's and stays out."""
    for _depth in range(10):
        filled = _MACRO.sub(lambda match: macros.get(match[1], match[0]), text)
        if filled == text:
            break
        text = filled
    # A port of the plan's takes its place.
    return re.sub(r"(?:--port[ =])?\$\{PORT\}", "", text)


def models_preset(text: str) -> list[Server]:
    """The servers of a file for llama-server's --models-preset. Raises ImportFault."""
    parser = configparser.RawConfigParser(
        default_section="__none__", delimiters=("=",), comment_prefixes=("#", ";"), allow_no_value=True, strict=True
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(f"[{_TOP}]\n{text}")
    except configparser.ParsingError as error:
        # Its own text has the lines, in which there can be keys. Line 1 is not the file's.
        numbers = [number for number, _line in getattr(error, "errors", ())] or [getattr(error, "lineno", 1)]
        raise ImportFault(f"It is not an INI file, see its line {numbers[0] - 1}. Nothing was written.") from None
    except configparser.Error as error:
        raise ImportFault(f"It is not an INI file: {' '.join(str(error).split())}. Nothing was written.") from None
    common = dict(parser[ALL]) if parser.has_section(ALL) else {}
    sections = [name for name in parser.sections() if name not in (ALL, _TOP)]
    if not sections:
        raise ImportFault("It has no section [MODEL], so it is not a preset of models. Nothing was written.")
    return [
        plain_settings(name, {key: value for key, value in {**common, **parser[name]}.items() if key not in _OF_ROUTER})
        for name in sections
    ]


def ollama(folder: str) -> list[Server]:
    """The models of an Ollama store, in the order of their names. Raises ImportFault, OSError."""
    store = os.fsencode(folder)
    store = store if is_ollama_store(os.listdir(store)) else os.path.join(store, b"models")
    if not os.path.isdir(store) or not is_ollama_store(os.listdir(store)):
        raise ImportFault(f"{folder} has no folders manifests and blobs, as Ollama's has. Nothing was written.")
    blobs, reasons = ollama_blobs(store)
    servers = [
        Server(name[: -len(".gguf")], model=os.fsdecode(os.path.join(store, blob)))
        for blob, name in sorted(blobs.items(), key=lambda pair: pair[1])
        if not name.startswith("mmproj-")
    ]
    for server in servers:
        server.left_out.append("the parameters and the template of its Modelfile: set what you need as parameters.")
    broken = [Server(os.fsdecode(path), left_out=[f"{reason}."]) for path, reason in sorted(reasons.items())]
    return _some([*servers, *broken], folder)


def lm_studio(folder: str) -> list[Server]:
    """The models of a folder of LM Studio, which has PUBLISHER/REPOSITORY/FILE.gguf. Raises ImportFault, OSError."""
    top = os.path.join(folder, "models")
    found = []
    for place, _folders, names in os.walk(top if os.path.isdir(top) else folder):
        for name in names:
            shard = split_name(name)
            if name.endswith(".gguf") and not name.startswith("mmproj") and (shard is None or shard.number == 1):
                found.append(os.path.join(place, name))
        if len(found) > _MAX_FILES:
            raise ImportFault(
                f"{folder} has more than {_MAX_FILES} models. Nothing was written. Name a folder below it."
            )
    return _some([Server(os.path.basename(path)[: -len(".gguf")], model=path) for path in sorted(found)], folder)


def _some(servers: list[Server], folder: str) -> list[Server]:
    if not servers:
        raise ImportFault(f"{folder} has no models. Nothing was written.")
    return servers
