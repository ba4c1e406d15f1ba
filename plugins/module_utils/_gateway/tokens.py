# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Tokens of clients: counted in servers' answers, limited by minute and by day or month, and shown as metrics.

HAProxy itself cannot read a number out of an answer that streams. A filter in Lua does, only where a client has a
limit of tokens or gateway_count_tokens is set. It counts each event of a stream as a token at once, and corrects that
by what the server says at the end, so that a client which leaves early has what it was sent on its account.

What clients have used outlives reloads and restarts by a journal, to which every process appends what it has counted,
and in which it reads what others have.
"""

from __future__ import annotations

from collections.abc import Sequence

from .clients import Client
from .words import error_json, literal

TOKENS = r"""-- Ansible managed (magi.llama): changes made here are lost in the next run
local config, run = os.getenv("MAGI_GATEWAY"), os.getenv("MAGI_GATEWAY_RUN")
local per_minute = Map.new(config .. "/tokens.map", Map._str)
local quotas = Map.new(config .. "/quotas.map", Map._str)
local JOURNAL, MAX_JOURNAL = run .. "/tokens.journal", 1048576
-- This process among those that write the journal.
local ME = string.format("%x.%x", core.now().sec, core.now().usec)
-- By client: tokens of this minute, and of each day of this month and the previous one; and since this process began.
local minutes, days, totals = {}, {}, {}
-- What is not in the journal yet, by "client day"; and how far the journal was read.
local fresh, position = {}, 0

local function add_to_day(client, day, tokens)
  local found = days[client] or {}
  days[client] = found
  found[day] = (found[day] or 0) + tokens
end

local function count(client, tokens)
  if tokens == 0 or client == "" then return end
  local time = core.now().sec
  local minute, day = math.floor(time / 60), os.date("!%Y%m%d", time)
  local entry = minutes[client]
  if not entry or entry.minute ~= minute then
    entry = {minute = minute, tokens = 0}
    minutes[client] = entry
  end
  entry.tokens = entry.tokens + tokens
  totals[client] = (totals[client] or 0) + tokens
  add_to_day(client, day, tokens)
  local key = client .. " " .. day
  fresh[key] = (fresh[key] or 0) + tokens
end

