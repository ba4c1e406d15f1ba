# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Metrics by client, which HAProxy's own exporter does not have: from the table that has a row for each client."""

from __future__ import annotations

METRICS_PATH = "/metrics/clients"
TABLE = "MAGI_clients"
# gpt has the sum of the milliseconds until answers began, and the number of these answers; gpc0 the requests that a
# limit of the client refused.
STORES = "http_req_rate(60s),http_req_cnt,http_err_cnt,http_fail_cnt,bytes_out_cnt,gpt(2),gpc0"

# HAProxy's numbers for one client, as metrics: name, type, help, and how the value is read from its row.
METRICS = r"""-- Ansible managed (magi.llama): changes made here are lost in the next run
local METRICS = {
  {"requests_total", "counter", "Requests", function(row) return row.http_req_cnt end},
  {"limited_requests_total", "counter", "Requests that a limit refused", function(row) return row.gpc0 end},
  {"rejected_requests_total", "counter", "Requests answered with 4xx by servers", function(row)
    return row.http_err_cnt
  end},
  {"failed_requests_total", "counter", "Requests answered with 5xx by servers", function(row)
    return row.http_fail_cnt
  end},
  {"sent_bytes_total", "counter", "Bytes of answers", function(row) return row.bytes_out_cnt end},
  {"current_requests", "gauge", "Requests under way or waiting", function(row) return row.use end},
  {"first_byte_seconds_sum", "counter", "Seconds until answers began", function(row) return row.gpt0 / 1000 end},
  {"first_byte_seconds_count", "counter", "Answers that began", function(row) return row.gpt1 end},
  {"tokens_total", "counter", "Tokens", function(row)
    return magi_tokens_used and (magi_tokens_used[row.key] or 0)
  end},
}

core.register_service("magi_clients", "http", function(applet)
  local rows, lines = {}, {}
  for line in magi_command("show table MAGI_clients"):gmatch("[^\n]+") do
    local row = {key = line:match(" key=(%S+)")}
    for name, value in line:gmatch(" ([%w_]+)%S*=(%d+)") do
      if name ~= "key" then row[name] = tonumber(value) end
    end
    if row.key then rows[#rows + 1] = row end
  end
  for _, metric in ipairs(METRICS) do
    lines[#lines + 1] = "# HELP magi_client_" .. metric[1] .. " " .. metric[3]
    lines[#lines + 1] = "# TYPE magi_client_" .. metric[1] .. " " .. metric[2]
    for _, row in ipairs(rows) do
      local value = metric[4](row)
      if value then
        local name = "magi_client_" .. metric[1] .. '{client="' .. row.key .. '"} '
        lines[#lines + 1] = name .. string.format("%.14g", value)
      end
    end
  end
  local text = table.concat(lines, "\n") .. "\n"
  applet:set_status(200)
  applet:add_header("content-length", #text)
  applet:add_header("content-type", "text/plain; version=0.0.4")
  applet:start_response()
  applet:send(text)
end)
"""


def first_byte_lines() -> list[str]:
    """The rules of a frontend by which a client's row has the time until its answers begin."""
    return [
        "  http-response set-var(txn.waited) date(0,ms),sub(txn.begin)",
        "  http-response set-var(txn.waited) sc_get_gpt(0,0),add(txn.waited)",
        "  http-response set-var(txn.answers) sc_get_gpt(1,0),add(1)",
        "  http-response sc-set-gpt(0,0) var(txn.waited)",
        "  http-response sc-set-gpt(1,0) var(txn.answers)",
    ]
