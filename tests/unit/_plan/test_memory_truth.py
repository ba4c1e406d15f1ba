# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory estimate against the log of a real llama-server at load, and against its process's memory.

MAGI_LLAMA_BIN_DIR is the folder with llama-server and llama-quantize; without it these tests are skipped.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from ansible_collections.magi.llama.plugins.module_utils._models.gguf import read_header
from ansible_collections.magi.llama.plugins.module_utils._models.memory_shape import memory_shape
from ansible_collections.magi.llama.plugins.module_utils._plan.memory import estimate
from ansible_collections.magi.llama.plugins.module_utils._runtime.help_text import parse_version
from support.architectures import ARCHITECTURES, Sizes, write_model
from support.bed import free_ports

BIN_DIR = os.environ.get("MAGI_LLAMA_BIN_DIR", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BIN_DIR, reason="MAGI_LLAMA_BIN_DIR is not set"),
]

MIB = 1024 * 1024
START_SECONDS = 20

# Two context sizes, two numbers of slots, and the defaults.
LAYOUTS: list[dict[str, Any]] = [
    {"ctx_size": 1024, "parallel": 1},
    {"ctx_size": 1024, "parallel": 2},
    {"ctx_size": 4096, "parallel": 1},
    {"ctx_size": 4096, "parallel": 2},
    {},
]


@dataclass(frozen=True)
class Logged:
    """The sizes that a load logs, in MiB with two decimals, one line per buffer."""

    weights: list[float]
    kv: list[float]
    recurrent: list[float]
    compute: list[float]
    output: list[float]
    slots: int
    slot_context: int
    breakdown: list[list[int]]


def parse_log(text: str) -> Logged:
    def sizes(what: str, part: str = text) -> list[float]:
        return [float(size) for size in re.findall(rf"{what} buffer size\s*=\s*([0-9.]+) MiB", part)]

    # A context that is changed after its creation logs its sizes again.
    contexts = [sizes("compute", part) for part in text.split("constructing llama_context")[1:]]

    slots = re.search(r"n_slots = (\d+), n_ctx_slot = (\d+)", text)
    assert slots, text[-2000:]
    # The last table counts: a context that was changed to fit logs several. Each kind of buffer has a row. The table
    # of a second context is skipped.
    table = text.rpartition("memory breakdown [MiB]")[2].partition("projected")[0]
    breakdown = re.findall(r"\|   - \S+ .*= *(\d+) \+ +(\d+) \+ +(\d+) ", table)
    return Logged(
        weights=sizes("model"),
        kv=sizes("KV"),
        recurrent=sizes("RS"),
        compute=[compute[-1] for compute in contexts],
        output=sizes("output"),
        slots=int(slots.group(1)),
        slot_context=int(slots.group(2)),
        breakdown=[[int(part) for part in row] for row in breakdown if len(contexts) == 1],
    )


def arguments(settings: dict[str, Any]) -> list[str]:
    words: list[str] = []
    for key, value in settings.items():
        words.append("--" + key.replace("_", "-"))
        if value is not True:
            words.append(str(value))
    return words


@cache
def own_port() -> int:
    """A port for one server after the other: an ephemeral one may be any connection's a moment later."""
    return free_ports(1)


