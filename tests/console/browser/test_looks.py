# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every view in both themes and three widths: accessible by axe's rules, and nothing sticks out of its card."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from playwright.sync_api import Page
from support.fake_console.api import FakeApi
from support.fake_console.views import views
from support.pythons import ROOT

AXE = ROOT / "console/page/node_modules/axe-core/axe.min.js"
WIDTHS = (1400, 768, 390)
THEMES = ("light", "dark")
# Elements that are wider inside than outside; those that scroll on purpose are part of a region that says so.
OVERFLOWING = """() => [document.documentElement, ...document.querySelectorAll('.card, .top, .filters, .page-head')]
  .filter((box) => box.scrollWidth > box.clientWidth && getComputedStyle(box).display !== 'none')
  .map((box) => `${box.tagName}.${box.className} ${box.scrollWidth} > ${box.clientWidth}`)"""
VIOLATIONS = """async () => (await axe.run(document, {resultTypes: ['violations']})).violations
  .map((one) => ({rule: one.id, nodes: one.nodes.slice(0, 3).map((node) => node.html.slice(0, 200))}))"""


def is_settled(page: Page) -> None:
    page.get_by_role("heading", level=1).wait_for()
    # What a view loads comes from this machine; then it is drawn.
    page.wait_for_timeout(150)


@pytest.mark.skipif(not AXE.exists(), reason="make page has not run: axe-core is missing")
@pytest.mark.parametrize("theme", THEMES)
def test_every_view_is_accessible_and_fits(page: Page, api: FakeApi, theme: str) -> None:
    page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    # The policy of the page refuses inline scripts; what the driver evaluates is not subject to it.
    page.evaluate(AXE.read_text())
    problems: dict[str, object] = {}
    folder = os.environ.get("MAGI_SCREENSHOTS")
    for name, fragment in views(api.fleet).items():
        page.set_viewport_size({"width": WIDTHS[0], "height": 900})
        page.goto(f"{api.url}#{fragment}")
        is_settled(page)
        if found := page.evaluate(VIOLATIONS):
            problems[f"{name}: axe"] = found
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            if found := page.evaluate(OVERFLOWING):
                problems[f"{name} at {width}"] = found
            if folder:
                page.screenshot(path=Path(folder, f"{name}-{width}-{theme}.png"))
    assert problems == {}, json.dumps(problems, indent=1)


@pytest.mark.skipif(not AXE.exists(), reason="make page has not run: axe-core is missing")
@pytest.mark.parametrize("theme", THEMES)
def test_sign_in_and_dialogs_are_accessible(page: Page, theme: str) -> None:
    page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    page.evaluate(AXE.read_text())
    page.set_viewport_size({"width": 390, "height": 800})
    page.keyboard.press("?")
    page.get_by_role("dialog").wait_for()
    assert page.evaluate(VIOLATIONS) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Token").wait_for()
    assert page.evaluate(VIOLATIONS) == []
    assert page.evaluate(OVERFLOWING) == []
