# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What each module answers: the controller takes these keys and facts of a host's answer, and no others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .._archive.state import STATE
from .._core.documents import (
    ABSOLUTE_PATH,
    NAME,
    NULL,
    NUMBER,
    DocumentError,
    Fields,
    Map,
    Maybe,
    Shape,
    check,
)
from .._core.text import visible_text
from .._deployment.record import RECORD
from .._gateway.fleet import HOST
from .._health.status import STATUS
from .._models.registry_file import REGISTRY
from .._plan.document import PLAN, WAVES
from .._services.table import MANAGERS

_TEXT = (str, NULL)
_COUNT = (int, NULL)
_SECONDS = (*NUMBER, NULL)
_START = Fields({"concurrent": bool, "max_startup_time": NUMBER, "readiness_check_interval": NUMBER})
_HOLDER = Fields(
    {"id": re.compile(r"[^/ ]*/[0-9]{1,7}/[0-9]*( [^\x00-\x1f]{0,255})?"), "text": str, "seconds_left": NUMBER}
)
_HOST = Fields(
    {
        "service_manager": re.compile("|".join(map(re.escape, MANAGERS))),
        "service_manager_missing": bool,
        "supervisord": Maybe(ABSOLUTE_PATH),
        "root": bool,
        "user": str,
        "group": str,
        "user_exists": bool,
        "user_is_ours": bool,
        "sets_groups": bool,
        "api_key_stamp": str,
        "stray_variables": [str],
        "user_ids": [int],
    },
    {"venv_missing": bool, "watchdog": bool, "python": Maybe(ABSOLUTE_PATH)},
)
_RUNTIME = Fields(
    {
        "path": str,
        "installed": bool,
        "version": _TEXT,
        "build": _COUNT,
        "identity": _TEXT,
        "flags": Maybe(Map(dict)),
        "staged": bool,
        "source": str,
        "warnings": [str],
        "openmp": (bool, NULL),
    },
    {"image": Fields({"id": str, "reference": str, "devices": [str], "unset": [str]})},
)
_MODEL = Fields({"id": NAME, "kind": str, "path": str, "architecture": _TEXT, "tier": _TEXT})
_PROFILE = Fields({"name": _TEXT, "description": str, "source": str, "start": _START})
_OUTCOME = Fields(
    {
        "name": NAME,
        "port": int,
        "tier": _TEXT,
        "pid": _COUNT,
        "state": str,
        "is_ready": bool,
        "is_settled": bool,
        "became_ready": bool,
        "seconds_to_ready": _SECONDS,
        "token_seconds": _SECONDS,
        "tokens_per_second": _SECONDS,
        "restarts": int,
        "detail": _TEXT,
        "fix": _TEXT,
        "log_tail": [str],
    }
)
_IDLENESS = Fields(
    {"name": NAME, "idle": bool, "is_settled": bool, "seconds": NUMBER, "requests": int, "detail": _TEXT}
)
_CHANGED_SERVER = Fields(
    {"name": NAME, "action": str}, {"signal": _TEXT, "error": _TEXT, "seconds": _SECONDS, "stuck": bool}
)
_MANIFEST_FILE = Fields({"sha256": re.compile("[0-9a-f]{64}"), "size": int, "source": _TEXT})
_LOCKED = Fields({"holder": Maybe(_HOLDER)})

_THROUGH_GATEWAY = Fields(
    {
        "name": NAME,
        "ok": bool,
        "via": re.compile("host"),
        "seconds": NUMBER,
        "streamed_seconds": _SECONDS,
        "tokens_per_second": _SECONDS,
        "error": _TEXT,
    }
)

_ASKED = Fields(
    {
        "name": NAME,
        "model_id": NAME,
        "port": int,
        "prompts": int,
        "tokens_per_second": _SECONDS,
        "reference": _SECONDS,
        "problems": [Fields({"prompt": str, "property": str, "detail": str})],
    }
)
_FETCHING = Fields(
    {"complete": bool, "error": str},
    {
        **dict.fromkeys(("wanted", "have", "resumed", "source", "hosts", "controller", "sent", "port", "beat"), int),
        "hosts_reached": int,
        "dropped": Map(str),
        "unreached": Map(str),
        "idle_seconds": NUMBER,
        "quiet_seconds": NUMBER,
        "pieces": Map(re.compile("[0-9a-f]*")),
    },
)
_KNOWN_FILE = Fields({"name": str, "size": _COUNT, "sha256": _TEXT, "wanted": bool, "state": str})
_PIECES = Fields({"schema_version": int, "size": int, "sha256": str, "piece_bytes": int, "pieces": [str]})

_HOW = re.compile("missing|nothing|maps|servers|reload|start|stop")

