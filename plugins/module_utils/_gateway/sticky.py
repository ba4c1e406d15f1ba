# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Requests that go to the server of earlier ones: by gateway_stickiness, and those of a conversation with an id.

llama-server continues its answer to a request with X-Conversation-Id whose client is gone, and GET /v1/stream gives
it from any byte. Only the server that has the conversation can do that. Clients choose these ids themselves: a server
is given a digest of client and id, so that no client can read another one's.
"""

from __future__ import annotations

import re
import zlib

from .fleet import GatewayError
from .words import FOLDER, error_json, refuse

STREAM_PATH = "/v1/stream"
CONVERSATIONS = "MAGI_conversations"
_STICKY = "MAGI_sticky"
_PEERS = "MAGI_self"
# The name of the only peer: the process itself, which hands its tables to the one that replaces it.
PEER = "gateway"
_HEADER = re.compile(r"header:([A-Za-z0-9][A-Za-z0-9-]{0,63})")
# What a conversation begins with stays the same in all of its requests.
_START = (
    "$.system",
    "$.instructions",
    "$.messages[0].content",
    "$.messages[0].content[0].text",
    "$.input",
    "$.input[0].content",
)
# Behind a message of the system comes the user's first one; behind the user's first one an answer, later on.
_SECOND = ("$.messages[1].content", "$.messages[1].content[0].text")
_PROMPT_BYTES = 256


def check_stickiness(value: str) -> None:
    """Raise GatewayError for a gateway_stickiness that is none of those that there are."""
    if value not in ("", "user", "conversation") and not _HEADER.fullmatch(value):
        raise GatewayError(
            f"gateway_stickiness must be user, conversation, header:NAME such as header:X-Session-Id, or empty, not "
            f"{value!r:.60}."
        )


def number_of(model: str) -> int:
    """The number by which a conversation keeps its model; the same in every process."""
    return zlib.crc32(model.encode()) & 0x7FFFFFFF or 1


def table_lines(stickiness: str) -> list[str]:
    """The tables, which a process hands on to the one that replaces it."""
    lines = [
        f"peers {_PEERS}",
        f'  peer {PEER} "unix@${{{FOLDER}_RUN}}/peers.sock"',
        f"backend {CONVERSATIONS} from MAGI_common",
        f"  stick-table type string len 64 size 100k expire 1h store gpt0 {handed_on()}",
    ]
    if stickiness:
        lines += [
            f"backend {_STICKY} from MAGI_common",
            f"  stick-table type string len 64 size 100k expire 1h {handed_on()}",
        ]
    return lines


def handed_on() -> str:
    """The words of a table that outlives a reload."""
    return f"peers {_PEERS}"


def conversation_lines(has_clients: bool) -> list[str]:
    """Which conversation a request belongs to, and for GET /v1/stream its model; after the paths are known."""
    kind = "invalid_request_error"
    owner = "%[var(txn.client)]|" if has_clients else "|"
    found = "{ var(txn.conversation) -m found }"
    missing = error_json("The request names no conversation: send conv_id.", kind, "missing_conversation", "conv_id")
    unknown = error_json("No server has this conversation.", kind, "conversation_not_found", "conv_id")
    return [
        "  http-request set-var(txn.conversation) req.hdr(x-conversation-id) if is_post",
        "  http-request set-var(txn.conversation) url_param(conv_id),url_dec(1) if is_stream",
        refuse(400, missing, "is_stream !{ var(txn.conversation) -m len gt 0 }"),
        f'  http-request set-var-fmt(txn.conversation) "{owner}%[var(txn.conversation)]" if {found}',
        f"  http-request set-var(txn.conversation) var(txn.conversation),sha2(256),hex if {found}",
        f"  http-request track-sc1 var(txn.conversation) table {CONVERSATIONS} if is_post {found}",
        f"  http-request set-header X-Conversation-Id %[var(txn.conversation)] if {found}",
        f"  http-request set-var(txn.backend) var(txn.conversation),table_gpt0({CONVERSATIONS}),"
        f'map_str("${{{FOLDER}}}/numbers.map") if is_stream',
        refuse(404, unknown, "is_stream !{ var(txn.backend) -m found }"),
        "  http-request set-var(txn.model) var(txn.backend) if is_stream",
        "  http-request set-var(txn.from) int(0) if is_stream",
        "  http-request set-var(txn.from) url_param(from),add(0) if is_stream { url_param(from) -m int ge 0 }",
        '  http-request set-query "conv_id=%[var(txn.conversation)]&from=%[var(txn.from)]" if is_stream',
    ]


def key_lines(stickiness: str) -> list[str]:
    """What a request sticks by, once its backend is known."""
    if not stickiness:
        return []
    if stickiness == "conversation":
        start = _conversation_start()
    elif stickiness == "user":
        start = ["  http-request set-var(txn.sticky) req.body,json_query('$.user') if !is_form"]
    else:
        start = [f"  http-request set-var(txn.sticky) req.hdr({stickiness.partition(':')[2]})"]
    owner, found = "%[var(txn.backend)]|%[var(txn.client)]", "{ var(txn.sticky) -m len gt 0 }"
    return [
        *start,
        # Names of users and sessions mean something for one client and model only.
        f'  http-request set-var-fmt(txn.sticky) "{owner}|%[var(txn.sticky)]" if {found}',
        f"  http-request set-var(txn.sticky) var(txn.sticky),sha2(256),hex if {found}",
        f"  http-request unset-var(txn.sticky) if !{found}",
    ]


def _conversation_start() -> list[str]:
    parts = [(path, "") for path in _START] + [(path, " begins_with_system") for path in _SECOND]
    lines = [
        "  http-request set-var(txn.role) req.body,json_query('$.messages[0].role') if !is_form",
        "  acl begins_with_system var(txn.role) -m str system developer",
        f"  http-request set-var(txn.part0) req.body,json_query('$.prompt'),bytes(0,{_PROMPT_BYTES}) if !is_form",
    ]
    for number, (path, condition) in enumerate(parts, 1):
        value = f"req.body,json_query('{path}'),sha2(256),hex"
        lines.append(f"  http-request set-var(txn.part{number}) {value} if !is_form{condition}")
    together = "".join(f"%[var(txn.part{number})]" for number in range(len(parts) + 1))
    return [*lines, f'  http-request set-var-fmt(txn.sticky) "{together}"']


def backend_stick_lines(model: str, stickiness: str) -> list[str]:
    """The first of these that knows a server decides."""
    sticky = [f"  stick on var(txn.sticky) table {_STICKY}"] if stickiness else []
    return [
        f"  http-request sc-set-gpt0(1) {number_of(model)} if {{ var(txn.conversation) -m found }}",
        f"  stick on var(txn.conversation) table {CONVERSATIONS}",
        *sticky,
    ]
