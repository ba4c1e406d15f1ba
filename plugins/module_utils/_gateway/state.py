# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Bring a gateway to the state that a run wants: what is kept of it, what is rendered, and how it is applied."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._core.documents import Document, DocumentError, Fields, Map, Maybe
from .._core.exchange import authority
from .._core.files import write_atomic
from .._core.ownership import require_trusted
from .._core.values import is_loopback
from .._services.table import MANAGERS, find_manager
from .admin_socket import AdminSocket, NotRunningError
from .aliases import check_aliases, missing_targets, names_of, split_names
from .apply import SERVICE, Applied, apply
from .clients import Client, missing_grants, parse_clients
from .config import files_of
from .console import console_address, read_token
from .files import (
    Places,
    activate,
    check_config,
    compare,
    current_files,
    haproxy_version,
    is_applied,
    locked,
    merged,
    note_applied,
    prepare,
    read_certificate,
    read_changed,
    read_fleet,
    read_json,
    read_keys,
    require_launch_config,
    stage,
    write_documents,
)
from .fleet import Backend, GatewayError, backends_of, check_host, ready_servers
from .limits import Limits, check_models, limits_of, missing_models
from .members import serving_servers
from .own_certificate import AUTO, own_certificate
from .server_keys import HostKeys, keys_of, next_keys, refuse_replaced
from .settings import Route, Settings
from .sticky import check_stickiness

STOP_SECONDS = 30.0
# Between the question to a host and that to the gateway; less than another run takes to change something.
SLACK_SECONDS = 2.0
# What a run keeps of a gateway, so that one that changes only servers needs no variables of the gateway.
GATEWAY = Document(
    "gateway",
    1,
    Fields(
        {
            "collection_version": str,
            "service_manager": str,
            "program": str,
            "user": Maybe(str),
            "settings": Map((str, int, bool, dict, type(None))),
            "clients": [Fields({"name": str, "sha256": str})],
        }
    ),
)


def exists(state_dir: str) -> bool:
    """Whether a gateway was set up in this state directory."""
    return os.path.exists(Places(state_dir).gateway)


def unchanged(how: str = "nothing", url: str = "") -> dict[str, Any]:
    """The result of a run that has done nothing to a gateway, or that leaves it without models."""
    return {"changed": False, "how": how, "models": {}, "url": url}


def read_ready(state_dir: str) -> dict[str, Any]:
    """The result of reading what a gateway sees, which changes nothing; ready is empty while HAProxy does not run.

    Raises AdminSocketError where it runs and does not answer: its servers have requests, and must not pass for idle.
    """
    places = Places(state_dir)
    if not exists(state_dir):
        return {**unchanged("missing"), "exists": False, "ready": {}}
    require_trusted(places.state_dir)
    try:
        up = AdminSocket(places.socket).servers_up()
    except NotRunningError:
        up = set()
    return {**unchanged(), "exists": True, "ready": ready_servers(read_fleet(places), up)}


def prepare_host(given: Mapping[str, Any], *, dry_run: bool) -> dict[str, Any]:
    """Check that the state directory and the launch config are a gateway's, before anything is written there."""
    places = Places(given["state_dir"])
    require_trusted(places.state_dir)
    manager = find_manager(given["service_manager"] or next(iter(MANAGERS)))
    require_launch_config(places, manager.config_path(places.state_dir, SERVICE))
    prepare(places, None, dry_run=dry_run)
    return unchanged()


