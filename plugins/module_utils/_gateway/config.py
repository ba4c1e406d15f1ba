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

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._core.exchange import authority
from .clients import Client, client_maps
from .fleet import Backend

# A request of this size is looked at as a whole, with the model's name anywhere in it.
BUFFER_BYTES = 16 * 1024 * 1024
# HAProxy keeps this much of a buffer for itself.
RESERVE_BYTES = 9000
FOLDER = "MAGI_GATEWAY"
# All routes of llama-server that clients of models use; every other path is refused.
POST_PATHS = (
    *("/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions", "/completion"),
    *("/v1/responses", "/responses", "/v1/messages", "/v1/messages/count_tokens", "/infill"),
    *("/v1/embeddings", "/embeddings", "/embedding"),
    *("/v1/rerank", "/rerank", "/v1/reranking", "/reranking"),
    *("/tokenize", "/detokenize", "/apply-template", "/v1/audio/transcriptions", "/v1/systemone"),
)
LIST_PATHS = ("/v1/models", "/models")


@dataclass(frozen=True)
class Settings:
    """How a gateway listens and behaves. Time in seconds, sizes in bytes; paths are on the gateway's host."""

    host: str = "127.0.0.1"
    port: int = 8070
    tls_port: int = 8443
    certificate: str = ""
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 8071
    max_body: int = 256 * 1024 * 1024
    queue_timeout: int = 30
    answer_timeout: int = 600
    max_queue: int = 64
    rate_per_minute: int = 0
    aliases: Mapping[str, Any] = field(default_factory=dict)
    families: bool = True
    max_connections: int = 2000


@dataclass(frozen=True)
class Route:
    """What of the fleet is in the configuration."""

    backends: Sequence[Backend]
    names: Mapping[str, Sequence[str]]
    splits: Mapping[str, Sequence[tuple[str, int]]]
    clients: Sequence[Client]


def files_of(settings: Settings, route: Route) -> dict[str, str]:
    """Return each file of the configuration by its name in the folder; equal input gives equal text."""
    lines = [
        *_global(settings),
        *_defaults(settings),
        *_frontend(settings, route),
        *_metrics(settings),
        *_models(settings, route),
    ]
    return {
        "haproxy.cfg": "\n".join(lines) + "\n",
        "models.map": _map({name: ":".join(models) for name, models in route.names.items()}),
        "secrets.map": _map({backend.model_id: backend.key for backend in route.backends if backend.key}),
        **{name: _map(content) for name, content in client_maps(route.clients).items()},
        "unknown_model.json": unknown_model_text(sorted(route.names)),
    }


def _map(content: Mapping[str, Any]) -> str:
    return "".join(f"{key} {value}\n" for key, value in sorted(content.items()))


def _global(settings: Settings) -> list[str]:
    return [
        "# Ansible managed (magi.llama): changes made here are lost in the next run",
        "global",
        f"  maxconn {settings.max_connections}",
        f"  tune.bufsize {BUFFER_BYTES}",
        f'  stats socket "${{{FOLDER}_RUN}}/admin.sock" mode 600 level admin expose-fd listeners',
        "  stats timeout 60s",
        "  hard-stop-after 15m",
        f'  server-state-file "${{{FOLDER}}}/../servers.state"',
        "  log stdout format raw local0",
        "  ssl-default-bind-options ssl-min-ver TLSv1.2",
    ]


def _defaults(settings: Settings) -> list[str]:
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
        _http_error(400, "The request is malformed.", "invalid_request_error", "bad_request"),
        _http_error(408, "The request arrived too slowly.", "invalid_request_error", "request_timeout"),
        _http_error(502, "The model's server closed the connection.", "server_error", "bad_gateway"),
        _http_error(503, "No server of this model is ready. Try again.", "server_error", "model_not_ready", retry=2),
        _http_error(504, "The model's server did not answer in time.", "server_error", "gateway_timeout"),
    ]