# By module: what it answers unless it fails.
ANSWERS: dict[str, Fields] = {
    "begin_run": Fields(_LOCKED.required, {"state": STATE}),
    "backup": Fields({"state": STATE}),
    "restore": Fields({"written": [str]}),
    "run_lock": _LOCKED,
    "host_facts": Fields({}),
    "runtime": Fields({"placed": bool, "method": str, "tried": [Fields({"method": str, "result": str})]}),
    "gguf_registry": Fields(
        {"complete": bool, "progress": Map(int)},
        {
            "resume": str,
            "changes": Map([str]),
            "warned": [str],
            "manifest": Fields({"schema_version": int, "files": Map(_MANIFEST_FILE)}),
            "without_checksum": [str],
            "differences": Map([str]),
        },
    ),
    "model_fetch": Fields(
        {},
        {
            "files": [_KNOWN_FILE],
            "listed": Map(Fields({"pieces": _PIECES, "from": re.compile("host"), "mirror": re.compile("")})),
            "started": bool,
            "status": _FETCHING,
            "stopped": bool,
        },
    ),
    "server_plan": Fields(
        {"drift": Map(str), "deployed": Map(str)}, {"rehearsal": Fields({"lines": [str], "problems": [str]})}
    ),
    "launch_configs": Fields({"written": [str], "removed": [str]}),
    "rollback": Fields({"restored": [str], "written": [str], "removed": [str]}),
    "server_state": Fields({"servers": [_CHANGED_SERVER]}, {"deployed": [NAME], "waves": WAVES, "start_seconds": int}),
    "wait_for_health": Fields(
        {
            "servers": [_OUTCOME],
            "ready": int,
            "complete": bool,
            "failed_servers": [str],
            "unprotected_servers": [str],
        },
        {"running": Map(str), "released": bool},
    ),
    "wait_until_idle": Fields({"servers": [_IDLENESS], "complete": bool}),
    "server_info": Fields({"status": STATUS.shape, "drift": Map(str), "start": _START}),
    "server_log": Fields({"logs": [Fields({"name": NAME, "lines": [Fields({"text": str, "at": _TEXT})]})]}),
    "verify": Fields({"deployed": RECORD.required["servers"], "refused": [str]}),
    "golden_prompts": Fields({"servers": [_ASKED]}),
    "gateway_members": Fields(
        {"members": HOST, "api_keys": [str], "left_out": [str], "running": [str]},
        {"holder": Maybe(_HOLDER), "is_locked": bool},
    ),
    "gateway_verify": Fields({"routed": [Fields({"model_id": NAME, "kind": str})], "answers": [_THROUGH_GATEWAY]}),
    "gateway_state": Fields(
        {"how": _HOW, "models": Map(int, NAME), "url": str},
        {"not_ready": [str], "serving": [str], "exists": bool, "is_reached": bool, "ready": Map(Map(int), NAME)},
    ),
    "watchdog": Fields({"written": [str], "removed": [str]}),
    "teardown": Fields(
        {"stopped": [str], "removed": [str]}, {"ended": Map(str), "user_kept_for": [str], "kept": Map([str])}
    ),
}
# By module: the facts that it sets unless it fails. A registry of many models is a short one.
FACTS: dict[str, dict[str, Shape]] = {
    "begin_run": {"llama_host": _HOST},
    "host_facts": {"llama_host": _HOST},
    "runtime": {"llama_runtime": _RUNTIME},
    "gguf_registry": {
        "llama_registry": Fields(
            {**REGISTRY.shape.required, "models": [_MODEL], "scan_paths": [str], "total": int},
            {key: shape for key, shape in REGISTRY.shape.optional.items() if key not in ("scan_paths", "total")},
        )
    },
    "server_plan": {"llama_plan": PLAN.shape},
    "rollback": {"llama_plan": PLAN.shape, "llama_profile": _PROFILE},
}
# What any module may answer besides, as Ansible knows it.
_COMMON = {
    *(
        "changed",
        "failed",
        "unreachable",
        "skipped",
        "msg",
        "rc",
        "warnings",
        "deprecations",
        "exception",
        "invocation",
    ),
    *("diff", "module_stdout", "module_stderr", "stdout", "stderr"),
    *("ansible_job_id", "started", "finished", "results_file"),
}
# Texts that Ansible shows as they are.
_SHOWN = {"msg", "module_stdout", "module_stderr", "stdout", "stderr"}
MAX_WARNINGS = 100
# Ansible adds it itself.
_INTERPRETER = re.compile(r"(ansible_)?discovered_interpreter_\w+")


def held_answer(module: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """A host's answer with the keys and facts that its module has, and no others. module is without a namespace.

    Raises DocumentError where it has another fact, or a value of the wrong shape.
    """
    shape, allowed = ANSWERS[module], FACTS.get(module, {})
    known = _COMMON | shape.required.keys() | shape.optional.keys()
    kept = {key: value for key, value in answer.items() if key in known or key.startswith("_ansible_")}
    has_failed = any(answer.get(key) for key in ("failed", "unreachable", "skipped"))
    where = f"the answer of {module}"
    facts = answer.get("ansible_facts") or {}
    check(facts, dict, f"{where}.ansible_facts")
    other = sorted(str(name) for name in facts if name not in allowed and not _INTERPRETER.fullmatch(str(name)))
    if other:
        raise DocumentError(f"{where} has the fact {other[0]!r:.60}, which this module does not set")
    # A scan that is not complete has no fact yet.
    if not has_failed and "ansible_job_id" not in answer and answer.get("complete") is not False:
        required = Fields(allowed)
        check(facts, required, f"{where}.ansible_facts")
    if has_failed or "ansible_job_id" in answer:
        shape = Fields({}, {**shape.required, **shape.optional})
    check(kept, shape, where)
    check(kept, Fields({}, {"changed": bool, "failed": bool, "unreachable": bool, "msg": str}), where)
    for key in _SHOWN & kept.keys():
        kept[key] = visible_text(kept[key]) if isinstance(kept[key], str) else kept[key]
    if isinstance(kept.get("warnings"), list):
        texts = [visible_text(item) if isinstance(item, str) else item for item in kept["warnings"]]
        kept["warnings"] = texts[:MAX_WARNINGS]
    return {**kept, "ansible_facts": dict(facts)} if facts else kept