@contextmanager
def server(model: Path, settings: dict[str, Any]) -> Iterator[tuple[int, int, str]]:
    """A loaded server's PID and port, and its log until it was ready."""
    port = own_port()
    command = [f"{BIN_DIR}/llama-server", "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LLAMA_")}
    process = subprocess.Popen(
        [*command, "-lv", "4", *arguments(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    watchdog = threading.Timer(START_SECONDS, process.kill)
    watchdog.start()
    lines = []
    try:
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            if "listening on http" in line:
                break
        else:
            pytest.fail(f"{' '.join(command)} did not start:\n" + "".join(lines[-15:]))
        yield process.pid, port, "".join(lines)
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def load(model: Path, settings: dict[str, Any]) -> Logged:
    with server(model, settings) as (_, _, log):
        return parse_log(log)


@pytest.fixture(scope="module")
def build() -> int | None:
    result = subprocess.run([f"{BIN_DIR}/llama-server", "--version"], capture_output=True, text=True, timeout=30)
    return parse_version(result.stdout + result.stderr).build


def estimate_of(model: Path, settings: dict[str, Any], build: int | None, kind: str = "model") -> dict[str, Any]:
    header = read_header(str(model))
    shape = memory_shape(header.metadata, header.array_lengths, header.tensors)
    return estimate(shape, settings, kind=kind, build=build)


def assert_equal(ours: int, logged: list[float], what: str) -> None:
    """Equal within the log's precision: each of its lines is rounded to 0.01 MiB."""
    assert ours / MIB == pytest.approx(sum(logged), abs=0.0051 * max(1, len(logged))), what


def assert_matches(ours: dict[str, Any], logged: Logged) -> None:
    assert_equal(ours["weights_bytes"], logged.weights, "weights")
    assert_equal(ours["kv_bytes"], logged.kv, "KV cache")
    assert_equal(ours["recurrent_bytes"], logged.recurrent, "recurrent state")
    assert ours["slot_context"] == logged.slot_context
    assert_equal(ours["output_bytes"], logged.output, "output buffer")
    parts = ("weights_bytes", "kv_bytes", "recurrent_bytes", "compute_bytes", "output_bytes")
    total = sum(ours[part] for part in parts) / MIB
    real = sum(sum(sizes) for sizes in (logged.weights, logged.kv, logged.recurrent, logged.compute, logged.output))
    assert total == pytest.approx(real, rel=0.10), f"compute {ours['compute_bytes'] / MIB:.2f}, really {logged.compute}"
    if logged.breakdown:
        # MiB, each rounded down.
        rows = len(logged.breakdown)
        model, context, compute = (sum(column) for column in zip(*logged.breakdown, strict=True))
        assert ours["weights_bytes"] / MIB == pytest.approx(model, abs=rows)
        assert (ours["kv_bytes"] + ours["recurrent_bytes"]) / MIB == pytest.approx(context, abs=rows)
        assert ours["compute_bytes"] / MIB == pytest.approx(compute, rel=0.2, abs=rows)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_estimate_of_every_architecture_matches_log(architecture: str, tmp_path: Path, build: int | None) -> None:
    model = write_model(tmp_path / "model.gguf", architecture)
    kind = "embedding" if architecture == "bert" else "model"
    for layout in LAYOUTS:
        logged = load(model, {**layout, **({"embedding": True} if kind == "embedding" else {})})
        assert_matches(estimate_of(model, layout, build, kind), logged)
        assert bool(logged.kv) != (architecture in ("bert", "mamba", "mamba2", "rwkv7")), (
            "the log must have a KV cache exactly if the architecture has one"
        )


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {"ctx_size": 4096, "parallel": 2, "cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
        ("llama", {"ctx_size": 4096, "parallel": 1, "cache_type_k": "q4_0", "cache_type_v": "q5_1"}),
        ("llama", {"ctx_size": 4096, "parallel": 1, "cache_type_k": "iq4_nl", "cache_type_v": "q4_1"}),
        ("llama", {"ctx_size": 4096, "parallel": 1, "cache_type_k": "q5_0", "cache_type_v": "bf16"}),
        ("llama", {"ctx_size": 1000, "parallel": 3}),
        ("llama", {"ctx_size": 100, "parallel": 1}),
        ("llama", {"ctx_size": 8192, "parallel": 1}),
        ("llama", {"ctx_size": 4096, "parallel": 2, "flash_attn": "off"}),
        ("llama", {"ctx_size": 4096, "parallel": 4, "kv_unified": True, "ubatch_size": 128}),
        ("gemma3", {"ctx_size": 4096, "parallel": 4, "kv_unified": True}),
        ("gemma3", {"ctx_size": 4096, "parallel": 2, "swa_full": True}),
        ("gemma3", {"ctx_size": 4096, "parallel": 1, "ubatch_size": 1024, "cache_type_k": "q8_0"}),
        ("gpt-oss", {"ctx_size": 4096, "parallel": 2, "flash_attn": "off"}),
        ("deepseek2", {"ctx_size": 4096, "parallel": 2, "cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
        ("llama", {"parallel": 4}),
        ("llama", {"parallel": 4, "ctx_size": 0}),
        ("llama", {"parallel": 4, "fit": "off"}),
        ("gemma3", {"parallel": 4, "kv_unified_per_slot": 1000}),
        ("jamba", {"ctx_size": 4096, "parallel": 4, "kv_unified": True}),
        ("glm4moe", {"ctx_size": 4096, "parallel": 2, "spec_type": "draft-mtp"}),
        ("glm4moe", {"spec_type": "draft-mtp", "spec_draft_n_max": 5}),
        ("qwen3", {"ctx_size": 4096, "parallel": 1, "embedding": True, "pooling": "mean"}),
    ],
)
def test_estimate_with_other_flags_matches_log(
    architecture: str, settings: dict[str, Any], tmp_path: Path, build: int | None
) -> None:
    model = write_model(tmp_path / "model.gguf", architecture)
    assert_matches(estimate_of(model, settings, build), load(model, settings))


@pytest.mark.parametrize(
    ("architecture", "sizes", "settings"),
    [
        (
            "llama",
            Sizes(embedding=768, feed_forward=2048, heads=12, heads_kv=12),
            {"ctx_size": 8192, "ubatch_size": 2048},
        ),
        ("llama", Sizes(embedding=1024, feed_forward=3072, heads=16, heads_kv=4, layers=2), {"ctx_size": 2048}),
        ("qwen3", Sizes(embedding=512, heads=8, heads_kv=8, layers=8), {"ctx_size": 2048, "parallel": 1}),
        ("qwen3moe", Sizes(embedding=512, experts=16, layers=2), {"ctx_size": 2048, "parallel": 1}),
        ("gemma3", Sizes(layers=7, window=512, tied=True), {"ctx_size": 4096, "parallel": 2}),
        ("deepseek2", Sizes(embedding=512, heads=16, layers=2), {"ctx_size": 2048, "parallel": 2}),
        ("mamba", Sizes(embedding=512, layers=2), {"parallel": 8}),
        ("jamba", Sizes(embedding=512, layers=8), {"ctx_size": 2048, "parallel": 3}),
        ("llama", Sizes(vocabulary=32000, tied=True), {"ctx_size": 2048, "parallel": 32, "kv_unified": True}),
        ("llama", Sizes(vocabulary=32000), {"ctx_size": 2048, "parallel": 1, "embedding": True}),
    ],
)
def test_estimate_with_other_sizes_matches_log(
    architecture: str, sizes: Sizes, settings: dict[str, Any], tmp_path: Path, build: int | None
) -> None:
    model = write_model(tmp_path / "model.gguf", architecture, sizes)
    assert_matches(estimate_of(model, settings, build), load(model, settings))


@pytest.mark.parametrize(
    ("quantization", "sizes"),
    [
        (["Q4_K_M"], Sizes()),
        (["Q4_0"], Sizes()),
        (["Q2_K"], Sizes()),
        (["Q8_0"], Sizes()),
        (["Q4_K_M"], Sizes(tied=True)),
        # Embeddings of a type that is repacked for use as the output.
        (["--pure", "Q4_0"], Sizes(tied=True, vocabulary=1024)),
    ],
)
def test_estimate_of_quantised_models_matches_log(
    quantization: list[str], sizes: Sizes, tmp_path: Path, build: int | None
) -> None:
    source = write_model(tmp_path / "f16.gguf", "llama", sizes)
    model = tmp_path / "model.gguf"
    *options, name = quantization
    command = [f"{BIN_DIR}/llama-quantize", *options, str(source), str(model), name]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    for settings in ({"ctx_size": 1024, "parallel": 1}, {"ctx_size": 1024, "parallel": 1, "no_repack": True}):
        assert_matches(estimate_of(model, settings, build), load(model, settings))


@pytest.mark.parametrize(
    ("architecture", "sizes", "settings"),
    [
        ("llama", Sizes(), {"ctx_size": 2048, "parallel": 1}),
        ("llama", Sizes(vocabulary=32000), {"ctx_size": 8192, "parallel": 4}),
        ("gemma3", Sizes(layers=7), {"ctx_size": 4096, "parallel": 2}),
        ("jamba", Sizes(), {"ctx_size": 4096, "parallel": 2}),
    ],
)
def test_estimate_matches_memory_of_working_process(
    architecture: str, sizes: Sizes, settings: dict[str, Any], tmp_path: Path, build: int | None
) -> None:
    model = write_model(tmp_path / "model.gguf", architecture, sizes)
    with server(model, settings) as (pid, port, _):
        # A prompt that almost fills a slot's context, so that all reserved memory is in use.
        answer = httpx.post(
            f"http://127.0.0.1:{port}/completion", json={"prompt": "a" * 1900, "n_predict": 1}, timeout=START_SECONDS
        )
        assert answer.status_code == 200, answer.text
        status = Path(f"/proc/{pid}/status").read_text()
    resident = int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE).group(1)) * 1024  # type: ignore[union-attr]
    ours = estimate_of(model, settings, build)
    assert ours["total_bytes"] == pytest.approx(resident, rel=0.10)