def error_json(message: str, kind: str, code: str, param: str | None = None) -> str:
    """An error as OpenAI's clients expect it."""
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _literal(text: str) -> str:
    """A text as one word of the configuration, without any expansion."""
    if any(ord(character) < 0x20 for character in text):
        raise ValueError(f"a text of the configuration has a control character: {text!r:.60}")
    return "'" + text.replace("'", "'\\''") + "'"


def _http_error(status: int, message: str, kind: str, code: str, retry: int | None = None) -> str:
    after = f" hdr Retry-After {retry}" if retry is not None else ""
    body = _literal(error_json(message, kind, code))
    return f"  http-error status {status} content-type application/json string {body}{after}"


def _refuse(status: int, body: str, condition: str, headers: str = "") -> str:
    text = _literal(body)
    return f"  http-request return status {status} content-type application/json string {text}{headers} if {condition}"


def unknown_model_text(names: Sequence[str]) -> str:
    """The answer to a request for a model that no server has, as a format of HAProxy."""
    known = ", ".join(names)[:2000] or "none"
    text = error_json(
        f"The model @ does not exist. There are: {known}.", "invalid_request_error", "model_not_found", "model"
    )
    return text.replace("%", "%%").replace("@", "%[var(txn.model),json(utf8s)]", 1)


def _frontend(settings: Settings, route: Route) -> list[str]:
    return [
        "frontend MAGI_gateway from MAGI_common",
        *_binds(settings),
        # Without any text of a request but the names that were looked up.
        "  log-format "
        + _literal(
            '{"time":"%t","client":"%[var(txn.client),json(utf8s)]","model":"%[var(txn.model),json(utf8s)]",'
            '"path":"%[var(txn.path),json(utf8s)]","backend":"%b","server":"%s","status":%ST,"queue_ms":%Tw,'
            '"connect_ms":%Tc,"first_byte_ms":%Tr,"total_ms":%Ta,"end":"%ts","retries":"%rc","bytes":%B,"sent":%U}'
        ),
        "  http-request set-var(txn.path) path",
        '  http-request return status 200 content-type application/json string \'{"status":"ok"}\' if { path /health }',
        *_keys(settings, route),
        *_paths(settings),
        *_list(route),
        *_model(),
        *_choice(route),
    ]


def _binds(settings: Settings) -> list[str]:
    if settings.certificate:
        address = authority(settings.host, settings.tls_port)
        return [f'  bind {address} ssl crt "${{{FOLDER}}}/certificate.pem" alpn h2,http/1.1']
    return [f"  bind {authority(settings.host, settings.port)}"]


def _keys(settings: Settings, route: Route) -> list[str]:
    """Who asks, how often, and in which order; before a byte of the body is read."""
    folder = f'"${{{FOLDER}}}'
    lines = ["  http-request set-var(txn.model) str()", "  http-request set-var(txn.client) str()"]
    if route.clients:
        unknown = error_json("The API key is missing or wrong.", "invalid_request_error", "invalid_api_key")
        lines += [
            "  http-request set-var(txn.token) http_auth_bearer",
            "  http-request set-var(txn.token) req.hdr(x-api-key) if !{ var(txn.token) -m found }",
            f'  http-request set-var(txn.client) var(txn.token),sha2(256),hex,map_str({folder}/keys.map") '
            "if { var(txn.token) -m found }",
            _refuse(401, unknown, "{ var(txn.client) -m len 0 }", " hdr WWW-Authenticate Bearer"),
        ]
    else:
        lines.append("  http-request set-var(txn.client) src")
    busy = error_json("The rate limit of this API key is reached.", "rate_limit_error", "rate_limit_exceeded")
    return [
        *lines,
        "  http-request set-var(txn.limit) "
        f'var(txn.client),map_str_int({folder}/limits.map",{settings.rate_per_minute})',
        "  http-request track-sc0 var(txn.client) table MAGI_clients",
        _refuse(
            429,
            busy,
            "{ var(txn.limit) -m int gt 0 } { sc_http_req_rate(0,MAGI_clients),sub(txn.limit) gt 0 }",
            " hdr Retry-After 5",
        ),
        # Who has the fewest requests under way is served first: a flood delays no one else. priority is added.
        f'  http-request set-var(txn.priority) var(txn.client),map_str_int({folder}/priorities.map",0)',
        "  http-request set-priority-class sc_trackers(0,MAGI_clients),add(txn.priority)",
    ]


