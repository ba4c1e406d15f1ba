# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parsing --version and --help of several builds, rendering flags for each, and probing a binary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._runtime.flags import (
    Flag,
    FlagError,
    FlagValueError,
    ManagedFlagError,
    UnknownFlagError,
    flags_from_fact,
    flags_to_fact,
)
from ansible_collections.magi.llama.plugins.module_utils._runtime.help_text import (
    Version,
    VersionError,
    parse_help,
    parse_version,
)
from ansible_collections.magi.llama.plugins.module_utils._runtime.render_flags import canonical_parameters, render_flags
from ansible_collections.magi.llama.plugins.module_utils._runtime.special_flags import MANAGED_FLAGS

OUTPUTS = Path(__file__).parent / "outputs"
# The real output of build 11669 (0.7.0), and two written after older formats.
NEW = parse_help((OUTPUTS / "help-11669.txt").read_text())
OLD = parse_help((OUTPUTS / "help-2025-older.txt").read_text())
IK = parse_help((OUTPUTS / "help-ik_llama.txt").read_text())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version: 9305 (63248fc3e)\nbuilt with cc for x86_64\n", Version("9305", 9305, "63248fc3e")),
        ("version: 0.7.0 (build 11669, commit 63248fc3e)\n", Version("0.7.0", 11669, "63248fc3e")),
        ("version: 0.7.0 (build 11669, commit Debian)\nbuilt with GNU 16.2.0\n", Version("0.7.0", 11669, None)),
        ("version: 0.7.0 (build 11669)\n", Version("0.7.0", 11669, None)),
        ("version: 0 (unknown)\n", Version("0", None, None)),
        ("ggml_cuda_init: found 1 CUDA devices:\nversion: 7001 (abcdef0)", Version("7001", 7001, "abcdef0")),
    ],
)
def test_parse_version(text: str, expected: Version) -> None:
    assert parse_version(text) == expected


@pytest.mark.parametrize("text", ["", "GNU bash, version 5.2", "0.7.0"])
def test_parse_version_of_another_program_is_refused(text: str) -> None:
    with pytest.raises(VersionError, match="not that of llama-server"):
        parse_version(text)


@pytest.mark.parametrize(
    ("flags", "name", "expected"),
    [
        (NEW, "ctx_size", Flag("ctx_size", "--ctx-size", True, 1, shorts=("c",))),
        (NEW, "flash_attn", Flag("flash_attn", "--flash-attn", True, 1, choices=("on", "off", "auto"), shorts=("fa",))),
        (NEW, "fit", Flag("fit", "--fit", True, 1, choices=("on", "off"), shorts=("fit",))),
        (
            NEW,
            "n_gpu_layers",
            Flag("n_gpu_layers", "--n-gpu-layers", True, 1, auto=True, aliases=("gpu_layers",), shorts=("ngl",)),
        ),
        (NEW, "kv_offload", Flag("kv_offload", "--kv-offload", False, negation="--no-kv-offload", shorts=("kvo",))),
        (NEW, "repack", Flag("repack", "--repack", False, negation="--no-repack")),
        (NEW, "ui", Flag("ui", "--ui", False, negation="--no-ui", aliases=("webui", "no_webui"))),
        (
            NEW,
            "mmproj_auto",
            Flag("mmproj_auto", "--mmproj-auto", False, negation="--no-mmproj-auto", aliases=("no_mmproj",)),
        ),
        (
            NEW,
            "split_mode",
            Flag("split_mode", "--split-mode", True, 1, ("none", "layer", "row", "tensor"), shorts=("sm",)),
        ),
        (NEW, "lora", Flag("lora", "--lora", True, 1, joined=True)),
        (NEW, "no_host", Flag("no_host", "--no-host", False)),
        (NEW, "poll", Flag("poll", "--poll", True, 1)),
        (NEW, "cpu_strict", Flag("cpu_strict", "--cpu-strict", True, 1, ("0", "1"))),
        (
            NEW,
            "control_vector_layer_range",
            Flag("control_vector_layer_range", "--control-vector-layer-range", True, 2),
        ),
        (
            NEW,
            "draft_max",
            Flag(
                "draft_max",
                "--draft-max",
                True,
                1,
                aliases=("draft", "draft_n"),
                removed=True,
                instead=("spec_draft_n_max", "spec_ngram_mod_n_max"),
            ),
        ),
        (OLD, "flash_attn", Flag("flash_attn", "--flash-attn", False, shorts=("fa",))),
        (OLD, "parallel", Flag("parallel", "--parallel", True, 1, shorts=("np",))),
        (OLD, "mlock", Flag("mlock", "--mlock", False)),
        (OLD, "no_mmap", Flag("no_mmap", "--no-mmap", False)),
        (
            OLD,
            "cont_batching",
            Flag("cont_batching", "--cont-batching", False, negation="--no-cont-batching", shorts=("cb",)),
        ),
        (OLD, "lora_scaled", Flag("lora_scaled", "--lora-scaled", True, 2)),
        (OLD, "reranking", Flag("reranking", "--reranking", False, aliases=("rerank",))),
        (IK, "ctx_size", Flag("ctx_size", "--ctx-size", True, 1, shorts=("c",))),
        (IK, "verbosity", Flag("verbosity", "--verbosity", True, 1)),
        (
            IK,
            "smart_expert_reduction",
            Flag("smart_expert_reduction", "--smart-expert-reduction", False, shorts=("ser",)),
        ),
        (IK, "override_tensor", Flag("override_tensor", "--override-tensor", True, 1, shorts=("ot",))),
        (IK, "no_mmap", Flag("no_mmap", "--no-mmap", False)),
        (IK, "control_vector_layer_range", Flag("control_vector_layer_range", "--control-vector-layer-range", True, 2)),
    ],
)
def test_parse_help(flags: dict[str, Flag], name: str, expected: Flag) -> None:
    assert flags[name] == expected


