# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What people do with the page: look, filter, act, follow a job; by mouse and by keyboard."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from playwright.sync_api import Page, expect
from support.browser import open_view
from support.fake_console.api import OPERATOR, TOKEN, FakeApi
from support.fake_console.fleet import before
from support.fake_console.views import views

HOST = "gpu3.rack1.example.com"
FAILED = "llama-3.3-70b-q4_k_m"


def test_fleet_filter_is_kept_in_the_address(page: Page, api: FakeApi) -> None:
    page.get_by_label("State").select_option("failed")
    page.get_by_label("Host").fill("gpu3")
    expect(page.locator("section.host")).to_have_count(1)
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody tr")).to_contain_text("out of memory")
    assert urlsplit(page.url).fragment == "/fleet?state=failed&host=gpu3"
    page.reload()
    expect(page.locator("tbody tr")).to_have_count(1)
    page.keyboard.press("c")
    expect(page.locator("tbody tr")).to_have_count(12)


def test_server_shows_its_crash_with_the_fix_and_restarts(page: Page) -> None:
    page.get_by_role("table", name=f"Servers of {HOST}").get_by_role("link", name=FAILED).click()
    expect(page.locator(".notice.bad")).to_contain_text("Lower ctx_size")
    expect(page.get_by_label("Command line")).to_contain_text("--ctx-size 8192")
    page.keyboard.press("r")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(f"Restart {FAILED}?")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("restart")
    expect(page.locator(".host-steps")).to_contain_text("is ready after 3 s")
    expect(page.locator(".facts")).to_contain_text("finished")
    page.keyboard.press("g")
    page.keyboard.press("f")
    row = page.get_by_role("table", name=f"Servers of {HOST}").get_by_role("row", name=FAILED)
    expect(row).to_contain_text("ready")


def test_server_shows_its_log_speed_and_memory(page: Page) -> None:
    page.get_by_role("table", name=f"Servers of {HOST}").get_by_role("link", name="qwen3-8b-q4_k_m", exact=True).click()
    log = page.locator(".card", has_text="Log since its start")
    expect(log).to_contain_text("It has not been read yet")
    page.keyboard.press("l")
    expect(log.get_by_role("log")).to_contain_text("offloaded 33/33 layers")
    expect(log).to_contain_text("read just now")
    expect(page.locator(".card", has_text="Speed").locator("polyline")).to_have_count(1)
    expect(page.locator(".card", has_text="Speed")).to_contain_text("30 to 42 tok/s")
    now = page.locator(".card", has_text="Now").first
    expect(now).to_contain_text(re.compile(r"VRAM planned / real\s*\d\.\d GiB / \d\.\d GiB"))
    expect(now).to_contain_text(re.compile(r"(?<!V)RAM planned / real\s*\d+ MiB / \d+ MiB"))


def test_row_has_ram_and_vram_apart(page: Page) -> None:
    row = page.get_by_role("table", name=f"Servers of {HOST}").get_by_role("row", name="qwen3-8b-q4_k_m")
    expect(row).to_contain_text(re.compile(r"RAM \d+ MiB / \d+ MiB.*VRAM \d\.\d GiB / \d\.\d GiB", re.DOTALL))


def test_running_job_is_cancelled(page: Page, api: FakeApi) -> None:
    open_view(page, "Jobs")
    expect(page.get_by_role("table", name="Jobs").get_by_role("row", name=re.compile("verify"))).to_contain_text(
        "waits for"
    )
    page.get_by_role("link", name=re.compile("^restart")).click()
    page.get_by_role("button", name="Cancel", exact=True).wait_for()
    page.keyboard.press("x")
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    expect(page.locator(".facts")).to_contain_text("cancelled")
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_have_count(0)