def _paths(settings: Settings) -> list[str]:
    kind = "invalid_request_error"
    return [
        f"  acl is_list path {' '.join(LIST_PATHS)}",
        f"  acl is_post path {' '.join(POST_PATHS)}",
        _refuse(404, error_json("This path is not served here.", kind, "not_found"), "!is_list !is_post"),
        _refuse(405, error_json("Use GET.", kind, "method_not_allowed"), "is_list !METH_GET", " hdr Allow GET"),
        _refuse(405, error_json("Use POST.", kind, "method_not_allowed"), "is_post !METH_POST", " hdr Allow POST"),
        _refuse(
            415,
            error_json("Content-Encoding is not supported: send the body as it is.", kind, "unsupported_encoding"),
            "is_post { req.hdr(content-encoding) -m found } !{ req.hdr(content-encoding) -i identity }",
        ),
        _refuse(
            413,
            error_json(f"The request is larger than {settings.max_body} bytes.", kind, "request_too_large"),
            f"is_post {{ req.body_size gt {settings.max_body} }}",
        ),
    ]


def _list(route: Route) -> list[str]:
    lines = []
    for backend in route.backends:
        about = {
            "id": backend.model_id,
            "object": "model",
            "owned_by": "magi.llama",
            "meta": {"display_name": backend.display_name, "tier": backend.tier, "kind": backend.kind},
        }
        entry = _literal("%[var(txn.list)]," + json.dumps(about).replace("%", "%%"))
        # A worker that is being replaced counts no server.
        ready = f"is_list {{ nbsrv({backend.model_id}) gt 0 }} || is_list {{ stopping }}"
        lines.append(f"  http-request set-var-fmt(txn.list) {entry} if {ready}")
    answer = _literal('{"object":"list","data":[%[var(txn.list),bytes(1)]]}')
    return [*lines, f"  http-request return status 200 content-type application/json lf-string {answer} if is_list"]


def _model() -> list[str]:
    """The name of the model that is asked for."""
    seen = BUFFER_BYTES - RESERVE_BYTES
    kind = "invalid_request_error"
    large = error_json(
        f"The first {seen} bytes of the request have no model: send model first, or in the header X-Model.",
        kind,
        "request_too_large",
        "model",
    )
    field = r'"^[\x00-\xff]*name=.model.[\r\n]+",""'
    return [
        "  acl is_form req.hdr(content-type) -i -m beg multipart/form-data",
        "  acl names_model req.hdr(x-model) -m found",
        "  http-request set-var(txn.model) req.hdr(x-model) if names_model",
        f"  http-request wait-for-body time 30s at-least {seen} if !names_model",
        "  http-request set-var(txn.model) req.body,json_query('$.model') if !names_model !is_form",
        f'  http-request set-var(txn.model) \'req.body,regsub({field}),regsub("[\\r\\n][\\x00-\\xff]*$","")\' '
        "if !names_model is_form",
        _refuse(413, large, f"{{ var(txn.model) -m len 0 }} {{ req.body_len ge {seen} }}"),
        _refuse(
            400,
            error_json("The request has no model. GET /v1/models lists them.", kind, "missing_model", "model"),
            "{ var(txn.model) -m len 0 }",
        ),
    ]