def test_parse_help_finds_every_long_flag_and_nothing_else() -> None:
    # Counted by hand in the recorded help: an entry starts in the first column.
    lines = (OUTPUTS / "help-11669.txt").read_text().splitlines()
    entries = [line for line in lines if line.startswith("-") and not line.startswith("-----")]
    assert len(NEW) == len(entries) == 258
    assert {"cache_type_k", "allowed", "distribute"} & set(NEW) == {"cache_type_k"}
    assert "no_cont_batching" not in OLD


def test_parse_help_with_names_filling_the_column() -> None:
    filled = "-x,    --a-name-that-is-exactly-so-long   what it does\n" + " " * 40 + "(env: LLAMA_ARG_X)\n"
    filled = filled.replace("so-long   what", "so-long what")
    assert filled.index("what") == 40
    assert parse_help(filled)["a_name_that_is_exactly_so_long"].value is False


def test_flags_round_trip_through_fact() -> None:
    for flags in (NEW, OLD, IK):
        assert flags_from_fact(json.loads(json.dumps(flags_to_fact(flags)))) == flags


def test_flags_fact_is_small() -> None:
    assert len(json.dumps(flags_to_fact(NEW))) < 25_000


@pytest.mark.parametrize(
    ("flags", "parameters", "expected"),
    [
        (NEW, {}, []),
        (NEW, {"parallel": 2, "ctx_size": 4096}, ["--ctx-size", "4096", "--parallel", "2"]),
        (NEW, {"ctx_size": "4096"}, ["--ctx-size", "4096"]),
        (NEW, {"ctx_size": 4096.0}, ["--ctx-size", "4096"]),
        (NEW, {"n_predict": -1}, ["--n-predict", "-1"]),
        (NEW, {"ctx_size": None}, []),
        (NEW, {"metrics": True}, ["--metrics"]),
        (NEW, {"metrics": False}, []),
        (NEW, {"cont_batching": True}, ["--cont-batching"]),
        (NEW, {"cont_batching": False}, ["--no-cont-batching"]),
        (NEW, {"no_cont_batching": True}, ["--no-cont-batching"]),
        (NEW, {"no_webui": True}, ["--no-ui"]),
        (NEW, {"no_mmproj": True}, ["--no-mmproj-auto"]),
        (NEW, {"no_host": True}, ["--no-host"]),
        (NEW, {"flash_attn": True}, ["--flash-attn", "on"]),
        (NEW, {"flash_attn": False, "fit": False}, ["--fit", "off", "--flash-attn", "off"]),
        (NEW, {"flash_attn": "auto"}, ["--flash-attn", "auto"]),
        (NEW, {"cpu_strict": True}, ["--cpu-strict", "1"]),
        (NEW, {"n_gpu_layers": "auto"}, ["--n-gpu-layers", "auto"]),
        (NEW, {"gpu_layers": 99}, ["--n-gpu-layers", "99"]),
        (NEW, {"temp": 0.7, "top_p": 1e-05}, ["--temperature", "0.7", "--top-p", "0.00001"]),
        # This build keeps only the last of repeated flags.
        (NEW, {"lora": ["/a.gguf", "/b.gguf"]}, ["--lora", "/a.gguf,/b.gguf"]),
        (NEW, {"lora": []}, []),
        (NEW, {"logit_bias": ["1+1", "2-1"]}, ["--logit-bias", "1+1", "--logit-bias", "2-1"]),
        (NEW, {"control_vector_layer_range": [1, 9]}, ["--control-vector-layer-range", "1", "9"]),
        (
            NEW,
            {"chat_template_kwargs": {"enable_thinking": False}},
            ["--chat-template-kwargs", '{"enable_thinking":false}'],
        ),
        (NEW, {"model_draft": "/d.gguf"}, ["--spec-draft-model", "/d.gguf"]),
        (OLD, {"spec_draft_model": "/d.gguf"}, ["--model-draft", "/d.gguf"]),
        (OLD, {"flash_attn": True}, ["--flash-attn"]),
        (OLD, {"flash_attn": "on"}, ["--flash-attn"]),
        (OLD, {"flash_attn": "auto"}, []),
        (OLD, {"flash_attn": "off"}, []),
        (OLD, {"n_gpu_layers": "auto"}, []),
        (OLD, {"mmap": False, "mlock": True}, ["--mlock", "--no-mmap"]),
        (OLD, {"mmap": True}, []),
        (OLD, {"cont_batching": False}, ["--no-cont-batching"]),
        (OLD, {"kv_offload": False}, ["--no-kv-offload"]),
        (OLD, {"ui": False}, ["--no-webui"]),
        (OLD, {"lora": ["/a.gguf", "/b.gguf"]}, ["--lora", "/a.gguf", "--lora", "/b.gguf"]),
        # This build's help does not list --n-gpu-layers.
        (IK, {"n_gpu_layers": 99, "fused_moe": True}, ["--fused-moe", "--gpu-layers", "99"]),
        (IK, {"n_gpu_layers": "auto"}, []),
        # Not installed yet: there is no binary to run.
        (
            {},
            {"n_gpu_layers": "auto", "anything_at_all": 1, "flash_attn": False, "metrics": True, "slots": False},
            ["--anything-at-all", "1", "--flash-attn", "off", "--metrics", "--n-gpu-layers", "auto"],
        ),
        ({}, {"lora": ["a", "b"], "seed": None}, ["--lora", "a", "--lora", "b"]),
    ],
)
def test_render_flags(flags: dict[str, Flag], parameters: dict[str, object], expected: list[str]) -> None:
    assert render_flags(parameters, flags) == expected
    assert render_flags(parameters, flags_to_fact(flags)) == expected


