# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks gateways at a steady rate and counts the outcomes, as JSON: {"ok": 500, "503": 1}.

    python3 load.py --key KEY --models a,b --rate 20 --seconds 60 [--stop-file FILE] [--counts FILE] URL …

No request is repeated: what a client would have seen is counted. Three of ten are streams, which are ok only with their
last line. Requests begin at the rate, however long the answers take. The counts file has the outcomes until now
by address, and is rewritten all the time: {"http://gateway": {"ok": 500}}.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx

# A request that takes longer is late: no server here needs a tenth of it.
LATE_SECONDS = 20
MOST_SECONDS = 1800
STREAMED = (True, False, False, True, False, False, True, False, False, False)
WRITE_SECONDS = 0.25


async def ask(client: httpx.AsyncClient, url: str, model: str, is_stream: bool) -> str:
    """The outcome of one request: ok, or what was wrong."""
    began = time.monotonic()
    body = {"model": model, "prompt": "a", "max_tokens": 4, "stream": is_stream}
    try:
        answer = await client.post(f"{url}/v1/completions", json=body)
    except httpx.HTTPError as error:
        return type(error).__name__
    if time.monotonic() - began > LATE_SECONDS:
        return "late"
    if answer.status_code != 200:
        return str(answer.status_code)
    if answer.headers.get("x-magi-model") != model or f'"model":"{model}"' not in answer.text.replace('": "', '":"'):
        return "another model"
    return "cut" if is_stream and "data: [DONE]" not in answer.text else "ok"


Counts = dict[str, Counter[str]]


@dataclass
class Answers:
    """How many requests had which outcome, and the milliseconds from the sending of each to its last byte."""

    outcomes: Counter[str] = field(default_factory=Counter)
    milliseconds: list[float] = field(default_factory=list)

    def percentile(self, percent: float) -> float:
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


async def load(
    urls: Sequence[str],
    models: Sequence[str],
    key: str,
    rate: float,
    seconds: float,
    stop: Path | None = None,
    counts_file: Path | None = None,
    answers: Answers | None = None,
) -> Answers:
    """Ask for each model in turn until the time is over or the file exists; the answers are added to those given."""
    found = answers or Answers()
    counts: Counts = {url: Counter() for url in urls}
    headers = {"Authorization": f"Bearer {key}"}
    asked: set[asyncio.Task[None]] = set()
    began = time.monotonic()
    # The certificate is the test's own.
    async with httpx.AsyncClient(headers=headers, timeout=60, trust_env=False, verify=False) as client:

        async def count(url: str, model: str, is_stream: bool) -> None:
            sent = time.monotonic()
            outcome = await ask(client, url, model, is_stream)
            found.milliseconds.append((time.monotonic() - sent) * 1000)
            found.outcomes[outcome] += 1
            counts[url][outcome] += 1

        async def keep_written(path: Path) -> None:
            while True:
                write_counts(path, counts)
                await asyncio.sleep(WRITE_SECONDS)

        writer = asyncio.create_task(keep_written(counts_file)) if counts_file else None
        # Every address is asked for every model, with and without a stream.
        turns = itertools.cycle(itertools.product(STREAMED, models, urls))
        for turn, (is_stream, model, url) in enumerate(turns):
            # A late begin does not delay those after it.
            await asyncio.sleep(max(0.0, began + turn / rate - time.monotonic()))
            if time.monotonic() > began + seconds or (stop is not None and stop.exists()):
                break
            task = asyncio.create_task(count(url, model, is_stream))
            asked.add(task)
            task.add_done_callback(asked.discard)
        await asyncio.gather(*asked)
        if writer and counts_file:
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writer
            write_counts(counts_file, counts)
    return found


@contextlib.contextmanager
def under_load(url: str, models: Sequence[str], key: str, stop: Path, rate: float = 20) -> Iterator[Answers]:
    """Ask for these models while the block runs; stop is a file that ends it. The answers grow meanwhile."""
    answers = Answers()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: asyncio.run(load([url], models, key, rate, MOST_SECONDS, stop, None, answers)))
        try:
            yield answers
        finally:
            stop.touch()
            asked.result()
            stop.unlink()


def write_counts(path: Path, counts: Counts) -> None:
    """Write the file so that a reader sees the counts of one moment."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(counts), encoding="utf-8")
    os.replace(new, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("urls", nargs="+")
    parser.add_argument("--key", required=True)
    parser.add_argument("--models", required=True)
    parser.add_argument("--rate", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--stop-file", type=Path)
    parser.add_argument("--counts", type=Path)
    given = parser.parse_args()
    models = given.models.split(",")
    answers = asyncio.run(load(given.urls, models, given.key, given.rate, given.seconds, given.stop_file, given.counts))
    print(json.dumps(answers.outcomes))


if __name__ == "__main__":
    main()