def _choice(route: Route) -> list[str]:
    """The backend: the best one of the name's that has a server, the best one of all if none has."""
    folder = f'"${{{FOLDER}}}'
    width = max((len(models) for models in route.names.values()), default=1)
    lines = [f'  http-request set-var(txn.candidates) var(txn.model),map_str({folder}/models.map")']
    for name, shares in sorted(route.splits.items()):
        lines += _split(name, shares)
    lines.append(
        f'  http-request return status 404 content-type application/json lf-file {folder}/unknown_model.json" '
        "if !{ var(txn.candidates) -m found }"
    )
    for number in range(width, 0, -1):
        lines.append(f"  http-request set-var(txn.c{number}) var(txn.candidates),word({number},:)")
        lines.append(f"  http-request set-var(txn.backend) var(txn.c{number}) if {{ var(txn.c{number}),nbsrv gt 0 }}")
    lines.append("  http-request set-var(txn.backend) var(txn.c1) if !{ var(txn.backend) -m found }")
    if route.clients:
        denied = error_json(
            "This API key may not use this model.", "invalid_request_error", "model_not_allowed", "model"
        )
        lines += [
            '  http-request set-var-fmt(txn.grant) "%[var(txn.client)]|%[var(txn.backend)]"',
            _refuse(
                403,
                denied,
                f'{{ var(txn.client),map_str({folder}/restricted.map") -m found }} '
                f'!{{ var(txn.grant),map_str({folder}/grants.map") -m found }}',
            ),
        ]
    return [*lines, "  use_backend %[var(txn.backend)]"]


def _split(name: str, shares: Sequence[tuple[str, int]]) -> list[str]:
    """Requests for a name go to its models by their shares, and to the others where the chosen one has no server."""
    asked = f"{{ var(txn.model) -m str {_literal(name)} }}"
    lines = [f"  http-request set-var(txn.dice) rand(100) if {asked}"]
    below = 100
    for model, percent in shares:
        candidates = ":".join([model, *(other for other, _percent in shares if other != model)])
        # The last condition that holds decides: each model has the numbers below what the earlier ones leave.
        chosen = f"{{ var(txn.dice) -m int lt {below} }}"
        lines.append(f"  http-request set-var(txn.candidates) str({candidates}) if {asked} {chosen}")
        below -= percent
    return lines


def _metrics(settings: Settings) -> list[str]:
    return [
        "backend MAGI_clients from MAGI_common",
        "  stick-table type string len 64 size 100k expire 120s store http_req_rate(60s)",
        "frontend MAGI_metrics from MAGI_common",
        f"  bind {authority(settings.metrics_host, settings.metrics_port)}",
        "  no log",
        "  http-request use-service prometheus-exporter if { path /metrics }",
        # Only for this host: it names every server with its address.
        "  http-request deny unless { path /metrics } || { src 127.0.0.0/8 ::1 }",
        "  stats enable",
        "  stats uri /stats",
        "  stats refresh 5s",
    ]


def _models(settings: Settings, route: Route) -> list[str]:
    lines = [
        "defaults MAGI_models from MAGI_common",
        "  balance leastconn",
        "  default-server check inter 1s fastinter 200ms downinter 500ms fall 2 rise 1 "
        "observe layer4 error-limit 1 on-error mark-down",
        "  option httpchk",
        "  http-request del-header X-Model",
        "  http-request del-header X-Api-Key",
        "  http-request del-header Authorization",
    ]
    for backend in route.backends:
        lines += _backend(settings, backend)
    return lines


def _backend(settings: Settings, backend: Backend) -> list[str]:
    model = backend.model_id
    secret = f"str({model}),map_str(${{{FOLDER}}}/secrets.map)"
    check_key = _literal(f"Bearer {backend.key}".replace("%", "%%"))
    authorization = f" hdr Authorization {check_key}" if backend.key else ""
    full = error_json("Too many requests wait for this model. Try again.", "rate_limit_error", "queue_full")
    return [
        f"backend {model} from MAGI_models",
        f"  http-check send meth GET uri /v1/models ver HTTP/1.1 hdr Host gateway{authorization}",
        f"  http-check expect string {_literal(json.dumps({'id': model}, separators=(',', ':'))[1:-1])}",
        _refuse(429, full, f"{{ queue({model}) ge {settings.max_queue} }}", " hdr Retry-After 5"),
        f'  http-request set-header Authorization "Bearer %[{secret}]" if {{ "{secret}" -m found }}',
        f"  http-response set-header X-Magi-Model {_literal(model)}",
        f"  http-response set-header X-Magi-Tier {_literal(backend.tier or '-')}",
        *(
            f"  server {server.name} {authority(server.address, server.port)} maxconn {server.slots} "
            # A name that cannot be resolved must not keep the gateway from starting.
            "init-addr last,libc,none"
            for server in backend.servers
        ),
    ]
