# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Prometheus' text format: families of samples, written, and read from what llama-server answers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

PREFIX = "llamacpp:"
# They are averages since the last request for /metrics: a second reader would get what the first one left.
RESET_WHEN_READ = frozenset({f"{PREFIX}prompt_tokens_seconds", f"{PREFIX}predicted_tokens_seconds"})
# Of one server's answer; the rest is left out.
MAX_SAMPLES = 500
MAX_HELP = 200

_HEAD = re.compile(r"# (HELP|TYPE) (llamacpp:[a-zA-Z0-9_]{1,80}) (.*)")
# What float reads, and no longer: a number that is none would end the metrics of all servers of the host.
_NUMBER = r"[-+]?[0-9]{1,30}(?:\.[0-9]{1,30})?(?:[eE][-+]?[0-9]{1,3})?|NaN|[-+]Inf"
_SAMPLE = re.compile(rf"(llamacpp:[a-zA-Z0-9_]{{1,80}})(?:\{{([^{{}}]{{0,200}})\}})? ({_NUMBER})")
# Names that begin with two underscores are Prometheus' own: __name__ would be a second name of the metric.
_LABEL = re.compile(r'(?:^|,) ?((?!__)[a-z_]{1,30})="([A-Za-z0-9_.-]{0,30})"')

Labels = Mapping[str, str]


@dataclass
class Family:
    """A metric: its kind (counter, gauge, untyped), its help text, and samples as (labels, value)."""

    name: str
    kind: str
    help: str
    samples: list[tuple[Labels, float]] = field(default_factory=list)

    def add(self, labels: Labels, value: float) -> None:
        self.samples.append((labels, value))


def exposition(families: Iterable[Family]) -> str:
    """The text of families; one without samples is left out."""
    lines: list[str] = []
    for family in families:
        if family.samples:
            lines += [f"# HELP {family.name} {_escaped(family.help)}", f"# TYPE {family.name} {family.kind}"]
            lines += [f"{family.name}{_braced(labels)} {_number(value)}" for labels, value in family.samples]
    return "".join(f"{line}\n" for line in lines)


def merge_metrics(families: dict[str, Family], text: str, labels: Labels) -> None:
    """Add llama-server's metrics to families, by name, each sample with these labels as well.

    What is not a sample of llama-server's is left out: another program's text never gets into the answer.
    """
    kinds: dict[str, dict[str, str]] = {}
    for count, line in enumerate(text.splitlines()):
        if count > 3 * MAX_SAMPLES:
            return
        head, sample = _HEAD.fullmatch(line), _SAMPLE.fullmatch(line)
        if head:
            kinds.setdefault(head[2], {})[head[1]] = head[3][:MAX_HELP]
        elif sample and sample[1] not in RESET_WHEN_READ:
            about = kinds.get(sample[1], {})
            kind = about.get("TYPE", "")
            kind = kind if kind in ("counter", "gauge") else "untyped"
            family = families.setdefault(sample[1], Family(sample[1], kind, about.get("HELP", "")))
            family.add({**dict(_LABEL.findall(sample[2] or "")), **labels}, float(sample[3]))


def _braced(labels: Labels) -> str:
    return (
        "{" + ",".join(f'{name}="{_escaped(value, quote=True)}"' for name, value in labels.items()) + "}"
        if labels
        else ""
    )


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


def _number(value: float) -> str:
    is_whole = math.isfinite(value) and abs(value) < 2**53 and value == int(value)
    return str(int(value)) if is_whole else repr(float(value))