def test_job_that_waits_for_a_lock_says_for_whose_and_since_when(page: Page, api: FakeApi) -> None:
    job = next(job["id"] for job in api.fleet.jobs.values() if job["state"] == "running")
    page.goto(f"{api.url}#/job/{job}")
    waited = {"holder": "ann on ci2, rollout.yml", "since": before(75)}
    for seconds in (0, 10, 20):
        api.fleet.publish("lock_waited", {**waited, "seconds": seconds, "has_lock": False}, host=HOST, run=job)
    notice = page.locator("p.notice", has_text="ann on ci2, rollout.yml")
    expect(notice).to_contain_text(re.compile(rf"{HOST} waits for the lock of .* since \d\d:\d\d:\d\d, \d\d s by now"))
    expect(page.locator(".host-steps", has_text=HOST).get_by_role("listitem")).to_have_count(1)
    api.fleet.publish("lock_waited", {**waited, "seconds": 24, "has_lock": True}, host=HOST, run=job)
    expect(page.locator(".host-steps", has_text=HOST)).to_contain_text("waited 24 s for the lock of ann")
    expect(notice).to_have_count(0)


def test_keyboard_alone_reaches_a_server(page: Page) -> None:
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_contain_text("Next row")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("gpu2")
    page.keyboard.press("Escape")
    expect(page.locator("section.host")).to_have_count(1)
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("gemma-3-27b-q3_k_m")


def test_cut_off_stream_is_shown_and_comes_back(page: Page, api: FakeApi) -> None:
    live = page.get_by_role("status")
    expect(live).to_have_text("live")
    api.is_cut_off.set()
    expect(live).to_contain_text("no live view, stale since")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    api.is_cut_off.clear()
    api.fleet.change_server(HOST, FAILED, state="ready", is_ready=True, reason=None)
    expect(live).to_have_text("live", timeout=15000)
    expect(page.get_by_role("table", name=f"Servers of {HOST}").get_by_role("row", name=FAILED)).to_contain_text(
        "ready"
    )


def test_focus_and_rows_survive_updates(page: Page, api: FakeApi) -> None:
    link = page.get_by_role("table", name=f"Servers of {HOST}").get_by_role("link", name="qwen3-8b-q4_k_m", exact=True)
    link.focus()
    row = link.locator("xpath=ancestor::tr").element_handle()
    assert row
    for rate in range(20):
        api.fleet.change_server(HOST, "qwen3-8b-q4_k_m", tokens_per_second=100.0 + rate)
        api.fleet.change_server(HOST, FAILED, state="ready" if rate % 2 else "failed", is_ready=bool(rate % 2))
    expect(link.locator("xpath=ancestor::tr")).to_contain_text("119")
    assert page.evaluate("document.activeElement.textContent") == "qwen3-8b-q4_k_m"
    assert row.evaluate("row => row.isConnected && row.contains(document.activeElement)")


def test_status_of_a_host_changes_its_own_rows_only(page: Page, api: FakeApi) -> None:
    """A status that names another host and server is still about the host that it is from."""
    link = page.get_by_role("table", name=f"Servers of {HOST}").get_by_role("link", name="qwen3-8b-q4_k_m", exact=True)
    expect(link).to_have_attribute("href", re.compile(re.escape(HOST)))
    server = {"name": "qwen3-8b-q4_k_m", "host": "gpu1.rack1.example.com", "history": "x", "tokens_per_second": 77.0}
    api.fleet.publish("status", {"status": {"servers": [server]}}, host=HOST, run="other")
    expect(link.locator("xpath=ancestor::tr")).to_contain_text("77")
    expect(link).to_have_attribute("href", re.compile(re.escape(HOST)))


def test_sign_in_is_asked_for_and_refuses_unknown_tokens(page: Page, api: FakeApi) -> None:
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("This token is not known")
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=HOST)).to_be_visible()


def test_only_our_origin_is_asked(page: Page, api: FakeApi) -> None:
    asked: set[str] = set()
    page.context.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
    page.reload()
    for view in views(api.fleet).values():
        page.goto(f"{api.url}#{view}")
        page.get_by_role("heading", level=1).wait_for()
    assert asked == {urlsplit(api.url).netloc}


def test_plan_is_made_looked_at_and_applied_once(page: Page, api: FakeApi) -> None:
    page.keyboard.press("g")
    page.keyboard.press("p")
    page.get_by_label("Profile").select_option("production")
    page.get_by_label("Limit").fill("gpu1.rack1.example.com, gpu2.rack1.example.com")
    page.get_by_role("button", name="Make the plan").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("Plan [0-9a-f]{12}"))
    expect(page.locator(".card", has_text="gpu1.rack1").locator("pre.diff").first).to_contain_text("+ --ctx-size 8192")
    expect(page.locator(".stages").first).to_contain_text("peak")
    expect(page.locator(".facts")).to_contain_text("2 of 2")
    plan = page.url
    page.keyboard.press("a")
    expect(page.get_by_role("dialog")).to_contain_text("Models are away for up to 13 s")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("site")
    expect(page.locator(".facts")).to_contain_text("finished")
    page.goto(plan)
    page.get_by_role("button", name="Apply").click()
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Make a new plan, and apply that")


