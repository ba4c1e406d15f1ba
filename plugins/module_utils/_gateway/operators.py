# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What clients that are operators may do besides: see which models are loaded, and load one, as llama-server's router.

A model is loaded by a request that costs its server nothing, as any request starts a server on demand. The gateway has
no rights on hosts, so it cannot start or stop other servers: the console does. Without one unloading is refused, with
what does it instead.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .console import operate_lines
from .fleet import Backend
from .settings import Route, Settings
from .words import FOLDER, error_json, refuse

LOAD_PATH, UNLOAD_PATH = "/models/load", "/models/unload"
# Without a text it answers that there are no tokens, at once, in a server of any kind of model.
CHEAPEST_PATH = "/tokenize"
UNLOAD_HINT = (
    "A gateway without gateway_console_url cannot stop a server. Start the model on demand in the profile, with "
    "idle_stop, or run stop.yml -e servers=NAME, with the server's name in status.yml."
)

# Everything goes through the admin socket, as for the metrics. A file has the models, in the order of the list.
MODELS = r"""-- Ansible managed (magi.llama): changes made here are lost in the next run
local idle = Map.new(os.getenv("MAGI_GATEWAY") .. "/demand.map", Map._str)
local models = {}

-- A change of models is a reload, so they are read once.
for line in io.lines(os.getenv("MAGI_GATEWAY") .. "/listed.txt") do
  local id, about = line:match("^(%S+) (.*)}$")
  models[#models + 1] = {id = id, about = about}
end

-- Whether a server is in memory. One on demand is while it has requests, and for its idle time after the last one came.
local function is_loaded(name, row)
  if not row.status:find("^UP") then return false end
  local seconds = tonumber(idle:lookup(name))
  if not seconds or row.sessions > 0 then return true end
  return row.last >= 0 and (seconds == 0 or row.last < seconds)
end

local function answer(applet, status, text)
  applet:set_status(status)
  applet:add_header("content-length", #text)
  applet:add_header("content-type", "application/json")
  if status == 503 then applet:add_header("retry-after", "@RETRY@") end
  applet:start_response()
  applet:send(text)
end

core.register_service("magi_models", "http", function(applet)
  local rows, loaded, ready, parts = magi_servers(), {}, {}, {}
  -- Each model has a server, so the admin socket is silent: an empty list would say that there are no models.
  if #models > 0 and not next(rows) then return answer(applet, 503, [[@BUSY@]]) end
  -- Only the router's own list has models without a server that is ready.
  local has_all = applet.path == "/models"
  for name, row in pairs(rows) do
    if row.status:find("^UP") then ready[row.backend] = true end
    if is_loaded(name, row) then loaded[row.backend] = true end
  end
  for _, model in ipairs(models) do
    local value = loaded[model.id] and "loaded" or "unloaded"
    if has_all or ready[model.id] then
      parts[#parts + 1] = model.about .. ', "status": {"value": "' .. value .. '"}}'
    end
  end
  answer(applet, 200, '{"object": "list", "data": [' .. table.concat(parts, ", ") .. "]}")
end)
"""
BUSY_RETRY_SECONDS = 5


def models_text() -> str:
    """The script that HAProxy runs."""
    busy = error_json("The gateway is too busy to say which models are loaded.", "server_error", "gateway_busy")
    return MODELS.replace("@RETRY@", str(BUSY_RETRY_SECONDS)).replace("@BUSY@", busy)


def about_model(backend: Backend) -> dict[str, Any]:
    """A model's entry in the lists of models."""
    return {
        "id": backend.model_id,
        "object": "model",
        "owned_by": "magi.llama",
        "meta": {"display_name": backend.display_name, "tier": backend.tier, "kind": backend.kind},
    }


def listed_text(backends: Sequence[Backend]) -> str:
    """The models with their entries, one in each line."""
    return "".join(f"{backend.model_id} {json.dumps(about_model(backend))}\n" for backend in backends)


def idle_by_server(route: Route) -> dict[str, int]:
    """After how many seconds without a request each server on demand is stopped, by backend/server; 0 for never."""
    return {
        f"{backend.model_id}/{server.name}": server.idle_seconds
        for backend in route.backends
        for server in backend.servers
        if server.is_on_demand
    }


def path_lines() -> list[str]:
    """For others than operators these paths are not there."""
    unknown = error_json("This path is not served here.", "invalid_request_error", "not_found")
    return [
        f"  acl is_load path {LOAD_PATH}",
        f"  acl is_unload path {UNLOAD_PATH}",
        f"  acl is_post path {LOAD_PATH} {UNLOAD_PATH}",
        f'  acl is_operator var(txn.client),map_str("${{{FOLDER}}}/operators.map") -m found',
        refuse(404, unknown, "is_load !is_operator"),
        refuse(404, unknown, "is_unload !is_operator"),
    ]


def list_lines() -> list[str]:
    return ["  http-request use-service lua.magi_models if is_operator is_list"]


def load_lines(settings: Settings) -> list[str]:
    """What becomes of a request to load or unload a model, once it is known which, and that the client may use it."""
    refused = refuse(501, error_json(UNLOAD_HINT, "invalid_request_error", "unload_not_supported"), "is_unload")
    return [
        *(operate_lines() if settings.console_url else [refused]),
        "  http-request set-var(txn.loads) bool(true) if is_load",
        f"  http-request set-path {CHEAPEST_PATH} if is_load",
        "  http-response return status 200 content-type application/json string '{\"success\": true}' "
        "if { var(txn.loads) -m found } { status 200 }",
    ]