def bring_to_state(
    given: Mapping[str, Any], found: str | None, *, warn: Callable[[str], None], dry_run: bool
) -> dict[str, Any]:
    """Do it; returns the module's result. found is HAProxy as the host has it. Raises GatewayError."""
    places = Places(given["state_dir"])
    require_trusted(places.state_dir)
    with locked(places, dry_run=dry_run):
        kept = _kept(places, given, found)
        settings, clients = _settings(kept["settings"]), parse_clients(kept["clients"])
        check_aliases(settings.aliases)
        check_models(settings.models)
        check_stickiness(settings.stickiness)
        if settings.console_url:
            console_address(settings)
        hosts, keys, changed = _hosts(places, given, warn)
        backends, warnings = backends_of(hosts, keys_of(keys), [given["name"]])
        warnings += missing_targets(backends, settings.aliases, settings.families)
        _refuse_open(settings, clients, backends)
        names = names_of(backends, settings.aliases, settings.families)
        warnings += missing_models(settings.models, names)
        warnings += missing_grants(clients, names)
        limits = limits_of(Limits.common(settings), settings.models, names, backends)
        splits = split_names(backends, settings.aliases, settings.families)
        before = current_files(places)
        token = read_token(settings, before, warnings) if settings.console_url else ""
        after = files_of(settings, Route(backends, names, splits, clients, limits, token))
        if settings.certificate:
            if settings.certificate == AUTO:
                prepare(places, kept["user"], dry_run=dry_run)
                pem = own_certificate(places, settings.host, given["name"], warnings, dry_run=dry_run)
            else:
                pem = read_certificate(settings.certificate, before.get("certificate.pem"), warnings)
            after["certificate.pem"] = pem
        for warning in warnings:
            warn(warning)
        change = compare(before, after)
        if before and not is_applied(places, before):
            # HAProxy has another configuration than this one: it cannot be changed from here.
            change.how = "reload"
        result = {
            "models": {backend.model_id: len(backend.servers) for backend in backends},
            "url": url_of(settings),
            "diff": change.diff,
        }
        if dry_run:
            return {**result, "changed": change.how != "nothing", "how": change.how}
        haproxy_version(kept["program"], kept["user"])
        group = prepare(places, kept["user"])
        if change.files:
            folder = stage(places, after, group)
            check_config(kept["program"], places, folder, kept["user"])
            activate(places, folder)
        _write_kept(places, kept)
        write_documents(places, hosts, keys, changed)
        driver = find_manager(kept["service_manager"]).driver(places.state_dir, given["supervisord_path"])
        applied = apply(driver, places, change, before, after, given["ready_timeout"])
        note_applied(places, after)
        return {**result, **_outcome(applied, AdminSocket(places.socket))}


def _outcome(applied: Applied, admin: AdminSocket) -> dict[str, Any]:
    late = [name for _backend, name in applied.not_ready]
    # serving is what HAProxy does, not what was asked of it.
    how = {"changed": applied.how != "nothing", "how": applied.how}
    return {**how, "not_ready": late, "serving": serving_servers(admin)}


def _hosts(
    places: Places, given: Mapping[str, Any], warn: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, HostKeys], dict[str, float]]:
    """What is known of each host after this run, the keys of their servers, and when a run with its lock changed that.

    A host whose entry is invalid is as it was before: it must not keep the others out of the gateway. Neither must one
    whose key file was replaced, unless this run is about to restart its servers: then GatewayError is raised.
    """
    known, changed = read_fleet(places), read_changed(places)
    found, new_keys = current(given, known, changed, warn), json.loads(given["keys"] or "{}")
    keys = read_keys(places)
    for host, entry in list(found.items()):
        if entry is None:
            continue
        try:
            check_host(entry, new_keys.get(host, []))
            following = next_keys(keys.get(host, HostKeys()), new_keys.get(host, []), entry)
            refuse_replaced(host, following, entry)
            keys[host] = following
        except DocumentError as error:
            warn(f"{host}: what it reports of its servers is not used: {error}.")
            del found[host]
        except GatewayError as error:
            if host not in given["ages"]:
                raise
            warn(f"{host}: what the gateway knows of it is kept. {error}")
            del found[host]
    hosts = merged(known, found, given["inventory"])
    changed.update(dict.fromkeys((host for host in found if host not in given["ages"]), time.time()))
    return hosts, {host: keys.get(host, HostKeys()) for host in hosts}, changed


def current(
    given: Mapping[str, Any], known: Mapping[str, Any], changed: Mapping[str, float], warn: Callable[[str], None]
) -> dict[str, Any]:
    """What this run has found on each host, without what is older than the change of a run that had locked the host.

    changed has the times of these in seconds since the epoch, by host.
    """
    found = dict(given["hosts"])
    for host, seconds in given["ages"].items():
        if changed.get(host, 0.0) > time.time() - float(seconds) - SLACK_SECONDS and host in found:
            if found[host] != known.get(host):
                warn(f"{host}: another run has changed it meanwhile, and what the gateway knows of it is kept.")
            del found[host]
    return found