def test_plan_of_an_unknown_host_says_which_are_near(page: Page) -> None:
    open_view(page, "Plan")
    page.get_by_label("Limit").fill("gpu99")
    page.get_by_role("button", name="Make the plan").click()
    expect(page.get_by_role("alert")).to_contain_text("there is no host gpu99")
    expect(page.get_by_role("alert")).to_contain_text("Nearest: gpu1.rack1.example.com")


def test_profile_is_checked_while_it_is_typed_and_saved_with_its_diff(page: Page, api: FakeApi) -> None:
    open_view(page, "Profiles")
    page.get_by_role("link", name="edge").click()
    editor = page.get_by_label("Text of edge")
    editor.fill("descripton: x\n")
    expect(page.locator(".notice.bad")).to_contain_text("unknown key descripton")
    expect(page.get_by_role("button", name="Save…")).to_be_disabled()
    editor.fill("description: Small models\nenabled_models:\n  - {tier: Q2}\n")
    expect(page.get_by_text("valid")).to_be_visible()
    expect(page.get_by_label("Difference to the file")).to_contain_text("+description: Small models")
    expect(page.locator(".card", has_text="What it selects")).to_contain_text("deepseek-r1-qwen3-8b-q2_k")
    editor.press("Control+s")
    expect(page.get_by_role("dialog")).to_contain_text("-description: Small models at the edge")
    page.keyboard.press("Enter")
    expect(page.locator(".list")).to_contain_text("Small models")
    expect(page.get_by_role("status").filter(has_text="commit 4be1f09c77")).to_be_visible()
    assert api.fleet.profiles["edge"].startswith("description: Small models\n")


def test_reader_reads_a_profile_and_asks_for_nothing_that_is_refused(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.method == "PUT" else None)
    page.route("**/api/v1/session", lambda route: route.fulfill(json={**OPERATOR, "role": "read"}))
    page.reload()
    open_view(page, "Profiles")
    page.get_by_role("link", name="edge").click()
    expect(page.get_by_label("Text of edge")).to_have_js_property("readOnly", True)
    expect(page.get_by_text("read only")).to_be_visible()
    page.wait_for_timeout(800)
    assert asked == []


