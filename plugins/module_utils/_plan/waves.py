# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Waves: the order in which a host's servers change, so that each model stays served where that is possible.

A wave drains some servers, then stops, restarts and starts some, and is over when those are ready. A server that is
restarted is changed in one of three ways: surge (a stand-in serves meanwhile, where memory and a free port allow), swap
(another server of the model serves), away (its model is away meanwhile).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .inputs import Host, PlanError, Server, Settings
from .memory_limits import check_memory
from .outlook import Need, most_of, need_of, running_now, start_seconds
from .stand_ins import free_port, stand_in_for

SURGE, SWAP, AWAY = "surge", "swap", "away"


@dataclass
class Change:
    """How a host's servers change.

    ways has surge, swap or away by the name of each server that is restarted. peak is the memory that is needed at most
    on the way. away has the seconds that a model is not served, by its id.
    """

    ways: dict[str, str] = field(default_factory=dict)
    waves: list[dict[str, Any]] = field(default_factory=list)
    stand_ins: list[Server] = field(default_factory=list)
    peak: Need = field(default_factory=Need)
    away: dict[str, float] = field(default_factory=dict)


def changed_in_waves(
    planned: Sequence[Server], profile: Mapping[str, Any], settings: Settings, host: Host
) -> tuple[list[Server], dict[str, Any]]:
    """Return the planned servers with their stand-ins, and the parts of the plan that say how they change.

    Both are as before where there is no gateway. Raises PlanError if a model would be away without permission.
    """
    if not settings.without_downtime or all(server["action"] == "keep" for server in planned):
        return list(planned), {}
    change = _Steps(planned, profile, settings, host).take()
    if change.away and not settings.allow_downtime:
        where = f'profile "{profile["name"]}" ({profile["source"]}): ' if profile else ""
        why = "memory or ports do not suffice for a stand-in and " if profile else ""
        raise PlanError(
            f"{where}{away_text(change.away)} during this change, as {why}no other host or instance serves it. "
            f"{'Free memory, widen servers_port_range_end, r' if profile else 'R'}un another instance, or accept it "
            "with -e allow_downtime=true."
        )
    stand_ins = {str(server["name"]): server for server in change.stand_ins}
    servers = [
        {**server, "change": change.ways[server["name"]]} if server["name"] in change.ways else server
        for server in planned
        if server["name"] not in stand_ins
    ]
    part = {"waves": change.waves, "peak": change.peak.as_data(), "away": change.away}
    return [*servers, *stand_ins.values()], part


def away_text(away: Mapping[str, float]) -> str:
    """Which models are away for how long, human-readable."""
    listed = ", ".join(f"{model} for about {seconds:.0f} s" for model, seconds in sorted(away.items()))
    return f"{'these models are' if len(away) > 1 else 'this model is'} away: {listed}"


