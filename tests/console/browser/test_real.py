# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page in front of the real console: real playbooks, and real servers of tiny real models on two hosts."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser, Locator, Page, expect
from support import reaper
from support.bed import Bed
from support.browser import open_view
from support.console import RunningConsole
from support.running_redis import needs_redis, running_redis

pytestmark = pytest.mark.slow
# A run of a playbook takes some 15 s, and longer on a busy machine.
RUN_MS = 180_000
Q4, Q3, Q2 = "tiny-llama-q4_k_m", "tiny-llama-q3_k_m", "tiny-llama-q2_k"


@pytest.fixture
def inventory() -> Iterator[Path]:
    """An inventory of two hosts, each with a state directory of its own on this machine."""
    with reaper.temporary_folder("magi-page-") as folder:
        beds = {name: Bed(folder / name) for name in ("one", "two")}
        inventory = folder / "inventory"
        inventory.mkdir()
        shutil.copytree(beds["one"].inventory / "profiles", inventory / ".magi-llama/profiles")
        hosts = {name: bed.variables for name, bed in beds.items()}
        (inventory / "hosts.yml").write_text(yaml.safe_dump({"models": {"hosts": hosts}}))
        try:
            yield inventory
        finally:
            for bed in beds.values():
                bed.remove()


@pytest.fixture
def console(inventory: Path) -> Iterator[RunningConsole]:
    with RunningConsole(inventory, inventory.parent / "console") as running:
        yield running


@pytest.fixture
def page(browser: Browser, console: RunningConsole) -> Iterator[Page]:
    with signed_in(browser, console) as opened:
        yield opened


