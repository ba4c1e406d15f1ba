# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page in chromium, in front of a fleet that does not exist."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("playwright", reason="playwright is missing")

from playwright.sync_api import Browser, Page
from support.browser import CHROMIUM, chromium
from support.fake_console.api import FakeApi, serve


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for a file's tests: it takes longer to start than most of them."""
    if not CHROMIUM:
        pytest.skip("chromium is missing: apt-get install chromium")
    with chromium() as running:
        yield running


@pytest.fixture
def api(request: pytest.FixtureRequest) -> Iterator[FakeApi]:
    """The API of three hosts, or as many as the parameter says, with four servers each; nothing changes by itself."""
    running = serve(hosts=getattr(request, "param", 3), pace=0.01)
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def page(browser: Browser, api: FakeApi) -> Iterator[Page]:
    """The page, opened at its fleet; a message on its console or an error fails the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, reduced_motion="reduce")
    opened = context.new_page()
    messages: list[str] = []
    opened.on(
        "console", lambda message: messages.append(message.text) if message.type in {"error", "warning"} else None
    )
    opened.on("pageerror", lambda error: messages.append(str(error)))
    opened.goto(api.url)
    opened.get_by_role("heading", name="gpu1.rack1.example.com").wait_for()
    yield opened
    context.close()
    # Requests that a test made fail on purpose are logged by the browser.
    assert [message for message in messages if "Failed to load resource" not in message] == []
