# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The part of HAProxy's configuration that clients reach: who may ask, what for, and of which backend."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .._core.exchange import authority
from .client_metrics import first_byte_lines
from .operators import about_model, list_lines, load_lines, path_lines
from .settings import Route, Settings
from .sticky import STREAM_PATH, conversation_lines, key_lines
from .tokens import is_counted, token_lines
from .words import FOLDER, SHOWN, error_json, literal, refuse

# A request of this size is looked at as a whole, with the model's name anywhere in it.
BUFFER_BYTES = 16 * 1024 * 1024
# HAProxy keeps this much of a buffer for itself.
RESERVE_BYTES = 9000
# HAProxy itself takes headers as large as a buffer. llama-server takes 8 KiB for each.
MAX_HEADER_BYTES = 65536
# All routes of llama-server that clients of models use; every other path is refused.
POST_PATHS = (
    *("/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions", "/completion"),
    *("/v1/responses", "/responses", "/v1/messages", "/v1/messages/count_tokens", "/infill"),
    *("/v1/embeddings", "/embeddings", "/embedding"),
    *("/v1/rerank", "/rerank", "/v1/reranking", "/reranking"),
    *("/tokenize", "/detokenize", "/apply-template", "/v1/audio/transcriptions", "/v1/systemone"),
)
LIST_PATHS = ("/v1/models", "/models")


def frontend_lines(settings: Settings, route: Route) -> list[str]:
    return [
        "frontend MAGI_gateway from MAGI_common",
        *_binds(settings),
        # Of a request's own text only its path and the model that it names, as much as a line has room for.
        "  log-format "
        + literal(
            f'{{"time":"%t","client":"%[var(txn.client),json(utf8s)]","model":"%[var(txn.model),{SHOWN}]",'
            f'"path":"%[var(txn.path),{SHOWN}]","backend":"%b","server":"%s","status":%ST,"queue_ms":%Tw,'
            '"connect_ms":%Tc,"first_byte_ms":%Tr,"total_ms":%Ta,"end":"%ts","retries":"%rc","bytes":%B,"sent":%U}'
        ),
        "  http-request set-var(txn.path) path",
        "  http-request set-var(txn.begin) date(0,ms)",
        *first_byte_lines(),
        *_headers(),
        '  http-request return status 200 content-type application/json string \'{"status":"ok"}\' if { path /health }',
        *_keys(settings, route),
        *_paths(settings),
        *_list(route),
        *conversation_lines(bool(route.clients)),
        *_model(),
        *_choice(route),
        *load_lines(settings),
        *key_lines(settings.stickiness),
        "  use_backend %[var(txn.backend)]",
    ]


def _headers() -> list[str]:
    """Requests of any sender may be no larger than this before their key is known."""
    kind, code = "invalid_request_error", "headers_too_large"
    large = error_json(f"The headers of the request are larger than {MAX_HEADER_BYTES} bytes.", kind, code)
    long = error_json(f"The path of the request is longer than {MAX_HEADER_BYTES} bytes.", kind, "uri_too_long")
    return [
        refuse(431, large, f"{{ req.hdrs,length gt {MAX_HEADER_BYTES} }}"),
        refuse(414, long, f"{{ url,length gt {MAX_HEADER_BYTES} }}"),
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
            refuse(401, unknown, "{ var(txn.client) -m len 0 }", " hdr WWW-Authenticate Bearer"),
        ]
    else:
        lines.append("  http-request set-var(txn.client) src")
    over = "{ var(txn.limit) -m int gt 0 } { sc_http_req_rate(0,MAGI_clients),sub(txn.limit) gt 0 }"
    busy = error_json("The rate limit of this API key is reached.", "rate_limit_error", "rate_limit_exceeded")
    return [
        *lines,
        "  http-request set-var(txn.limit) "
        f'var(txn.client),map_str_int({folder}/limits.map",{settings.rate_per_minute})',
        "  http-request track-sc0 var(txn.client) table MAGI_clients",
        f"  http-request sc-inc-gpc0(0) if {over}",
        refuse(429, busy, over, " hdr Retry-After 5"),
        *(token_lines() if is_counted(route.clients, settings.count_tokens) else []),
        # Who has the fewest requests under way is served first: a flood delays no one else. priority is added.
        f'  http-request set-var(txn.priority) var(txn.client),map_str_int({folder}/priorities.map",0)',
        "  http-request set-priority-class sc_trackers(0,MAGI_clients),add(txn.priority)",
    ]