local function used_in(client, period, time)
  local prefix, sum = os.date(period == "day" and "!%Y%m%d" or "!%Y%m", time), 0
  for day, tokens in pairs(days[client] or {}) do
    if day:sub(1, #prefix) == prefix then sum = sum + tokens end
  end
  return sum
end

local function read_journal()
  local file = io.open(JOURNAL, "r")
  if not file then return 0 end
  local size = file:seek("end")
  -- Another process has made it shorter: what it has is known.
  if size < position then position = size end
  file:seek("set", position)
  for line in file:lines() do
    local who, client, day, tokens = line:match("^(%S+) (%S+) (%d+) (-?%d+)$")
    if client and who ~= ME then add_to_day(client, day, tonumber(tokens)) end
  end
  position = file:seek("end")
  file:close()
  return position
end

local function shorten_journal()
  local file = io.open(JOURNAL .. ".new", "w")
  if not file then return end
  local month = os.date("!%Y%m")
  for client, found in pairs(days) do
    for day, tokens in pairs(found) do
      if day:sub(1, 6) >= month then
        file:write("- " .. client .. " " .. day .. " " .. string.format("%d", tokens) .. "\n")
      else
        found[day] = nil
      end
    end
  end
  position = file:seek("end")
  file:close()
  os.rename(JOURNAL .. ".new", JOURNAL)
end

local function write_journal()
  local lines = {}
  for key, tokens in pairs(fresh) do
    lines[#lines + 1] = ME .. " " .. key .. " " .. string.format("%d", tokens) .. "\n"
  end
  if #lines == 0 then return end
  local file = io.open(JOURNAL, "a")
  if not file then return end
  file:write(table.concat(lines))
  file:close()
  fresh = {}
end

read_journal()
core.register_task(function()
  while true do
    core.sleep(2)
    write_journal()
    if read_journal() > MAX_JOURNAL then shorten_journal() end
  end
end)

-- Sets txn.over and txn.retry_after where the client has used up its tokens.
core.register_action("magi_tokens", {"http-req"}, function(txn)
  local client, time = txn:get_var("txn.client") or "", core.now().sec
  local limit, quota = tonumber(per_minute:lookup(client) or 0), quotas:lookup(client)
  local entry = minutes[client]
  if limit > 0 and entry and entry.minute == math.floor(time / 60) and entry.tokens >= limit then
    txn:set_var("txn.over", "minute")
    txn:set_var("txn.retry_after", 60 - time % 60)
  end
  local period, most = (quota or ""):match("^(%a+) (%d+)$")
  if period and used_in(client, period, time) >= tonumber(most) then
    local now = os.date("!*t", time)
    local left = 86400 - time % 86400
    if period == "month" then
      local last = os.date("!*t", os.time({year = now.year, month = now.month + 1, day = 0, hour = 12})).day
      left = left + (last - now.day) * 86400
    end
    txn:set_var("txn.over", period)
    txn:set_var("txn.retry_after", left)
  end
end)

local Tokens = {id = "Tokens of clients", flags = filter.FLT_CFG_FL_HTX}
Tokens.__index = Tokens

function Tokens:new()
  return setmetatable({counted = 0, rest = "", found = {}}, Tokens)
end

function Tokens:start_analyze(txn, channel)
  filter.register_data_filter(self, channel)
end

-- In a JSON text such a name ends with a quote only as a name, not within a text.
local NAMES = {
  "total_tokens", "cache_n", "prompt_n", "predicted_n", "input_tokens", "cache_read_input_tokens", "output_tokens",
}

function Tokens:http_payload(txn, message)
  if not message.channel:is_resp() then return end
  local path = txn:get_var("txn.path") or ""
  local data = message:body()
  if not data or data == "" or path:find("count_tokens", 1, true) or path:find("tokenize", 1, true) then return end
  local client = txn:get_var("txn.client") or ""
  local text = self.rest .. data
  -- Numbers of tokens are at the beginning or at the end of a long answer.
  if #text > 16384 then text = text:sub(1, 8192) .. text:sub(-8192) end
  for _, name in ipairs(NAMES) do
    for number in text:gmatch('"' .. name .. '"%s*:%s*(%d+)[^%d]') do
      self.found[name] = math.max(self.found[name] or 0, tonumber(number))
    end
  end
  local _, events = data:gsub("\ndata: {", "")
  if data:sub(1, 7) == "data: {" then events = events + 1 end
  local found = self.found
  local said = found.total_tokens
  if not said and found.predicted_n then said = (found.cache_n or 0) + (found.prompt_n or 0) + found.predicted_n end
  if not said and found.output_tokens and found.output_tokens > 0 then
    said = (found.cache_read_input_tokens or 0) + (found.input_tokens or 0) + found.output_tokens
  end
  local sum = math.max(self.counted, said or self.counted + events)
  count(client, sum - self.counted)
  self.counted = sum
  self.rest = text:sub(-64)
end

core.register_filter("magi_tokens", Tokens, function(one) return one end)

magi_tokens_used = totals
"""


def is_counted(clients: Sequence[Client], count_tokens: bool) -> bool:
    """Whether tokens are counted at all."""
    return count_tokens or any(client.tokens_per_minute or client.quota_tokens for client in clients)


def token_lines() -> list[str]:
    """What a frontend does to count and limit tokens, once the client is known."""
    over = error_json("This API key has used up its tokens of this @.", "rate_limit_error", "token_limit_exceeded")
    text = literal(over.replace("%", "%%").replace("@", "%[var(txn.over)]"))
    return [
        "  filter lua.magi_tokens",
        "  http-request lua.magi_tokens",
        "  http-request sc-inc-gpc0(0) if { var(txn.over) -m found }",
        f"  http-request return status 429 content-type application/json lf-string {text} "
        'hdr Retry-After "%[var(txn.retry_after)]" if { var(txn.over) -m found }',
    ]
