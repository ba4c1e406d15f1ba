# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What servers expose to their clients: safe defaults, and parameters that are refused unless allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .._runtime.render_flags import has_flag
from .._runtime.special_flags import is_powerful
from .inputs import PlanError, Settings

# Servers of older versions that sleep when idle are used after they were freed: CVE-2026-43631 and CVE-2026-43632.
SAFE_SLEEP = (0, 6, 0)


def exposure_defaults(parameters: Mapping[str, Any], flags: Mapping[str, Any], has_keys: bool) -> dict[str, Any]:
    """Return the flags of this build that keep a server closed, for those that the parameters leave open."""
    defaults: dict[str, Any] = {}
    # Otherwise every web page that a user of the host has open could use a server on a loopback address.
    if has_flag("cors_origins", flags):
        defaults["cors_origins"] = "localhost"
    # Slots show the prompts of other clients. /metrics shows counts only, among them the requests in progress.
    if not has_keys and has_flag("slots", flags) and not parameters.get("slots"):
        defaults["slots"] = False
        if has_flag("metrics", flags):
            defaults["metrics"] = True
    return {name: value for name, value in defaults.items() if name not in parameters}


def refuse_powerful(parameters: Mapping[str, Any], settings: Settings) -> None:
    """Raise PlanError for a parameter that gives clients power over the host, unless it is allowed."""
    powerful = [name for name, value in sorted(parameters.items()) if is_powerful(name, value)]
    if not powerful:
        return
    names = ", ".join(f'"{name}"' for name in powerful)
    if not settings.api_key_file:
        raise PlanError(
            f"{names}: gives everyone who reaches the server power over this host, so it wants an API key: set "
            "servers_api_key_file, and servers_allow_powerful, or remove it from the profile."
        )
    if not settings.allow_powerful:
        raise PlanError(
            f"{names}: gives clients of the server power over this host, such as to run commands, to read or write "
            "files or to send requests from here. Remove it from the profile, or set servers_allow_powerful."
        )


def refuse_sleep(parameters: Mapping[str, Any], runtime: Mapping[str, Any]) -> None:
    """Raise PlanError for sleep_idle_seconds with a llama-server that a request could crash or take over then."""
    seconds = parameters.get("sleep_idle_seconds")
    if seconds is None or str(seconds).startswith("-") or not runtime.get("flags"):
        return
    version = str(runtime.get("version") or "")
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if numbers is None or tuple(int(number) for number in numbers.groups()) < SAFE_SLEEP:
        known = version or runtime.get("build") or "of an unknown version"
        raise PlanError(
            f'"sleep_idle_seconds": llama-server {known} has a use '
            "after free when it sleeps (CVE-2026-43631, CVE-2026-43632): update it to 0.6.0 or newer, or remove the "
            "parameter from the profile."
        )
