# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write Grafana's dashboards, in roles/monitoring/files/grafana: make dashboards.

Each query is evaluated in tests/monitoring against servers that were read by a real Prometheus.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import stat, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, QueryVariable
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

FOLDER = Path(__file__).resolve().parents[1] / "roles/monitoring/files/grafana"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
EVERY = "label_values(magi_llama_server_info, {})"


@dataclass(frozen=True)
class Shown:
    """A panel: its title, and an expression with its legend for each line. A number is shown as one value."""

    title: str
    lines: Sequence[tuple[str, str]]
    unit: str = "short"
    is_number: bool = False


def of(metric: str, selector: str, more: str = "") -> str:
    return f"{metric}{{{selector}{', ' + more if more else ''}}}"


def speed(kind: str, selector: str, by: str) -> str:
    """Tokens a second while there are any: the time is that of all slots together."""
    tokens, seconds = {
        "generated": ("llamacpp:tokens_predicted_total", "llamacpp:tokens_predicted_seconds_total"),
        "prompt": ("llamacpp:prompt_tokens_total", "llamacpp:prompt_seconds_total"),
    }[kind]
    rates = [f"sum by ({by}) (rate({of(name, selector)}[$__rate_interval]))" for name in (tokens, seconds)]
    return f"{rates[0]} / ({rates[1]} > 0)"


def requests(selector: str, by: str) -> Shown:
    return Shown(
        "Requests",
        [
            (f"sum by ({by}) ({of('llamacpp:requests_processing', selector)})", f"{{{{{by}}}}} in work"),
            (f"sum by ({by}) ({of('llamacpp:requests_deferred', selector)})", f"{{{{{by}}}}} waiting"),
        ],
    )


def common(selector: str, by: str) -> list[Shown]:
    """The panels of any group of servers, a line for each value of the label by."""
    legend = f"{{{{{by}}}}}"
    rate = f"sum by ({by}) (rate({of('llamacpp:tokens_predicted_total', selector)}[$__rate_interval]))"
    restarts = f"sum by ({by}) (increase({of('magi_llama_server_restarts_total', selector)}[$__range]))"
    return [
        Shown("Generated tokens", [(rate, legend)], "tokens/s"),
        Shown("Speed of a request", [(speed("generated", selector, by), legend)], "tokens/s"),
        Shown("Speed of prompts", [(speed("prompt", selector, by), legend)], "tokens/s"),
        requests(selector, by),
        Shown("Restarts after a crash", [(restarts, legend)]),
    ]


def counts(selector: str) -> list[Shown]:
    """What is seen at once: how many servers there are, and what is wrong with them."""
    ready = f"sum({of('magi_llama_server_ready', selector)})"
    states = f"sum by (state) ({of('magi_llama_server_state', selector)} == 1)"
    return [
        Shown("Ready", [(ready, "ready")], is_number=True),
        Shown("Meant to run", [(f"sum({of('magi_llama_server_intended', selector)})", "servers")], is_number=True),
        Shown("Not as deployed", [(f"sum({of('magi_llama_server_drift', selector)})", "servers")], is_number=True),
        Shown(
            "On the CPU by mistake", [(f"sum({of('magi_llama_server_on_cpu', selector)})", "servers")], is_number=True
        ),
        Shown("States", [(states, "{{state}}")]),
    ]


def fleet() -> Dashboard:
    all_of = 'server=~".+"'
    up = [('up{job="magi-llama"}', "{{host}}")]
    return dashboard(
        "fleet", "llama-servers: fleet", [*counts(all_of), Shown("Hosts that answer", up), *common(all_of, "model")]
    )


def host() -> Dashboard:
    own = 'host=~"$host"'
    panels = [
        Shown(
            "RAM",
            [
                (of("magi_llama_server_rss_bytes", own), "{{server}}"),
                (of("magi_llama_server_memory_max_bytes", own), "{{server}} limit"),
            ],
            "bytes",
        ),
        Shown(
            "GPU memory",
            [
                (of("magi_llama_server_vram_bytes", own), "{{server}}"),
                (of("magi_llama_server_planned_vram_bytes", own), "{{server}} planned"),
            ],
            "bytes",
        ),
        Shown(
            "Free space for models",
            [(f"{of('magi_llama_models_free_bytes', own)} / {of('magi_llama_models_size_bytes', own)}", "{{folder}}")],
            "percentunit",
        ),
        Shown("A run holds the host", [(of("magi_llama_run_lock_held", own), "{{host}}")]),
    ]
    return dashboard("host", "llama-servers: host", [*counts(own), *common(own, "server"), *panels], "host")


def model() -> Dashboard:
    own = 'model=~"$model"'
    cached = of("llamacpp:prompt_tokens_cached_total", own)
    fresh = of("llamacpp:prompt_tokens_total", own)
    hits = [f"sum by (model) (increase({name}[$__range]))" for name in (cached, fresh)]
    panels = [
        Shown(
            "Prompt tokens from the cache", [(f"{hits[0]} / (({hits[0]} + {hits[1]}) > 0)", "{{model}}")], "percentunit"
        ),
        Shown("Busy slots per decode", [(of("llamacpp:n_busy_slots_per_decode", own), "{{host}} {{server}}")]),
        Shown("Longest sequence", [(of("llamacpp:n_tokens_max", own), "{{host}} {{server}}")], "tokens"),
        Shown("Ready instances", [(f"sum by (host) ({of('magi_llama_server_ready', own)})", "{{host}}")]),
    ]
    return dashboard("model", "llama-servers: model", [*counts(own), *common(own, "host"), *panels], "model")


def dashboard(name: str, title: str, panels: Sequence[Shown], variable: str = "") -> Dashboard:
    """A dashboard with the panels; variable is a label whose value is chosen at its top."""
    built = (
        Dashboard(title).uid(f"magi-llama-{name}").tags(["magi-llama"]).refresh("30s").time("now-6h", "now").readonly()
    )
    built = built.with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    if variable:
        query = QueryVariable(variable).query(EVERY.format(variable)).datasource(SOURCE)
        chosen = query.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).multi(True).include_all(True)
        built = built.with_variable(chosen)
    for shown in panels:
        built = built.with_panel(panel(shown))
    return built


def panel(shown: Shown) -> stat.Panel | timeseries.Panel:
    built = stat.Panel() if shown.is_number else timeseries.Panel()
    built = built.title(shown.title).datasource(SOURCE).unit(shown.unit).min(0)
    built = built.span(6).height(4) if shown.is_number else built.span(12).height(8)
    for reference, (expression, legend) in zip("ABCDEF", shown.lines, strict=False):
        query = Dataquery().ref_id(reference).expr(expression).legend_format(legend)
        built = built.with_target(query.instant() if shown.is_number else query.range())
    return built


def without_nulls(value: Any) -> Any:
    """Leave out what has no value: Grafana then takes its default, and for a null it may not."""
    if isinstance(value, dict):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def dashboards() -> dict[str, str]:
    """The files of all dashboards, by name."""
    built = {"fleet": fleet(), "host": host(), "model": model()}
    return {
        f"{name}.json": json.dumps(
            without_nulls(json.loads(JSONEncoder().encode(one.build()))), indent=2, sort_keys=True
        )
        + "\n"
        for name, one in built.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in dashboards().items():
        (FOLDER / name).write_text(text)
