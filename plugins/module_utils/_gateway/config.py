# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""HAProxy's configuration: one text and the maps that it reads, from the backends, the names, the clients and settings.

The text names its own folder as ${MAGI_GATEWAY}, so that it can be checked in one place and used in another. What
changes often (names, keys, limits) is in maps, which HAProxy changes while it runs.
Sections of our own begin with MAGI_, as no id of a model can.
"""

from __future__ import annotations

from collections.abc import Sequence

from .._core.exchange import authority
from .aliases import names_in_full
from .backends import NAMES, backend_lines, known_models
from .client_metrics import METRICS, METRICS_PATH, STORES, TABLE
from .clients import client_maps
from .console import BACKEND as CONSOLE
from .console import console_lines
from .frontend import BUFFER_BYTES, frontend_lines
from .operators import idle_by_server, listed_text, models_text
from .settings import Route, Settings
from .sticky import PEER, handed_on, number_of, table_lines
from .tokens import TOKENS, is_counted
from .unknown import NEAREST, unknown_model_text
from .watch import watch_text
from .words import FOLDER, http_error, map_text

# When a client is to ask again for a model that has no server.
RETRY_SECONDS = 2
# A container that is replaced is found again within a second.
RESOLVERS = (
    f"resolvers {NAMES}",
    "  parse-resolv-conf",
    "  hold valid 1s",
    "  hold nx 1s",
    "  hold obsolete 1s",
)


def files_of(settings: Settings, route: Route) -> dict[str, str]:
    """Return each file of the configuration by its name in the folder; equal input gives equal text."""
    lines = [
        *_global(settings, ["tokens"] if is_counted(route.clients, settings.count_tokens) else []),
        *(RESOLVERS if settings.resolves else []),
        *_defaults(settings),
        *table_lines(settings.stickiness),
        *frontend_lines(settings, route),
        *_metrics(settings, route),
        *(console_lines(settings) if settings.console_url else []),
        *backend_lines(settings, route),
    ]
    secrets = {backend.model_id: backend.key for backend in route.backends if backend.key}
    granted = names_in_full(route.backends, settings.aliases, settings.families)
    return {
        "haproxy.cfg": "\n".join(lines) + "\n",
        "models.map": map_text({name: ":".join(models) for name, models in route.names.items()}),
        "numbers.map": map_text({str(number_of(backend.model_id)): backend.model_id for backend in route.backends}),
        "away.map": map_text(
            {backend.model_id: backend.away_seconds for backend in route.backends if backend.away_seconds}
        ),
        "names.lua": NEAREST,
        "names.txt": "".join(f"{name}\n" for name in sorted(route.names)),
        "watch.lua": watch_text(),
        "clients.lua": METRICS,
        "models.lua": models_text(),
        "listed.txt": listed_text(route.backends),
        "demand.map": map_text(idle_by_server(route)),
        **({"tokens.lua": TOKENS} if is_counted(route.clients, settings.count_tokens) else {}),
        "patience.map": map_text(patience_by_server(route)),
        "secrets.map": map_text({**secrets, **({CONSOLE: route.console_token} if settings.console_url else {})}),
        **{name: map_text(content) for name, content in client_maps(route.clients, granted).items()},
        "unknown_model.json": unknown_model_text(sorted(route.names)),
    }


def patience_by_server(route: Route) -> dict[str, int]:
    """For how long each server may be busy, in seconds, by backend/server."""
    return {
        f"{backend.model_id}/{server.name}": route.limits[backend.model_id].hang_timeout or server.patience
        for backend in route.backends
        for server in backend.servers
    }


def _global(settings: Settings, tokens: Sequence[str]) -> list[str]:
    return [
        "# Ansible managed (magi.llama): changes made here are lost in the next run",
        "global",
        f"  localpeer {PEER}",
        f"  maxconn {settings.max_connections}",
        f"  tune.bufsize {BUFFER_BYTES}",
        # By default it is the buffer's, which is one byte above what HTTP/2 allows, so that clients hang up.
        "  tune.h2.max-frame-size 16384",
        f'  stats socket "${{{FOLDER}_RUN}}/admin.sock" mode 600 level admin expose-fd listeners',
        "  stats timeout 60s",
        "  hard-stop-after 15m",
        f'  server-state-file "${{{FOLDER}}}/../servers.state"',
        # A line has 500 bytes and the beginnings of two texts of a client, each byte of which JSON may write as six.
        "  log stdout len 8192 format raw local0",
        # Newer versions warn without it, and older ones do not know it.
        ".if version_atleast(3.1)",
        "  tune.lua.bool-sample-conversion normal",
        ".endif",
        *(f'  lua-load "${{{FOLDER}}}/{name}.lua"' for name in ["names", "watch", "clients", "models", *tokens]),
        "  ssl-default-bind-options ssl-min-ver TLSv1.2",
    ]


def _defaults(settings: Settings) -> list[str]:
    # A model's map entry says how long it will be away.
    away = f'"%[be_name,map_str_int(${{{FOLDER}}}/away.map,{RETRY_SECONDS})]"'
    return [
        "defaults MAGI_common",
        "  mode http",
        "  log global",
        "  option dontlognull",
        "  option idle-close-on-response",
        "  option http-server-close",
        "  option srvtcpka",
        "  srvtcpka-idle 3s",
        "  srvtcpka-intvl 1s",
        "  srvtcpka-cnt 3",
        "  option abortonclose",
        "  timeout connect 250ms",
        # Of a check, once it is connected: a server that shares its processor answers late, and is not dead.
        "  timeout check 2s",
        "  timeout client 60s",
        "  timeout client-fin 5s",
        "  timeout http-request 10s",
        "  timeout http-keep-alive 75s",
        f"  timeout queue {settings.queue_timeout}s",
        f"  timeout server {settings.answer_timeout}s",
        "  timeout tunnel 1h",
        "  retries 3",
        "  option redispatch 1",
        "  retry-on conn-failure",
        "  load-server-state-from-file global",
        http_error(400, "The request is malformed.", "invalid_request_error", "bad_request"),
        http_error(408, "The request arrived too slowly.", "invalid_request_error", "request_timeout"),
        http_error(502, "The model's server closed the connection.", "server_error", "bad_gateway"),
        http_error(503, "No server of this model is ready. Try again.", "server_error", "model_not_ready", retry=away),
        http_error(504, "The model's server did not answer in time.", "server_error", "gateway_timeout"),
    ]


def _metrics(settings: Settings, route: Route) -> list[str]:
    return [
        f"backend {TABLE} from MAGI_common",
        f"  stick-table type string len 64 size 100k expire 24d store {STORES} {handed_on()}",
        "frontend MAGI_metrics from MAGI_common",
        f"  bind {authority(settings.metrics_host, settings.metrics_port)}",
        "  no log",
        f"  http-request use-service lua.magi_clients if {{ path {METRICS_PATH} }}",
        "  http-request use-service prometheus-exporter if { path /metrics }",
        *known_models(route),
        # Only for this host: it names every server with its address.
        "  http-request deny unless { path /metrics } || { src 127.0.0.0/8 ::1 }",
        "  stats enable",
        "  stats uri /stats",
        "  stats refresh 5s",
    ]
