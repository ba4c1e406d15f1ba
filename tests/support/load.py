# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks gateways at a steady rate and counts the outcomes, as JSON: {"ok": 500, "503": 1}.

    python3 load.py --key KEY --models a,b --rate 20 --seconds 60 [--stop-file FILE] URL …

No request is repeated: what a client would have seen is counted. A third of them are streams, which are ok only with
their last line.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx

# A request that takes longer is late: no server here needs a tenth of it.
LATE_SECONDS = 20
STREAMED = 3  # one of three requests


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


async def load(
    urls: Sequence[str], models: Sequence[str], key: str, rate: float, seconds: float, stop: Path | None = None
) -> Counter[str]:
    """Ask for each model in turn until the time is over or the file exists; returns how many had which outcome."""
    outcomes: Counter[str] = Counter()
    headers = {"Authorization": f"Bearer {key}"}
    asked: set[asyncio.Task[None]] = set()
    end = time.monotonic() + seconds
    # The certificate is the test's own.
    async with httpx.AsyncClient(headers=headers, timeout=60, trust_env=False, verify=False) as client:

        async def count(url: str, model: str, is_stream: bool) -> None:
            outcomes[await ask(client, url, model, is_stream)] += 1

        # Every address is asked for every model, with and without a stream.
        turns = itertools.cycle(itertools.product(range(STREAMED), models, urls))
        for number, model, url in turns:
            if time.monotonic() > end or (stop is not None and stop.exists()):
                break
            task = asyncio.create_task(count(url, model, number == 0))
            asked.add(task)
            task.add_done_callback(asked.discard)
            await asyncio.sleep(1 / rate)
        await asyncio.gather(*asked)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("urls", nargs="+")
    parser.add_argument("--key", required=True)
    parser.add_argument("--models", required=True)
    parser.add_argument("--rate", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--stop-file", type=Path)
    given = parser.parse_args()
    models = given.models.split(",")
    outcomes = asyncio.run(load(given.urls, models, given.key, given.rate, given.seconds, given.stop_file))
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
