# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The part of HAProxy's configuration for the servers: a backend for each model."""

from __future__ import annotations

import json

from .._core.values import ANY_ADDRESS
from .fleet import Backend
from .limits import Limits
from .server_lines import CHECKS, server_line
from .settings import Route, Settings
from .sticky import backend_stick_lines
from .words import FOLDER, error_json, literal, refuse

# It says which model a server has, and wants the servers' key.
MODELS_PATH = "/v1/models"
# The section that says where servers' names are looked up again.
NAMES = "MAGI_names"


def backend_lines(settings: Settings, route: Route) -> list[str]:
    lines = [
        "defaults MAGI_models from MAGI_common",
        "  balance leastconn",
        f"  default-server {CHECKS}{f' resolvers {NAMES}' if settings.resolves else ''}",
        "  option httpchk",
        "  http-request del-header X-Model",
        "  http-request del-header X-Api-Key",
        "  http-request del-header Authorization",
    ]
    for backend in route.backends:
        lines += _backend(settings, backend, route.limits[backend.model_id])
    return lines


def check_place(settings: Settings) -> tuple[str, int]:
    """Where servers on demand are checked: by the gateway itself, since a check of their own would start them."""
    host = "127.0.0.1" if settings.metrics_host in ANY_ADDRESS else settings.metrics_host
    return host, settings.metrics_port


def known_models(route: Route) -> list[str]:
    """What the gateway answers to those checks: the models that have servers on demand."""
    models = [
        {"id": backend.model_id} for backend in route.backends if any(server.is_on_demand for server in backend.servers)
    ]
    if not models:
        return []
    answer = literal(json.dumps({"data": models}, separators=(",", ":")))
    return [
        f"  http-request return status 200 content-type application/json string {answer} if {{ path {MODELS_PATH} }}"
    ]


def _backend(settings: Settings, backend: Backend, limits: Limits) -> list[str]:
    model = backend.model_id
    secret = f"str({model}),map_str(${{{FOLDER}}}/secrets.map)"
    check_key = literal(f"Bearer {backend.key}".replace("%", "%%"))
    authorization = f" hdr Authorization {check_key}" if backend.key else ""
    full = error_json("Too many requests wait for this model. Try again.", "rate_limit_error", "queue_full")
    return [
        f"backend {model} from MAGI_models",
        *([f"  timeout queue {limits.queue_timeout}s"] if limits.queue_timeout != settings.queue_timeout else []),
        *([f"  timeout server {limits.answer_timeout}s"] if limits.answer_timeout != settings.answer_timeout else []),
        *backend_stick_lines(model, settings.stickiness),
        f"  http-check send meth GET uri {MODELS_PATH} ver HTTP/1.1 hdr Host gateway{authorization}",
        f"  http-check expect string {literal(json.dumps({'id': model}, separators=(',', ':'))[1:-1])}",
        refuse(429, full, f"{{ queue({model}) ge {limits.max_queue} }}", " hdr Retry-After 5"),
        f'  http-request set-header Authorization "Bearer %[{secret}]" if {{ "{secret}" -m found }}',
        f"  http-response set-header X-Magi-Model {literal(model)}",
        f"  http-response set-header X-Magi-Tier {literal(backend.tier or '-')}",
        *(
            server_line(server, check_place(settings), is_sticky=bool(settings.stickiness))
            for server in backend.servers
        ),
    ]