def _kept(places: Places, given: Mapping[str, Any], found: str | None) -> dict[str, Any]:
    """The gateway's document with what this run gives. Raises GatewayError where neither has it."""
    content = read_json(places.gateway)
    known = GATEWAY.load(content) if content else {}
    if not known and given["settings"] is None:
        raise GatewayError(f"{places.state_dir} has no gateway yet: run gateway.yml first.")
    changed: dict[str, Any] = {
        "service_manager": given["service_manager"],
        "program": given["program"] or known.get("program") or found,
        "user": given["user"],
        "settings": given["settings"],
    }
    if given["settings"] is not None:
        changed["clients"] = json.loads(given["clients"] or "[]")
    kept = {**known, **{key: value for key, value in changed.items() if value is not None}}
    if not kept.get("program"):
        raise GatewayError("HAProxy is missing on this host: install the package haproxy (2.6 or newer).")
    kept.setdefault("user", None)
    kept.setdefault("service_manager", next(iter(MANAGERS)))
    return GATEWAY.stamp({key: kept[key] for key in ("service_manager", "program", "user", "settings", "clients")})


def _settings(content: Mapping[str, Any]) -> Settings:
    paths = {name: content.get(name) or "" for name in ("certificate", "console_token_file")}
    return Settings(**{**content, **paths})


def _refuse_open(settings: Settings, clients: Sequence[Client], backends: Sequence[Backend]) -> None:
    """Raise GatewayError for a gateway that others can use or read without a key."""
    locked_models = [backend.model_id for backend in backends if backend.key]
    if locked_models and not clients:
        raise GatewayError(
            f"The servers of {', '.join(locked_models[:3])} want an API key, which the gateway would put in for every "
            "user of its host, as gateway_api_keys is empty: name the clients there."
        )
    if is_loopback(settings.host):
        return
    if not clients:
        raise GatewayError(
            f"gateway_host is {settings.host}, so other hosts reach the gateway, and gateway_api_keys is empty: name "
            "the clients there, or set gateway_host to 127.0.0.1."
        )
    if not (settings.certificate or settings.allow_plain):
        raise GatewayError(
            f"gateway_host is {settings.host}, so keys and prompts cross the network, and gateway_tls_certificate is "
            "not set: set it to a file with certificate and key, or to auto, or set gateway_host to 127.0.0.1. Where "
            "something else protects that address, set gateway_allow_plain."
        )


def url_of(settings: Settings) -> str:
    """The gateway's address for its clients."""
    if settings.certificate:
        return f"https://{authority(settings.host, settings.tls_port)}"
    return f"http://{authority(settings.host, settings.port)}"


def _write_kept(places: Places, kept: Mapping[str, Any]) -> None:
    write_atomic(places.gateway, (json.dumps(kept, indent=1, sort_keys=True) + "\n").encode(), 0o600)


def remove(given: Mapping[str, Any], *, dry_run: bool) -> dict[str, Any]:
    """Stop the gateway and remove its files, and nothing where there is none."""
    places = Places(given["state_dir"])
    content = read_json(places.gateway)
    if content is None:
        return unchanged(url=places.state_dir)
    kept = GATEWAY.load(content)
    if not dry_run:
        with locked(places, dry_run=False):
            _remove_all(places, kept, given["supervisord_path"])
        for folder in (*reversed(find_manager(kept["service_manager"]).folders(places.state_dir)), places.state_dir):
            # What others have put there is kept.
            with contextlib.suppress(OSError):
                os.rmdir(folder)
    return {**unchanged("stop", url_of(_settings(kept["settings"]))), "changed": True}


def _remove_all(places: Places, kept: Mapping[str, Any], supervisord: str | None) -> None:
    manager = find_manager(kept["service_manager"])
    config = manager.config_path(places.state_dir, SERVICE)
    require_launch_config(places, config)
    driver = manager.driver(places.state_dir, supervisord)
    driver.stop([SERVICE], STOP_SECONDS)
    # Logs are known by names in supervisord's own, which is one of them.
    owned = manager.owned_paths(places.state_dir, [SERVICE], [config])
    driver.forget([SERVICE])
    driver.shutdown_if_idle()
    for path in (config, *owned, *places.all()):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        elif os.path.lexists(path):
            os.unlink(path)