class _Steps:
    """The servers that run at each point of a change, and those that are still to be changed."""

    def __init__(self, planned: Sequence[Server], profile: Mapping[str, Any], settings: Settings, host: Host) -> None:
        self._planned, self._profile, self._settings, self._host = planned, profile, settings, host
        before = {str(server["name"]): server for server in host.record}
        self._before = before
        self._models = {str(server["name"]): str(server["model_id"]) for server in [*planned, *host.record]}
        # As they run now: those that are restarted have the memory and the port that they had.
        self._running = {str(server["name"]): _resident(server) for server in running_now(planned, host)}
        # Those that are to be restarted next, while their stand-ins serve.
        self._surged: list[Server] = []
        self._change = Change(peak=need_of((), host))
        self._note_peak()

    def take(self) -> Change:
        starts, stops, waiting = self._of("start"), _names(self._of("stop")), self._of("restart")
        # One that serves no one, as it crashes again and again, needs no stand-in, and at a socket requests wait.
        served = self._settings.served_here
        idle = [server for server in waiting if server["model_id"] not in served or server.get("on_demand")]
        waiting = [server for server in waiting if server not in idle]
        while True:
            self._surged = []
            begun = [server for server in starts if self._begin(server)]
            surged = [(server, stand_in) for server in waiting if (stand_in := self._stand_in(server))]
            stand_ins = [stand_in for _server, stand_in in surged]
            stops = [name for name in stops if name not in _names(stand_ins)]
            self._wave(begin=[*begun, *stand_ins])
            starts = [server for server in starts if server not in begun]
            replaced = [server for server, _stand_in in surged]
            waiting = [server for server in waiting if server not in replaced]
            for name in stops:
                self._running.pop(name, None)
            self._restarted(replaced)
            late = [server for server in starts if self._begin(server)]
            starts = [server for server in starts if server not in late]
            self._wave(drain=[*_names(replaced), *stops], stop=stops, restart=replaced, begin=late)
            for name in _names(stand_ins):
                del self._running[name]
            self._wave(drain=_names(stand_ins), stop=_names(stand_ins))
            if not (begun or surged or stops or late):
                break
            stops = []
        self._in_place(waiting, starts, idle)
        return self._change

    def _of(self, action: str) -> list[Server]:
        return [server for server in self._planned if server["action"] == action]

    def _in_place(self, waiting: list[Server], starts: list[Server], idle: list[Server]) -> None:
        """Restart servers without stand-ins: one of each model after another, then those whose model is away then.

        starts are servers that had no port or memory before, idle those that serve no one.
        """
        elsewhere = self._settings.served_elsewhere
        while True:
            group: dict[str, Server] = {}
            for server in waiting:
                if server["model_id"] in group or not self._has_room(server):
                    continue
                if self._is_served(server, elsewhere):
                    group[str(server["model_id"])] = server
            if not group:
                break
            servers = list(group.values())
            only_elsewhere = sorted(model for model, server in group.items() if not self._is_served(server, ()))
            self._restarted(servers)
            self._wave(drain=_names(servers), restart=servers, needs=only_elsewhere)
            self._change.ways.update(dict.fromkeys(_names(servers), SWAP))
            waiting = [server for server in waiting if server not in servers]
        self._restarted([*starts, *waiting, *idle])
        seconds = {str(server["name"]): start_seconds(server, self._host) for server in waiting}
        self._wave(drain=_names([*waiting, *idle]), restart=[*waiting, *idle], begin=starts, away=seconds)
        self._change.ways.update(dict.fromkeys(seconds, AWAY))
        for server in waiting:
            model = str(server["model_id"])
            self._change.away[model] = max(self._change.away.get(model, 0.0), seconds[str(server["name"])])

    def _is_served(self, server: Server, elsewhere: Collection[str]) -> bool:
        """Whether another server has the model, and the gateways see it."""
        model = server["model_id"]
        if model in elsewhere:
            return True
        others = (name for name, other in self._running.items() if other["model_id"] == model)
        return self._settings.served_here.get(model, 0) > 1 and any(name != server["name"] for name in others)

    def _begin(self, server: Server) -> bool:
        """Count a server as running if its port is free by now and its memory suffices."""
        if server["port"] in self._ports() or not self._fits(server):
            return False
        self._running[str(server["name"])] = server
        self._note_peak()
        return True

    def _stand_in(self, server: Server) -> Server | None:
        """Return a server's stand-in, counted as running; None where it finds no port or memory."""
        taken = {*self._before, *_names(self._planned)}
        # One that an interrupted run has left.
        own = next((one for one in self._before.values() if one.get("stands_in_for") == server["name"]), None)
        left = str(own["name"]) if own else ""
        used = {int(other["port"]) for other in self._planned if other["action"] != "stop"} | self._ports(left)
        port = free_port(int(own["port"]) if own else None, used, self._settings, self._host)
        if port is None or not self._has_room(server):
            return None
        stand_in = stand_in_for(server, port, self._settings, taken - {left})
        process = self._host.running.get(left)
        runs = process is not None and process.env.get("MAGI_LLAMA_REVISION") == stand_in["revision"]
        if process is not None and not runs:
            # It may be the only one that serves, and is stopped when the new one does.
            port = free_port(None, {*used, *self._ports()}, self._settings, self._host)
            if port is None:
                return None
            stand_in = stand_in_for(server, port, self._settings, taken)
        reason = f"serves {server['model_id']} while {server['name']} is restarted"
        stand_in.update({"action": "keep" if runs else "start", "reason": reason})
        # Next to the server as it is, and as it will be.
        if not (runs or (self._fits(stand_in) and self._fits(stand_in, server, *self._surged))):
            return None
        self._surged.append(server)
        name = str(stand_in["name"])
        self._running[name] = stand_in
        self._note_peak()
        self._change.stand_ins.append(stand_in)
        self._change.ways[str(server["name"])] = SURGE
        return stand_in

    def _restarted(self, servers: Iterable[Server]) -> None:
        for server in servers:
            self._running[str(server["name"])] = server
        self._note_peak()

    def _ports(self, left_out: str = "") -> set[int]:
        """The ports of servers that run at this point, except for one."""
        running = (server for name, server in self._running.items() if name != left_out)
        return {int(server["port"]) for server in running if server["port"] is not None}

    def _has_room(self, server: Server) -> bool:
        """Whether a server can be restarted at this point: its port is free, and what it needs more is there."""
        before = self._running.get(str(server["name"]), server)
        if int(server["port"]) in self._ports(str(server["name"])):
            return False
        grows = any(server["memory"][key] > before["memory"][key] for key in ("ram_bytes", "vram_bytes"))
        return not grows or self._fits(server)

    def _fits(self, *more: Server) -> bool:
        """Whether these fit next to all that runs at this point, also where the user lets servers exceed the memory."""
        if any(server["memory"]["vram_bytes"] for server in more) and not self._host.gpus:
            # What the GPUs' memory is like is unknown here.
            return False
        servers = {**self._running, **{str(server["name"]): server for server in more}}
        settings = replace(self._settings, memory_overcommit=False)
        try:
            check_memory([one for one in servers.values() if "memory" in one], self._profile, settings, self._host)
        except PlanError:
            return False
        return True

    def _note_peak(self) -> None:
        now = need_of(self._running.values(), self._host)
        self._change.peak = most_of(self._change.peak, now)

    def _wave(
        self,
        drain: Sequence[str] = (),
        stop: Sequence[str] = (),
        restart: Sequence[Server] = (),
        begin: Sequence[Server] = (),
        needs: Sequence[str] = (),
        away: Mapping[str, float] | None = None,
    ) -> None:
        """Add a wave, if there is anything to do in it."""
        actions = dict.fromkeys(stop, "stop")
        actions.update(dict.fromkeys(_names(restart), "restart"))
        actions.update({str(server["name"]): str(server["action"]) for server in begin if server["action"] != "keep"})
        ready = _names([*restart, *begin])
        if actions or ready:
            # Only what runs has requests.
            serving = {*self._host.running, *self._host.sockets, *_names(self._change.stand_ins)}
            drained = [name for name in drain if name in serving]
            wave = {
                "drain": drained,
                "actions": actions,
                "ready": ready,
                "needs": list(needs),
                "leaves": sorted({self._models[name] for name in drained if name in self._models}),
                "away": dict(away or {}),
                **self._moves(stop, begin),
            }
            self._change.waves.append(wave)

    def _moves(self, stop: Sequence[str], begin: Sequence[Server]) -> dict[str, Any]:
        """What a wave brings to the host and takes from it for good, which other hosts of the run may wait for."""
        new = {
            str(server["name"]): str(server["model_id"])
            for server in begin
            if server["action"] == "start" and "stands_in_for" not in server
        }
        kept = {server["model_id"] for server in self._planned if server["action"] != "stop"}
        drops = sorted({self._models[name] for name in stop if name in self._models} - kept)
        return {**({"new": new} if new else {}), **({"drops": drops} if drops else {})}


def _names(servers: Iterable[Server]) -> list[str]:
    return [str(server["name"]) for server in servers]


def _resident(server: Server) -> Server:
    """A server that runs and is left alone for now."""
    return {**server, "action": "keep"}