@pytest.mark.parametrize(
    ("flags", "key", "nearest"),
    [
        (NEW, "ctx_sise", "ctx_size"),
        (NEW, "ngl", "n_gpu_layers"),
        (NEW, "fa", "flash_attn"),
        (NEW, "--ctx-size", "ctx_size"),
        (NEW, "ctx-size", "ctx_size"),
        (NEW, "mlock", "load_mode"),
        (NEW, "no_mmap", "load_mode"),
        (NEW, "draft_max", "spec_draft_n_max"),
        (NEW, "spec_ngram_size_m", "spec_ngram_simple_size_m"),
        (OLD, "load_mode", "mlock"),
        (OLD, "spec_draft_n_max", "draft_max"),
    ],
)
def test_unknown_flag_error_names_nearest(flags: dict[str, Flag], key: str, nearest: str) -> None:
    with pytest.raises(UnknownFlagError) as caught:
        render_flags({key: 1}, flags)
    assert caught.value.key == key
    assert nearest in caught.value.nearest
    assert key in str(caught.value)
    assert nearest in str(caught.value)


def test_unknown_flag_without_similar_flags() -> None:
    with pytest.raises(UnknownFlagError, match=r'no flag "zzzzqqqq"\.$'):
        render_flags({"zzzzqqqq": 1}, NEW)


