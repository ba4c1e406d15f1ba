# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's chromium, driven by playwright. Playwright's own browsers are not downloaded."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = os.environ.get("MAGI_CHROMIUM") or shutil.which("chromium") or ""
# The browser's own requests (updates, metrics, component lists) would be in a network log next to the page's.
QUIET = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-sync",
    "--no-first-run",
    "--no-pings",
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser. Chromium's sandbox does not work for root."""
    arguments = [*QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def open_view(page: Page, name: str) -> None:
    """Open one of the page's views by its link and wait for it: another may have fields of the same name."""
    link = page.get_by_role("navigation").get_by_role("link", name=re.compile(f"^{name}"))
    link.click()
    expect(link).to_have_attribute("aria-current", "page")
