# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The console behind a gateway: it may start and stop servers, which a gateway cannot, and does so for operators."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from .._core.exchange import authority
from .._core.values import is_loopback
from .fleet import GatewayError
from .server_lines import ADDRESSES
from .settings import Settings
from .words import FOLDER, SHOWN, error_json, http_error, literal

# No id of a model begins like this: it is a backend's name, and the token's in the map of secrets.
BACKEND = "MAGI_console"
# The console waits so long for a run, and answers then that it continues.
WAIT_SECONDS = 300
MAX_TOKEN_BYTES = 4096
# Headers of a client's request that the console would believe: credentials, where it comes from, and the key of a
# request that was asked before, which is one operator's and not of all that share the gateway's token.
NOT_FOR_THE_CONSOLE = (
    *("Authorization", "Cookie", "X-Api-Key", "X-Model", "Idempotency-Key", "Origin", "Forwarded"),
    *("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto"),
)
_TOKEN = re.compile(r"[\x21-\x7e]{8,512}")
_WHY = "@WHY@"


def console_address(settings: Settings) -> tuple[str, int, bool]:
    """The console's host and port, and whether it has TLS. Raises GatewayError for a URL that is none of a console."""
    url = settings.console_url
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise GatewayError(f"gateway_console_url {url!r} is not a URL: {error}.") from error
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.path.strip("/") or parts.query:
        raise GatewayError(
            f"gateway_console_url {url!r} must be http or https with host and port only, such as http://127.0.0.1:8000."
        )
    has_tls = parts.scheme == "https"
    if not has_tls and not is_loopback(host):
        raise GatewayError(
            f"gateway_console_url {url!r} would send the console's token over the network as it is: put the console "
            "behind TLS and use https, or let it listen on the gateway's own host, on 127.0.0.1."
        )
    return host, port or (443 if has_tls else 80), has_tls


def read_token(settings: Settings, used: Mapping[str, str], warnings: list[str]) -> str:
    """The console's token. The one in use, with a warning, where the file cannot be read. Raises GatewayError.

    used has the files of the configuration in use.
    """
    path = settings.console_token_file
    if not path:
        raise GatewayError(
            "gateway_console_url is set without gateway_console_token_file: write a token of the console with the role "
            "operate to a file on the gateway that only root can read, and name it there."
        )
    try:
        with open(path, encoding="ascii") as stream:
            token = stream.read(MAX_TOKEN_BYTES).strip()
    except (OSError, ValueError) as error:
        why = f"gateway_console_token_file {path} cannot be read on the gateway: "
        why += str(getattr(error, "strerror", None) or error)
        lines = used.get("secrets.map", "").splitlines()
        known = [line.partition(" ")[2] for line in lines if line.startswith(f"{BACKEND} ")]
        if not known:
            raise GatewayError(f"{why}. Write a token of the console to it.") from error
        warnings.append(f"{why}; the token in use is kept.")
        return known[0]
    if not _TOKEN.fullmatch(token):
        raise GatewayError(
            f"gateway_console_token_file {path} must have one token of 8 to 512 characters, in one line."
        )
    return token


def operate_lines() -> list[str]:
    """Which requests to load or unload a model are the console's: those that a server cannot answer by itself."""
    model = "%[var(txn.backend)]"
    return [
        "  http-request set-var(txn.operates) str(unload) if is_unload",
        "  http-request set-var(txn.operates) str(load) if is_load !{ var(txn.backend),nbsrv gt 0 }",
        "  acl is_operated var(txn.operates) -m found",
        f"  http-request set-path /api/v1/models/{model}/%[var(txn.operates)] if is_operated",
        f"  http-request set-query wait={WAIT_SECONDS} if is_operated",
        f"  http-request set-var(txn.backend) str({BACKEND}) if is_operated",
    ]


def console_lines(settings: Settings) -> list[str]:
    """The backend; its answers are those of llama-server's router, and its errors as those of the gateway."""
    host, port, has_tls = console_address(settings)
    tls = f" ssl verify required ca-file @system-ca sni str({host}) verifyhost {host}" if has_tls else ""
    secret = f"str({BACKEND}),map_str(${{{FOLDER}}}/secrets.map)"
    away = "The console, which starts and stops servers for operators, does not answer."
    slow = "The console did not answer in time. Its jobs say what became of it."
    failed = error_json(_WHY, "server_error", "console_failed").replace("%", "%%")
    unknown = error_json(_WHY, "invalid_request_error", "model_not_found", "model").replace("%", "%%")
    why = f"The console: %[var(txn.why),{SHOWN}]"
    return [
        f"backend {BACKEND} from MAGI_common",
        # It has no checks, so nothing would end a state of an earlier process: new servers begin as stopped there.
        "  load-server-state-from-file none",
        "  timeout connect 5s",
        f"  timeout server {WAIT_SECONDS + 30}s",
        *(f"  http-request del-header {name}" for name in NOT_FOR_THE_CONSOLE),
        f'  http-request set-header Authorization "Bearer %[{secret}]"',
        "  http-response return status 200 content-type application/json string '{\"success\": true}' "
        "if { status 200:202 }",
        "  http-response wait-for-body time 5s",
        "  http-response set-var(txn.why) 'str(\"it gives no reason\")'",
        "  http-response set-var(txn.why) res.body,json_query('$.detail')",
        *(
            f"  http-response return status {status} content-type application/json lf-string "
            f"{literal(text.replace(_WHY, why))}{condition}"
            for status, text, condition in ((404, unknown, " if { status 404 }"), (502, failed, ""))
        ),
        http_error(503, away, "server_error", "console_unreachable", retry="10"),
        http_error(504, slow, "server_error", "console_timeout"),
        f"  server console {authority(host, port)} {' '.join(ADDRESSES)}{tls}",
    ]
