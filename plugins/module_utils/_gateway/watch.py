# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Servers that hang while /health answers 200: how they are known, and for how long a server may be busy.

llama-server answers /health and /v1/models by threads that only do that, /slots and /metrics by the loop that computes.
A task in HAProxy, outside of the path of requests, asks each server with requests under way for /slots, and where that
is not served (--no-slots) for /metrics. The loop answers between two batches, so what takes longer than one batch can
take is a hang, however long prompts and answers are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._core.argv import flag_value

# Seconds that an answer may take besides those of a batch; asked every second.
PATIENCE = 4
MAX_PATIENCE = 3600
# llama-server's own.
_BATCH = 2048
# A thread of the slowest processor computes this much in a second. Each byte of a model's weights is two numbers at
# most, each with a multiplication and an addition for every token.
_OPERATIONS = 20_000_000_000
_OPERATIONS_OF_BYTE = 4

# Everything goes through the admin socket: the objects that Lua has of servers do not include those added at run time.
WATCH = r"""-- Ansible managed (magi.llama): changes made here are lost in the next run
local config, run = os.getenv("MAGI_GATEWAY"), os.getenv("MAGI_GATEWAY_RUN")
local secrets = Map.new(config .. "/secrets.map", Map._str)
local patience = Map.new(config .. "/patience.map", Map._str)
local PATIENCE = @PATIENCE@
-- By backend/server: since when a question is unanswered, and which servers are out.
local since, out = {}, {}

local function now()
  local time = core.now()
  return time.sec + time.usec / 1000000
end

local function command(text)
  local socket = core.tcp()
  socket:settimeout(5)
  if not socket:connect("unix@" .. run .. "/admin.sock") then return "" end
  socket:send(text .. "\n")
  local answer = socket:receive("*a") or ""
  socket:close()
  return answer
end

magi_command = command

-- What the server answers, by its first line; and why there is none.
local function line_of(backend, address, path)
  local host, port = address:match("^%[?(.-)%]?:(%d+)$")
  local socket = core.tcp()
  socket:settimeout(60)
  if not host or not socket:connect(host, tonumber(port)) then return nil, "refused" end
  local key = secrets:lookup(backend)
  local authorization = key and "Authorization: Bearer " .. key .. "\r\n" or ""
  socket:send("GET " .. path .. " HTTP/1.0\r\nHost: gateway\r\n" .. authorization .. "\r\n")
  local line, why = socket:receive("*l")
  socket:close()
  return line, why
end

-- Whether the server's loop does not answer within a minute. One that ends, or refuses, does not hang. /slots is first,
-- as each answer of /metrics begins its averages again.
local function is_silent(backend, address)
  local line, why = line_of(backend, address, "/slots")
  if line and not line:find("^HTTP/%S+ 200") then line, why = line_of(backend, address, "/metrics") end
  return not line and why == "timeout"
end

local function ask(name, backend, address)
  since[name] = now()
  core.register_task(function()
    while is_silent(backend, address) do end
    since[name] = nil
  end)
end

local function judge(name, row)
  local silent = since[name] and now() - since[name] or 0
  local limit = tonumber(patience:lookup(name) or PATIENCE)
  if silent >= limit and not out[name] then
    out[name] = true
    core.Warning(name .. " hangs: its loop has not answered for " .. limit .. " s, and gets no requests")
    command("disable health " .. name)
  end
  -- A check under way may still say otherwise.
  if silent >= limit and not row.status:find("^DOWN") then command("set server " .. name .. " health down") end
  if silent >= 2 * limit and row.sessions > 0 then
    command("shutdown sessions server " .. name)
  end
  if out[name] and not since[name] then
    out[name] = nil
    core.Warning(name .. " answers again")
    command("enable health " .. name)
  end
end

local function servers()
  local columns, rows = nil, {}
  for line in command("show stat -1 4 -1"):gmatch("[^\n]+") do
    local cells = {}
    for cell in line:gmatch("([^,]*),?") do cells[#cells + 1] = cell end
    if not columns then
      columns = {}
      for number, title in ipairs(cells) do columns[title:gsub("# ", "")] = number end
    else
      rows[cells[columns.pxname] .. "/" .. cells[columns.svname]] = {
        backend = cells[columns.pxname],
        address = cells[columns.addr],
        status = cells[columns.status],
        sessions = tonumber(cells[columns.scur]) or 0,
        last = tonumber(cells[columns.lastsess]) or -1,
      }
    end
  end
  return rows
end

magi_servers = servers

core.register_task(function()
  core.sleep(1)
  -- A process takes over which checks are off.
  local first = true
  while true do
    for name, row in pairs(servers()) do
      if first and row.status ~= "UP" then command("enable health " .. name) end
      if since[name] or out[name] then judge(name, row) end
      if row.sessions > 0 and not since[name] then ask(name, row.backend, row.address) end
    end
    first = false
    core.msleep(1000)
  end
end)
"""


def watch_text() -> str:
    """The script that HAProxy runs."""
    return WATCH.replace("@PATIENCE@", str(PATIENCE))


def patience_of(server: Mapping[str, Any]) -> int:
    """Seconds for which a server may be busy with one batch, from its entry in the record of what is deployed.

    A GPU is fast enough not to count. On processors it is what a whole batch of a prompt takes at most. One on demand
    may have to start first.
    """
    argv: Sequence[str] = server["argv"]
    memory = server.get("memory") or {}
    on_cpu = max(0, _number(memory.get("weights_bytes"), 0) - _number(memory.get("vram_bytes"), 0))
    threads = max(1, _number(flag_value(argv, "--threads-batch") or flag_value(argv, "--threads"), 1))
    batch = max(1, _number(flag_value(argv, "--batch-size"), _BATCH))
    seconds = batch * on_cpu * _OPERATIONS_OF_BYTE / (threads * _OPERATIONS)
    start = _number(server.get("max_startup_time"), 0) if "on_demand" in server else 0
    return min(MAX_PATIENCE, PATIENCE + int(seconds) + start)


def _number(value: Any, otherwise: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return otherwise
