# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The console serves its page, without a token, under a strict policy."""

from __future__ import annotations

import re

from support.console import RunningConsole


def test_page_and_what_it_names_are_served_to_anyone(console: RunningConsole) -> None:
    page = console.anonymous.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["cache-control"] == "no-cache"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    named = re.findall(r'(?:src|href)="\./([^"]*)"', page.text)
    assert sorted(re.sub(r"-[\w-]+\.", ".", name) for name in named) == [
        "assets/index.css",
        "assets/index.js",
        "icon.svg",
        "theme.js",
    ]
    for name in named:
        answer = console.anonymous.get(f"/{name}")
        assert answer.status_code == 200, name
        assert ("immutable" in answer.headers["cache-control"]) == name.startswith("assets/")


def test_no_other_file_is_served(console: RunningConsole) -> None:
    for name in ("assets/..%2findex.html", "assets/none.js", "assets/%2e%2e/%2e%2e/settings.py"):
        assert console.anonymous.get(f"/{name}").status_code == 404, name