def test_rollout_shows_its_gates_and_rolls_back_after_the_difference(page: Page, api: FakeApi) -> None:
    page.keyboard.press("g")
    page.keyboard.press("r")
    page.get_by_label("Only preview").uncheck()
    page.get_by_role("button", name="Begin").click()
    expect(page.get_by_role("dialog")).to_contain_text("All hosts")
    page.keyboard.press("Enter")
    expect(page.locator(".card", has_text="Canary")).to_contain_text("gate passed")
    expect(page.locator(".card", has_text="Batch 2")).to_contain_text("gate closed: 1 host failed")
    page.locator(".card", has_text="Canary").get_by_role("button", name="Roll back…").click()
    back = page.locator(".card", has_text="Roll back gpu1")
    back.get_by_role("button", name="Show the difference").click()
    expect(back.locator(".diff")).to_contain_text("+  --ctx-size 4096")
    back.get_by_role("button", name="Roll back", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("rollback")
    expect(page.locator(".facts")).to_contain_text("finished")


def test_whole_rollout_is_rolled_back_after_the_difference_of_each_host(page: Page, api: FakeApi) -> None:
    rollout = next(job for job in api.fleet.jobs.values() if job["verb"] == "rollout")
    changed = [host for host, one in rollout["result"]["hosts"].items() if one["state"] in {"updated", "failed"}]
    assert len(changed) == 3
    page.goto(f"{api.url}#/rollouts/{rollout['id']}")
    page.get_by_role("button", name="Roll back all…").wait_for()
    page.keyboard.press("b")
    back = page.locator(".card", has_text="Roll back all 3 hosts")
    expect(back.locator(".notice")).to_have_count(0)
    back.get_by_role("button", name="Show the difference").click()
    for host in changed:
        expect(back.get_by_label(f"What the rollback changes on {host}")).to_contain_text("+  --ctx-size 4096")
    preview = next(job for job in api.fleet.jobs.values() if job["verb"] == "rollback")
    assert (preview["check"], preview["hosts"]) == (True, changed)
    back.get_by_role("button", name="Roll back", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("rollback")
    expect(page.locator(".facts")).to_contain_text("finished")
    # Once more: it would not lead back to what was before the rollout.
    page.goto(f"{api.url}#/rollouts/{rollout['id']}")
    page.get_by_role("button", name="Roll back all…").click()
    expect(back.locator(".notice.warn")).to_have_count(len(changed))


def test_rollback_warns_of_a_host_that_another_controller_has_deployed_since(page: Page, api: FakeApi) -> None:
    rollout = next(job for job in api.fleet.jobs.values() if job["verb"] == "rollout")
    first, *_ = [host for host, one in rollout["result"]["hosts"].items() if one["state"] == "updated"]
    page.goto(f"{api.url}#/rollouts/{rollout['id']}")
    page.get_by_role("button", name="Roll back all…").click()
    warning = page.locator(".card", has_text="Roll back all 3 hosts").locator(".notice.warn")
    page.get_by_role("button", name="Show the difference").wait_for()
    expect(warning).to_have_count(0)
    # There is no job of it. The rollout has ended in this second.
    api.fleet.deploy(first, before(-2))
    expect(warning).to_have_count(1)
    expect(warning).to_contain_text(f"{first} was deployed again after this rollout, just now")


def test_reader_sees_who_may_do_what_and_who_did_what(page: Page, api: FakeApi) -> None:
    page.route("**/api/v1/session", lambda route: route.fulfill(json={**OPERATOR, "role": "read"}))
    page.reload()
    page.get_by_role("heading", name=HOST).wait_for()
    page.keyboard.press("g")
    page.keyboard.press("a")
    keys = page.get_by_role("table", name="Keys")
    expect(keys.get_by_role("row", name=re.compile("wallboard"))).to_contain_text("read")
    log = page.get_by_role("table", name="Audit log")
    restart = next(job for job in api.fleet.jobs.values() if job["verb"] == "restart")
    expect(log.get_by_role("row", name=re.compile("restart"))).to_contain_text("operator")
    expect(log.get_by_role("row", name=re.compile("session.refused"))).to_contain_text("unknown")
    page.keyboard.press("/")
    page.keyboard.type("verb: restart")
    expect(log.locator("tbody tr")).to_have_count(1)
    log.get_by_role("link").click()
    expect(page.locator("code.muted")).to_have_text(restart["id"])


def test_models_and_capacity_say_what_is_where(page: Page) -> None:
    open_view(page, "Models")
    expect(page.locator("#rejected")).to_contain_text("truncated")
    page.get_by_role("searchbox", name="Model").fill("bge")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_text("where it is from").click()
    expect(page.locator("details")).to_contain_text("apache-2.0")
    open_view(page, "Capacity")
    expect(page.get_by_role("row", name=re.compile("gpu1.rack1"))).to_contain_text("no file")


def test_what_is_typed_and_chosen_survives_updates(page: Page, api: FakeApi) -> None:
    open_view(page, "Rollouts")
    page.get_by_label("Limit").fill("gpu1")
    page.get_by_label("Only preview").uncheck()
    api.fleet.add_job("rollout", [HOST], "queued")
    expect(page.get_by_role("table", name="Rollouts").get_by_role("row")).to_have_count(3)
    expect(page.get_by_label("Only preview")).not_to_be_checked()
    expect(page.get_by_label("Limit")).to_have_value("gpu1")
    open_view(page, "Plan")
    page.get_by_label("Limit").fill("gpu2")
    api.fleet.change_server(HOST, FAILED, state="ready", is_ready=True, reason=None)
    api.fleet.add_job("status", [HOST], "queued")
    expect(page.get_by_role("navigation").get_by_label(re.compile("active"))).to_have_text("4")
    expect(page.get_by_label("Limit")).to_have_value("gpu2")