def _paths(settings: Settings) -> list[str]:
    kind = "invalid_request_error"
    return [
        f"  acl is_list path {' '.join(LIST_PATHS)}",
        f"  acl is_post path {' '.join(POST_PATHS)}",
        f"  acl is_stream path {STREAM_PATH}",
        *path_lines(),
        refuse(404, error_json("This path is not served here.", kind, "not_found"), "!is_list !is_post !is_stream"),
        refuse(405, error_json("Use GET.", kind, "method_not_allowed"), "is_list !METH_GET", " hdr Allow GET"),
        refuse(405, error_json("Use POST.", kind, "method_not_allowed"), "is_post !METH_POST", " hdr Allow POST"),
        refuse(
            405,
            error_json("Use GET or DELETE.", kind, "method_not_allowed"),
            "is_stream !METH_GET !METH_DELETE",
            ' hdr Allow "GET, DELETE"',
        ),
        refuse(
            415,
            error_json("Content-Encoding is not supported: send the body as it is.", kind, "unsupported_encoding"),
            "is_post { req.hdr(content-encoding) -m found } !{ req.hdr(content-encoding) -i identity }",
        ),
        refuse(
            413,
            error_json(f"The request is larger than {settings.max_body} bytes.", kind, "request_too_large"),
            f"is_post {{ req.body_size gt {settings.max_body} }}",
        ),
    ]


def _list(route: Route) -> list[str]:
    lines = list_lines()
    for backend in route.backends:
        entry = literal("%[var(txn.list)]," + json.dumps(about_model(backend)).replace("%", "%%"))
        # A worker that is being replaced counts no server.
        ready = f"is_list {{ nbsrv({backend.model_id}) gt 0 }} || is_list {{ stopping }}"
        lines.append(f"  http-request set-var-fmt(txn.list) {entry} if {ready}")
    answer = literal('{"object":"list","data":[%[var(txn.list),bytes(1)]]}')
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
        refuse(413, large, f"is_post {{ var(txn.model) -m len 0 }} {{ req.body_len ge {seen} }}"),
        refuse(
            400,
            error_json("The request has no model. GET /v1/models lists them.", kind, "missing_model", "model"),
            "is_post { var(txn.model) -m len 0 }",
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
        "if is_post !{ var(txn.candidates) -m found }"
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
            refuse(
                403,
                denied,
                f'{{ var(txn.client),map_str({folder}/restricted.map") -m found }} '
                f'!{{ var(txn.grant),map_str({folder}/grants.map") -m found }}',
            ),
        ]
    return lines


def _split(name: str, shares: Sequence[tuple[str, int]]) -> list[str]:
    """Requests for a name go to its models by their shares, and to the others where the chosen one has no server."""
    asked = f"{{ var(txn.model) -m str {literal(name)} }}"
    lines = [f"  http-request set-var(txn.dice) rand(100) if {asked}"]
    below = 100
    for model, percent in shares:
        candidates = ":".join([model, *(other for other, _percent in shares if other != model)])
        # The last condition that holds decides: each model has the numbers below what the earlier ones leave.
        chosen = f"{{ var(txn.dice) -m int lt {below} }}"
        lines.append(f"  http-request set-var(txn.candidates) str({candidates}) if {asked} {chosen}")
        below -= percent
    return lines
