# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The answer to a request for a model that no server has: the name that is nearest, and all that there are."""

from __future__ import annotations

from collections.abc import Sequence

from .words import SHOWN, error_json

_MOST_TEXT = 2000

# HAProxy has no measure of how near two texts are. This one costs little: the letters and the
# pairs of letters that both have.
NEAREST = r"""-- Ansible managed (magi.llama): changes made here are lost in the next run
local LEAST = 0.35
local names = {}

local function parts_of(text)
  local found, count = {}, 0
  text = text:lower():gsub("_", "-")
  for length = 1, 2 do
    for at = 1, #text - length + 1 do
      local part = text:sub(at, at + length - 1)
      found[part] = (found[part] or 0) + 1
      count = count + 1
    end
  end
  return found, count
end

-- A change of names is a reload, so they are read once.
for name in io.lines(os.getenv("MAGI_GATEWAY") .. "/names.txt") do
  local found, count = parts_of(name)
  names[#names + 1] = {name = name, parts = found, count = count}
end

core.register_converters("magi_nearest", function(asked)
  local wanted, count = parts_of(asked:sub(1, 64))
  local best, most = nil, LEAST
  for _, one in ipairs(names) do
    local common = 0
    for part, times in pairs(wanted) do common = common + math.min(times, one.parts[part] or 0) end
    local share = 2 * common / (count + one.count)
    if share > most then best, most = one.name, share end
  end
  return best and " Did you mean " .. best .. "?" or ""
end)
"""


def unknown_model_text(names: Sequence[str]) -> str:
    """The answer as a format of HAProxy."""
    shown = list(names)
    while len(", ".join(shown)) > _MOST_TEXT:
        shown.pop()
    known = ", ".join(shown) or "none"
    rest = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    message = f"The model @ does not exist.@ There are: {known}{rest}."
    text = error_json(message, "invalid_request_error", "model_not_found", "model").replace("%", "%%")
    asked, nearest = f"%[var(txn.model),{SHOWN}]", "%[var(txn.model),lua.magi_nearest,json(utf8s)]"
    return text.replace("@", asked, 1).replace("@", nearest, 1)
