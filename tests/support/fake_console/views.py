# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every view of the page, for the tests that look at all of them and for the screenshots of the documentation."""

from __future__ import annotations

from .fleet import Fleet


def views(fleet: Fleet) -> dict[str, str]:
    """The fragment of each view's address, by name; with something to see in each."""
    host = list(fleet.hosts)[2]
    jobs = list(fleet.jobs.values())
    failed = next(job["id"] for job in jobs if job["state"] == "failed" and job["verb"] == "site")
    rollout = next(job["id"] for job in jobs if job["verb"] == "rollout")
    return {
        "fleet": "/fleet",
        "server": f"/server/{host}/llama-3.3-70b-q4_k_m",
        "plan": f"/plan/{next(iter(fleet.plans))}",
        "plans": "/plan",
        "jobs": "/jobs",
        "job": f"/job/{failed}",
        "rollouts": "/rollouts",
        "rollout": f"/rollouts/{rollout}",
        "profiles": "/profiles/production",
        "models": "/models?q=q4",
        "capacity": "/capacity",
        "access": "/access",
    }