@contextmanager
def signed_in(browser: Browser, console: RunningConsole) -> Iterator[Page]:
    """The page, signed in."""
    token = console.add_token("browser", "operate")
    context = browser.new_context(viewport={"width": 1400, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(60_000)
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(console.url)
    opened.get_by_label("Token").fill(token)
    opened.keyboard.press("Enter")
    opened.get_by_role("heading", name="Fleet").wait_for()
    yield opened
    context.close()
    assert errors == []


def shot(page: Page, name: str) -> None:
    if folder := os.environ.get("MAGI_SCREENSHOTS"):
        page.screenshot(path=Path(folder, f"real-{name}.png"))


def ended(page: Page) -> None:
    expect(page.locator(".facts .state").first).to_have_text(
        re.compile("finished|failed|lost|cancelled"), timeout=RUN_MS
    )
    expect(page.locator(".facts .state").first).to_have_text(re.compile("finished"))


def row(page: Page, host: str, server: str) -> Locator:
    return page.get_by_role("table", name=f"Servers of {host}").get_by_role("row", name=re.compile(server))


def test_servers_are_planned_started_restarted_and_rolled_back(page: Page) -> None:
    expect(page.get_by_role("status").first).to_have_text("live")
    # Nothing runs: a plan starts two servers on each host.
    open_view(page, "Plan")
    page.get_by_label("Profile").select_option("pair")
    page.get_by_role("button", name="Make the plan").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("Plan [0-9a-f]{12}"), timeout=RUN_MS)
    expect(page.locator(".card", has_text="one").filter(has_text="2 to start")).to_be_visible()
    shot(page, "plan")
    page.keyboard.press("a")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Enter")
    ended(page)
    expect(page.locator(".host-steps", has_text="one")).to_contain_text(f"{Q4} is ready")
    shot(page, "job")
    open_view(page, "Fleet")
    for host in ("one", "two"):
        expect(row(page, host, Q4)).to_contain_text("ready")
    shot(page, "fleet")
    # A server, with what its plan and its start know.
    row(page, "one", Q4).get_by_role("link").click()
    expect(page.get_by_label("Command line")).to_contain_text("--ctx-size 1024")
    page.keyboard.press("l")
    expect(page.get_by_label(f"Log of {Q4}")).to_contain_text("listening", timeout=RUN_MS)
    shot(page, "server")
    page.keyboard.press("r")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Enter")
    ended(page)
    expect(page.get_by_role("heading", level=1)).to_have_text(f"restart · {Q4} · on one")
    # Another profile, host by host, and back.
    open_view(page, "Rollouts")
    page.get_by_label("Profile").select_option("other")
    page.get_by_label("Only preview").uncheck()
    page.get_by_role("button", name="Begin").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll out").click()
    expect(page.locator(".card", has_text="Canary")).to_contain_text("gate passed", timeout=RUN_MS)
    expect(page.locator(".page-head .state")).to_have_text("finished", timeout=RUN_MS)
    shot(page, "rollout")
    page.get_by_role("button", name="Roll back all…").click()
    back = page.locator(".card", has_text="Roll back all 2 hosts")
    back.get_by_role("button", name="Show the difference").click()
    expect(back.get_by_role("button", name="Roll back", exact=True)).to_be_enabled(timeout=RUN_MS)
    for host in ("one", "two"):
        expect(back.get_by_label(f"What the rollback changes on {host}")).to_contain_text(Q4)
    shot(page, "rollback")
    back.get_by_role("button", name="Roll back", exact=True).click()
    ended(page)
    open_view(page, "Fleet")
    # A rollback says what runs by the status that the console reads after it.
    for host in ("one", "two"):
        expect(row(page, host, Q4)).to_contain_text("ready", timeout=RUN_MS)
    # Who has done all that.
    open_view(page, "Access")
    expect(page.get_by_role("table", name="Keys").get_by_role("row", name=re.compile("browser"))).to_contain_text(
        "operate"
    )
    log = page.get_by_role("table", name="Audit log")
    expect(log.get_by_role("row", name=re.compile("verb: rollback"))).to_have_count(2)
    expect(log.get_by_role("row", name=re.compile("verb: restart")).first).to_contain_text("browser")


@needs_redis
def test_rollout_ends_well_and_the_page_says_so_while_there_is_no_redis(browser: Browser, inventory: Path) -> None:
    folder = inventory.parent / "redis"
    folder.mkdir()
    with running_redis(folder, "--appendonly", "yes") as server:
        arguments = ("--redis", server.url, "--no-watch")
        with RunningConsole(inventory, inventory.parent / "console", arguments=arguments) as console:
            with signed_in(browser, console) as page:
                live = page.get_by_role("status").first
                expect(live).to_have_text("live")
                job = console.submit("rollout", profile="pair")["id"]
                while not any(event["type"] == "server_ready" for event in console.events_so_far(job)):
                    time.sleep(0.1)
                server.stop()
                expect(live).to_contain_text("no live view")
                shot(page, "no-redis")
                rc = console.data / "jobs" / job / "rc"
                deadline = time.monotonic() + RUN_MS / 1000
                while not rc.exists():
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                expect(live).to_contain_text("no live view")
                server.start()
                ended = console.wait(job)
                assert (ended["state"], ended["rc"], ended["result"]["is_complete"]) == ("finished", 0, True)
                expect(live).to_have_text("live", timeout=RUN_MS)
            # All of its events are there, each once.
            numbers = [event["seq"] for event in console.events(job)]
            assert numbers == list(range(1, len(numbers) + 1))


def test_profiles_models_and_capacity_are_the_inventorys(page: Page, inventory: Path) -> None:
    open_view(page, "Models")
    page.get_by_role("button", name="Scan all hosts").click()
    ended(page)
    open_view(page, "Models")
    expect(page.get_by_role("row", name=re.compile(Q2))).to_contain_text("2 hosts")
    shot(page, "models")
    open_view(page, "Capacity")
    expect(page.get_by_role("row", name=re.compile("^one"))).to_contain_text(re.compile(r"RAM|GPU|\?"))
    open_view(page, "Profiles")
    page.get_by_role("link", name="pair").click()
    editor = page.get_by_label("Text of pair")
    editor.fill("enabled_modles: []\n")
    expect(page.locator(".notice.bad")).to_contain_text("enabled_models")
    editor.fill("description: Only the small one\nenabled_models:\n  - {tier: Q2}\n")
    expect(page.locator(".card", has_text="What it selects")).to_contain_text(Q2)
    shot(page, "profiles")
    editor.press("Control+s")
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    expect(page.locator(".list")).to_contain_text("Only the small one")
    assert (inventory / ".magi-llama/profiles/pair.yml").read_text().startswith("description: Only the small one\n")