@pytest.mark.parametrize("flags", [NEW, OLD, IK, {}])
@pytest.mark.parametrize("key", sorted(MANAGED_FLAGS))
def test_managed_flags_are_refused(flags: dict[str, Flag], key: str) -> None:
    with pytest.raises(ManagedFlagError, match=f'"{key}" cannot be set'):
        render_flags({key: "x"}, flags)


@pytest.mark.parametrize(
    "key", ["hf_repo_draft", "spec_draft_hf", "fim_qwen_1.5b_default", "gpt_oss_20b_default", "usage"]
)
def test_managed_flags_are_refused_under_every_name(key: str) -> None:
    with pytest.raises(ManagedFlagError):
        render_flags({key: True}, NEW)


def test_managed_flag_error_hides_secret() -> None:
    with pytest.raises(ManagedFlagError) as caught:
        render_flags({"api_key": "s3cret"}, NEW)
    assert "s3cret" not in str(caught.value)
    assert "servers_api_key_file" in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "parameters", "message"),
    [
        (NEW, {"ctx_size": True}, '"ctx_size" takes a value, not true'),
        (NEW, {"metrics": 3}, '"metrics" takes true or false, not 3'),
        (NEW, {"cache_type_k": "q9"}, "takes one of f32, f16, .*, not q9"),
        (NEW, {"ctx_size": object()}, "takes text, a number"),
        (NEW, {"temp": float("nan")}, "takes a number"),
        (NEW, {"grammar": "a\0b"}, "NUL"),
        (NEW, {"control_vector_layer_range": 3}, "takes 2 values as a list, not 1"),
        (NEW, {"gpu_layers": 1, "n_gpu_layers": 2}, "is set twice"),
        (NEW, {"slots": True, "no_slots": True}, "is set twice"),
    ],
)
def test_values_invalid_are_refused(flags: dict[str, Flag], parameters: dict[str, object], message: str) -> None:
    with pytest.raises(FlagValueError, match=message) as caught:
        render_flags(parameters, flags)
    assert isinstance(caught.value, FlagError)


def test_canonical_parameters() -> None:
    given = {"gpu_layers": 9, "no_slots": True, "ctx_size": 1}
    assert canonical_parameters(given, NEW) == {"n_gpu_layers": 9, "slots": False, "ctx_size": 1}
    assert canonical_parameters(given, {}) == given


def test_wrong_flags_of_every_kind_are_named_all_at_once():
    given = {"port": 1, "ctx_sizes": 4, "parallel": "two words", "jinja": "maybe", "threads": 2, "model": "/m.gguf"}
    with pytest.raises(FlagError) as refused:
        render_flags(given, NEW)
    text = str(refused.value)
    assert [key for key in given if f'"{key}"' in text] == ["port", "ctx_sizes", "jinja", "model"]
    with pytest.raises(FlagError, match=r'"port" cannot be set.*"model" cannot be set.*"ctx_sizes"; nearest'):
        canonical_parameters(given, NEW)
    # On a host without llama-server too.
    with pytest.raises(FlagError, match=r'"port" cannot be set.*"model" cannot be set'):
        render_flags(given, {})


def test_unknown_flags_are_named_all_at_once():
    flags = {
        "ctx_size": {"spelling": "--ctx-size", "value": True},
        "parallel": {"spelling": "--parallel", "value": True},
    }
    with pytest.raises(FlagError) as caught:
        render_flags({"ctx_sise": 1, "paralel": 2}, flags)
    assert '"ctx_sise"; nearest: ctx_size.' in str(caught.value)
    assert '"paralel"; nearest: parallel.' in str(caught.value)
