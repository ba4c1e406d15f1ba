# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""200 simulated servers with 50 changes a second: the page keeps its nodes, changes little, and shows every change.

Run with -s, it prints how busy the browser's main thread was and how long a change took to be seen; how long that is
depends on the machine, so the test does not judge it. MAGI_LOAD_SECONDS=60 is the length for measurements.
"""

from __future__ import annotations

import os
import time

import pytest
from playwright.sync_api import Browser, Page, expect
from support.fake_console.api import FakeApi

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("api", [50], indirect=True)]
SECONDS = float(os.environ.get("MAGI_LOAD_SECONDS", "6"))
CHANGES_PER_SECOND = 50
# A change is a text and a line in a row, a state with its icon, and the sums over it.
MUTATIONS_PER_CHANGE = 12
HOST, NAME = "gpu1.rack1.example.com", "qwen3-8b-q4_k_m"
COUNT = "document.querySelectorAll('*').length"
WATCH = """() => {
  window.rows = [...document.querySelectorAll('tbody tr')];
  window.mutations = 0;
  new MutationObserver((list) => { window.mutations += list.length; })
    .observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true});
  return document.querySelectorAll('*').length;
}"""


def busy_seconds(metrics: dict[str, list[dict[str, float]]]) -> float:
    return next(one["value"] for one in metrics["metrics"] if one["name"] == "TaskDuration")


def test_fleet_of_200_servers_stays_still_under_load(page: Page, api: FakeApi) -> None:
    expect(page.locator("tbody tr")).to_have_count(200)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    nodes = page.evaluate(WATCH)
    before, sent = busy_seconds(session.send("Performance.getMetrics")), len(api.fleet.messages)
    began = time.monotonic()
    api.changes_per_second = CHANGES_PER_SECOND
    page.wait_for_timeout(SECONDS * 1000)
    api.changes_per_second = 0
    busy = busy_seconds(session.send("Performance.getMetrics")) - before
    wall, changes = time.monotonic() - began, len(api.fleet.messages) - sent
    row = page.get_by_role("table", name=f"Servers of {HOST}").get_by_role("row", name=NAME)
    changed_at = time.monotonic()
    api.fleet.change_server(HOST, NAME, tokens_per_second=777.0)
    expect(row).to_contain_text("777", timeout=30000)
    print(
        f"\n{changes} changes in {wall:.1f} s: main thread {busy / wall:.1%},"
        f" the last one seen after {time.monotonic() - changed_at:.2f} s,"
        f" {nodes} nodes before and {page.evaluate(COUNT)} after"
    )
    # All rows are those that were there, each with at most a sparkline or a reason more or less.
    assert page.evaluate("window.rows.length === 200 && window.rows.every((row) => row.isConnected)")
    assert abs(page.evaluate(COUNT) - nodes) <= 200 * 2
    assert page.evaluate("window.mutations") <= MUTATIONS_PER_CHANGE * changes
    shown = dict(
        page.evaluate(
            "[...document.querySelectorAll('tbody tr')].map((row) => [row.closest('section').dataset.host + '/'"
            " + row.querySelector('a').textContent, row.querySelector('.c-state').textContent])"
        )
    )
    assert shown == {f"{host}/{name}": server["state"] for (host, name), server in api.fleet.servers.items()}


def test_page_is_usable_after_few_requests(browser: Browser, api: FakeApi) -> None:
    """What makes it usable within a second: no request waits for another but the session's, and little is sent."""
    context = browser.new_context()
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(api.url)))
    began = time.monotonic()
    page.goto(api.url)
    page.get_by_role("heading", name=HOST, exact=True).wait_for()
    print(f"\nusable after {time.monotonic() - began:.2f} s, {len(asked)} requests")
    context.close()
    assert len(asked) <= 14, asked
