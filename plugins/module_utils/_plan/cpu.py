# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Share a host's cores among the servers that compute on the CPU.

llama-server takes all cores for each server, and its threads wait for each other by spinning. Two servers that compute
at once on the same cores so fall to a tenth of what the host can do. With threads: auto their threads do not exceed the
cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# The threads of a server spin so many times before they sleep, where there are more threads than cores. Of the values
# that were measured it is the best for one busy server and for several: 100 halves the speed of one, and 10,000 lets
# several collapse as the default does.
SPIN_COUNT = 1000


@dataclass(frozen=True)
class Demand:
    """What a server that computes on the CPU asks for. threads is its profile's own number; None shares the cores."""

    name: str
    share: float = 1.0
    threads: int | None = None


def share_cores(cores: int, demands: Sequence[Demand], expected_busy: int | None = None) -> dict[str, int]:
    """Return the threads of each server, at least one each.

    Servers with their own number keep it, and the others share what is left in proportion to their shares. Their sum
    does not exceed the cores while at most expected_busy servers (all of them by default) compute at once.
    """
    own = {demand.name: demand.threads for demand in demands if demand.threads is not None}
    sharing = sorted((demand for demand in demands if demand.threads is None), key=lambda demand: -demand.share)
    if not sharing:
        return own
    busy = min(len(demands), expected_busy or len(demands))
    # In the worst case those with numbers of their own are among the busy ones.
    at_once = min(len(sharing), max(1, busy - len(own)))
    left = cores - sum(sorted(own.values(), reverse=True)[:busy])
    counts = _allotted(left, [demand.share for demand in sharing[:at_once]])
    last = sharing[at_once - 1].share
    counts += [max(1, int(demand.share / last * counts[-1])) for demand in sharing[at_once:]]
    shared = {demand.name: count for demand, count in zip(sharing, counts)}
    return {demand.name: own.get(demand.name) or shared[demand.name] for demand in demands}


def _allotted(cores: int, shares: Sequence[float]) -> list[int]:
    """Return the cores of each, at least one, in proportion to the shares, which are in descending order."""
    if cores <= len(shares):
        return [1] * len(shares)
    count = len(shares)
    # Who would get less than a core gets one, and the others share what is left.
    while shares[count - 1] * (cores - len(shares) + count) < sum(shares[:count]):
        count -= 1
    left = cores - len(shares) + count
    exact = [share * left / sum(shares[:count]) for share in shares[:count]]
    counts = [int(value + 1e-9) for value in exact]
    # Cores that rounding leaves over go to those that lost most by it.
    by_loss = sorted(range(count), key=lambda place: counts[place] - exact[place])
    for place in by_loss[: left - sum(counts)]:
        counts[place] += 1
    return [*counts, *[1] * (len(shares) - count)]


def busy_threads(threads: Mapping[str, int], expected_busy: int | None = None) -> int:
    """Return how many threads compute at once, in the worst case of so many busy servers."""
    ordered = sorted(threads.values(), reverse=True)
    return sum(ordered[: expected_busy or len(ordered)])


def oversubscription(cores: int, own: Mapping[str, int], total: int) -> list[str]:
    """Return a warning if servers with a number of threads of their own make more threads than cores.

    own are the profile's numbers, or all cores where it sets none.
    """
    if total <= cores or not own:
        return []
    names = ", ".join(f"{name} ({count})" for name, count in sorted(own.items())[:4])
    more = f" and {len(own) - 4} more" if len(own) > 4 else ""
    return [
        f"{total} threads compute at once on {cores} cores, which slows all servers down: {names}{more} do not share "
        "the cores. Set threads: auto in the profile's parameters."
    ]
