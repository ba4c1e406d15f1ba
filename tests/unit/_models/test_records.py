# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From headers to records: kinds, names, tiers, shards, projectors."""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path
from typing import Any

import gguf
import pytest
from ansible_collections.magi.llama.plugins.module_utils._models.gguf import Header, Tensor, read_header
from ansible_collections.magi.llama.plugins.module_utils._models.names import assign_ids, slug
from ansible_collections.magi.llama.plugins.module_utils._models.projectors import pair_projectors
from ansible_collections.magi.llama.plugins.module_utils._models.records import (
    ModelError,
    clean_text,
    describe,
    kind_of,
)
from ansible_collections.magi.llama.plugins.module_utils._models.source_files import SourceFile
from support import gguf_files as make
from support.work import counted

TYPES = {kind.name: kind.value for kind in gguf.GGMLQuantizationType}


def weights(kind: str = "F16", name: str = "token_embd.weight") -> tuple[Tensor, ...]:
    return (Tensor(name, (256, 64), TYPES[kind], 0),)


def header_of(values: dict[str, Any], tensors: tuple[Tensor, ...] | None = None) -> Header:
    metadata = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Header(3, 32, metadata, {}, weights() if tensors is None else tensors, 0, 0, 0)


def record_of(
    name: str = "small-F16.gguf", tensors: tuple[Tensor, ...] | None = None, **changes: Any
) -> dict[str, Any]:
    file = SourceFile(f"/models/{name}", 1000, 2, 3)
    return describe([file], [header_of(make.llama_values(**changes), tensors)])


# --- kinds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("x", {"general.architecture": "llama"}, "model"),
        ("x", {"general.architecture": "llama", "llama.pooling_type": 0}, "model"),
        ("x", {"general.architecture": "qwen3", "qwen3.pooling_type": 3}, "embedding"),
        ("x", {"general.architecture": "qwen3", "qwen3.pooling_type": 4}, "reranker"),
        ("x", {"general.architecture": "clef"}, "decision"),
        ("x", {"general.architecture": "gemma-embedding2"}, "embedding"),
        ("x", {"general.architecture": "dflash-draft"}, "draft"),
        ("x", {"general.architecture": "bert", "bert.pooling_type": 2}, "embedding"),
        ("x", {"general.architecture": "bert", "bert.pooling_type": 4}, "reranker"),
        ("x", {"general.architecture": "nomic-bert"}, "embedding"),
        ("x", {"general.architecture": "bert"}, "embedding"),
        ("x", {"general.architecture": "clip"}, "mmproj"),
        ("x", {"general.architecture": "clip", "general.type": "mmproj"}, "mmproj"),
        ("x", {"general.architecture": "llama", "general.type": "adapter"}, "adapter"),
        ("x", {"general.architecture": "llama", "adapter.type": "lora"}, "adapter"),
        ("x", {"general.architecture": "controlvector"}, "adapter"),
        ("x", {"general.type": "imatrix"}, "imatrix"),
        ("x", {"general.architecture": "eagle3"}, "draft"),
        ("Mistral-Small-3.1-DRAFT-0.5B.Q8_0", {"general.architecture": "llama"}, "draft"),
        ("Overdrafted-7B", {"general.architecture": "llama"}, "model"),
        ("x", {"general.architecture": "wavtokenizer-dec"}, "vocoder"),
    ],
)
def test_kind_by_header_and_name(name: str, values: dict[str, Any], kind: str) -> None:
    assert kind_of(f"/models/{name}.gguf", values, weights()) == kind


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        # As llama-server serves it: without a pooling type it refuses embeddings and returns rankings.
        ({"general.architecture": "bert"}, "reranker"),
        ({"general.architecture": "bert", "bert.pooling_type": 1}, "embedding"),
        ({"general.architecture": "llama"}, "model"),
    ],
)
def test_encoder_with_classifier_head(values: dict[str, Any], kind: str) -> None:
    assert kind_of("/models/bge-reranker.gguf", values, (*weights(), *weights(name="cls.output.weight"))) == kind


def test_file_without_the_first_block_is_a_draft() -> None:
    values = make.llama_values(llama__block_count=62)
    nextn = (*weights(), *weights(name="blk.61.nextn.eh_proj.weight"))
    assert kind_of("/models/GLM-4.5-MTP.gguf", values, nextn) == "draft"
    assert kind_of("/models/GLM-4.5.gguf", values, (*nextn, *weights(name="blk.0.attn_q.weight"))) == "model"


@pytest.mark.parametrize(
    ("name", "said"),
    [("Qwen3-Reranker-0.6B-F16", "reranking: true"), ("Qwen3-Embedding-0.6B-F16", "embedding: true")],
)
def test_reranker_or_embedding_without_its_metadata_is_named_in_a_warning(name: str, said: str) -> None:
    (warning,) = record_of(f"{name}.gguf")["warnings"]
    assert warning.startswith("kind: the file name says ") and said in warning
    assert record_of(f"{name}.gguf", llama__pooling_type=4)["warnings"] == []


def test_file_without_tensors_is_a_vocabulary() -> None:
    assert kind_of("/models/ggml-vocab-llama.gguf", make.llama_values(), ()) == "vocab"


# --- records ---------------------------------------------------------------------------------------------------------


def test_record() -> None:
    record = record_of(
        "Small-Llama-F16.gguf",
        general__size_label="16K",
        general__license="apache-2.0",
        tokenizer__chat_template="hello",
        llama__expert_count=8,
        llama__expert_used_count=2,
        **{
            "general.base_model.0.name": "Base",
            "general.base_model.0.organization": "Some One",
            "general.base_model.0.repo_url": "https://example.org/base",
        },
    )
    memory = record.pop("memory")
    assert memory["context_length"] == 2048
    assert record == {
        "id": "",
        "display_name": "Small Llama (F16)",
        "kind": "model",
        "path": "/models/Small-Llama-F16.gguf",
        "files": ["/models/Small-Llama-F16.gguf"],
        "size_bytes": 1000,
        "shards": 1,
        "architecture": "llama",
        "name": "Small Llama",
        "source": None,
        "size_label": "16K",
        "parameter_count": 16384,
        "quantization": "F16",
        "tier": "F16",
        "bits_per_weight": 16.0,
        "context_length": 2048,
        "embedding_length": 256,
        "block_count": 2,
        "head_count": 4,
        "head_count_kv": 2,
        "expert_count": 8,
        "expert_used_count": 2,
        "sliding_window": 0,
        "tokenizer": "llama",
        "chat_template_sha256": hashlib.sha256(b"hello").hexdigest(),
        "base_model": "https://example.org/base",
        "license": "apache-2.0",
        "mmproj": None,
        "fingerprint": {"size": 1000, "mtime_ns": 2, "inode": 3, "ctime_ns": 0},
        "warnings": [],
    }


@pytest.mark.parametrize(
    ("heads", "heads_kv", "expected"),
    [
        (4, 2, (4, 2)),
        (4, None, (4, 4)),
        (None, None, (0, 0)),
        ([4, 4], [2, 2], (4, 2)),
        ([4, 8], [0, 2], ([4, 8], [0, 2])),
    ],
)
def test_head_counts(heads: Any, heads_kv: Any, expected: tuple[Any, Any]) -> None:
    # The memory shape has its own tests; here it must only not raise.
    record = record_of(**{"llama.attention.head_count": heads, "llama.attention.head_count_kv": heads_kv})
    assert (record["head_count"], record["head_count_kv"]) == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"general.architecture": None}, "no key general.architecture"),
        ({"general.architecture": "x\x1b[2J"}, "not the name of an architecture"),
        ({"llama.context_length": None}, "no key llama.context_length"),
        ({"llama.context_length": "many"}, "no key llama.context_length"),
        ({"llama.context_length": -1}, "no key llama.context_length"),
        ({"llama.block_count": None}, "no key llama.block_count"),
        ({"llama.block_count": 1 << 31}, "no model of that many layers"),
        ({"llama.embedding_length": True}, "no key llama.embedding_length"),
        ({"llama.attention.head_count": "four"}, "llama.attention.head_count is 'four'"),
        ({"split.count": 3, "split.no": 0}, "one of 3 shards, but its name"),
    ],
)
def test_header_invalid_is_rejected(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        record_of(**changes)


@pytest.mark.parametrize(
    ("name", "general_name", "display"),
    [
        ("x-Q4_K_M", "DeepSeek R1 Qwen3 8B", "DeepSeek R1 Qwen3 8B (Q4_K_M)"),
        ("x-Q4_K_M", "Deepseek-R1-Qwen3-8B", "Deepseek R1 Qwen3 8B (Q4_K_M)"),
        ("DeepSeek-R1-Q4_K_M", None, "DeepSeek R1 (Q4_K_M)"),
        ("DeepSeek-R1-Q4_K_M", "models", "DeepSeek R1 (Q4_K_M)"),
        ("DeepSeek-R1-Q4_K_M", "Model", "DeepSeek R1 (Q4_K_M)"),
        ("DeepSeek-R1-Q4_K_M", "Safetensors", "DeepSeek R1 (Q4_K_M)"),
        ("DeepSeek-R1-Q4_K_M", ".", "DeepSeek R1 (Q4_K_M)"),
        ("x-Q4_K_M", "Evil\n\x1b[31m\u202ename\0", "Evil [31m name (Q4_K_M)"),
        ("x-Q4_K_M", "通义千问 7B", "通义千问 7B (Q4_K_M)"),
        ("x-Q4_K_M", "Llama Q4_K_M", "Llama Q4_K_M"),
        ("x-Q4_K_M", "a" * 500, "a" * 80 + " (Q4_K_M)"),
    ],
)
def test_display_name(name: str, general_name: str | None, display: str) -> None:
    record = record_of(f"{name}.gguf", weights("Q4_K"), general__name=general_name, general__file_type=15)
    assert record["display_name"] == display
    assert record["name"] is None or record["name"].isprintable()


def test_clean_text() -> None:
    assert clean_text("a\tb\r\nc\x00\u2028d\ud800\ue000e") == "a b c d e"
    assert clean_text("x" * 1000, 10) == "x" * 10


# --- shards ----------------------------------------------------------------------------------------------------------


def shards(count: int, **changes: Any) -> tuple[list[SourceFile], list[Header]]:
    files = [SourceFile(f"/models/x-Q4_K-{n + 1:05}-of-{count:05}.gguf", 100 + n, 10 - n, 20 + n) for n in range(count)]
    headers = []
    for number in range(count):
        values = {"split.no": number, "split.count": count, "split.tensors.count": count}
        values = {**(make.llama_values() if number == 0 else {}), **values, **changes.get(f"shard_{number}", {})}
        headers.append(header_of(values, changes.get(f"tensors_{number}", weights("Q4_K", f"t{number}"))))
    return files, headers


def test_shards_become_one_model() -> None:
    files, headers = shards(3)
    record = describe(files, headers)
    assert record["path"] == files[0].path
    assert record["files"] == [file.path for file in files]
    assert (record["shards"], record["size_bytes"], record["parameter_count"]) == (3, 303, 3 * 16384)
    assert record["fingerprint"] == {
        "size": 303,
        "mtime_ns": 10,
        "inode": 20,
        "ctime_ns": 0,
        "shards": [[100, 10, 20, 0], [101, 9, 21, 0], [102, 8, 22, 0]],
    }
    assert slug(record["path"]) == "x-q4_k"


def test_first_shard_without_tensors_is_not_a_vocabulary() -> None:
    files, headers = shards(2, tensors_0=(), shard_0={"split.tensors.count": 1})
    assert describe(files, headers)["kind"] == "model"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shard_0": {"split.count": 4}}, r"00001-of-00003.gguf has split.count 4, its name says 3"),
        ({"shard_0": {"split.count": None}}, r"no split.count"),
        ({"shard_1": {"split.no": 2}}, r"00002-of-00003.gguf has split.no 2, its name says 1"),
        ({"shard_0": {"split.tensors.count": 5}}, r"hold 3 tensors, split.tensors.count says 5"),
        ({"tensors_1": weights("Q4_K", "t0")}, r"a tensor of the same name"),
    ],
)
def test_shards_not_matching_are_rejected(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        describe(*shards(3, **changes))


# --- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DeepSeek-R1-Qwen3-8B-Q4_K_M.gguf", "deepseek-r1-qwen3-8b-q4_k_m"),
        ("Qwen2.5 Coder (7B) [best].Q8_0.GGUF", "qwen2.5-coder-7b-best-.q8_0"),
        ("..hidden--x-.gguf", "hidden-x"),
        ("Café-Ünal-７B.gguf", "cafe-unal-7b"),
        ("通义.gguf", ""),
        ("x-00001-of-00002.gguf", "x"),
        ("a%i$HOME;rm -rf.gguf", "a-i-home-rm-rf"),
        ("a" * 240 + ".gguf", "a" * 128),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert slug(f"/models/{name}") == expected


PATHS = ["/a/x.gguf", "/b/x.gguf", "/a/X.gguf", "/a/y.gguf", "/a/通义.gguf", "/b/千问.gguf"]


def test_ids_are_unique_unit_safe_and_independent_of_order() -> None:
    ids = assign_ids(PATHS, {})
    assert ids["/a/y.gguf"] == "y"
    assert len(set(ids.values())) == len(PATHS)
    for name in ids.values():
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name)
    for order in itertools.permutations(PATHS):
        assert assign_ids(order, {}) == ids


def test_id_is_stable_when_other_files_change() -> None:
    both = assign_ids(["/a/x.gguf", "/b/x.gguf"], {})
    assert sorted(both.values()) == ["x-5c0989", "x-e83ed7"]
    assert assign_ids(["/b/x.gguf"], both) == {"/b/x.gguf": both["/b/x.gguf"]}
    alone = assign_ids(["/a/x.gguf"], {})
    assert alone == {"/a/x.gguf": "x"}
    later = assign_ids(["/a/x.gguf", "/b/x.gguf"], alone)
    assert later == {"/a/x.gguf": "x", "/b/x.gguf": both["/b/x.gguf"]}
    assert assign_ids(["/b/x.gguf"], later) == {"/b/x.gguf": both["/b/x.gguf"]}


def test_ids_of_tampered_registry_are_ignored() -> None:
    assert assign_ids(["/a/x.gguf"], {"/a/x.gguf": "../../etc"}) == {"/a/x.gguf": "x"}
    twice = {"/a/x.gguf": "x", "/b/x.gguf": "x"}
    ids = assign_ids(list(twice), twice)
    assert ids["/a/x.gguf"] == "x" and ids["/b/x.gguf"].startswith("x-")
    assert assign_ids(list(twice)[::-1], twice) == ids


def test_id_suffix_taken_by_another_file_is_unique() -> None:
    taken = assign_ids(["/a/x.gguf", "/b/x.gguf"], {})["/b/x.gguf"]
    ids = assign_ids(["/a/x.gguf", "/b/x.gguf", f"/a/{taken}.gguf"], {})
    assert len(set(ids.values())) == 3


# --- projectors ------------------------------------------------------------------------------------------------------


def model(
    name: str, *, folder: str = "/m", embedding: int = 256, blocks: int = 2, architecture: str = "llama"
) -> dict[str, Any]:
    return {
        "path": f"{folder}/{name}.gguf",
        "architecture": architecture,
        "block_count": blocks,
        "embedding_length": embedding,
        "mmproj": "stale",
        "warnings": ["tier: kept", "mmproj: stale"],
    }


def projector(
    name: str, *, folder: str = "/m", embedding: int | None = 256, quantization: str = "F16", projector_type: str = ""
) -> dict[str, Any]:
    path = f"{folder}/{name}.gguf"
    record = {"path": path, "kind": "mmproj", "embedding_length": embedding, "quantization": quantization}
    return {**record, "projector_type": projector_type or None}


@pytest.mark.parametrize(
    ("models", "projectors", "chosen", "warning"),
    [
        pytest.param([model("a")], [], [None], None, id="none"),
        pytest.param([model("a")], [projector("mmproj-model-f16")], ["mmproj-model-f16"], None, id="one"),
        pytest.param([model("a")], [projector("mmproj-model-f16", folder="/n")], [None], None, id="another folder"),
        pytest.param([model("a")], [projector("mmproj", embedding=512)], [None], None, id="another width"),
        pytest.param([model("a")], [projector("mmproj", embedding=None)], ["mmproj"], None, id="unknown width"),
        pytest.param(
            [model("a-Q4_0"), model("a-Q8_0")], [projector("mmproj")], ["mmproj", "mmproj"], None, id="quantizations"
        ),
        pytest.param(
            [model("gemma-4b-Q4_0"), model("llama-8b-Q4_0")],
            [projector("mmproj-gemma-4b-f16"), projector("llama-8b-mmproj-f16")],
            ["mmproj-gemma-4b-f16", "llama-8b-mmproj-f16"],
            None,
            id="by name",
        ),
        pytest.param(
            [model("gemma-4b-Q4_0"), model("llama-8b-Q4_0")],
            [projector("mmproj-gemma-4b-f16")],
            ["mmproj-gemma-4b-f16", None],
            None,
            id="another's by name",
        ),
        pytest.param(
            [model("gemma-4b-Q4_0"), model("llama-8b-Q4_0")],
            [projector("mmproj-f16")],
            [None, None],
            "fits several models in this folder, so none is used",
            id="fits two models",
        ),
        pytest.param(
            [model("a")],
            [projector("mmproj-BF16", quantization="BF16"), projector("mmproj-F16"), projector("mmproj-F32")],
            ["mmproj-F16"],
            "mmproj-F16.gguf is used",
            id="several precisions",
        ),
        pytest.param(
            [model("a")],
            [projector("mmproj-b"), projector("mmproj-c")],
            [None],
            None,
            id="named after absent models",
        ),
        pytest.param(
            [model("a-b-c")],
            [projector("mmproj-a"), projector("mmproj-b")],
            [None],
            "fit, so none is used",
            id="two that fit",
        ),
        pytest.param(
            [model("Qwen3-8B-Q4_K_M"), model("Qwen3-VL-8B-Q4_K_M")],
            [projector("mmproj-Qwen3-VL-8B-F16")],
            [None, "mmproj-Qwen3-VL-8B-F16"],
            None,
            id="not the text model of the same width",
        ),
        pytest.param(
            [model("Qwen3-8B-Q4_K_M")], [projector("mmproj-Qwen3-VL-8B-F16")], [None], None, id="its model is absent"
        ),
        pytest.param(
            [model("Qwen3-8B-Q4_0", architecture="qwen3"), model("Qwen3-VL-8B-Q4_0", architecture="qwen3vl")],
            [projector("mmproj-F16", projector_type="qwen3vl_merger")],
            [None, "mmproj-F16"],
            None,
            id="by the projector's type",
        ),
        pytest.param(
            [model("gemma-3-4b-it-Q4_0"), model("gemma-3-4b-it-qat-Q4_0")],
            [projector("mmproj-gemma-3-4b-it-F16")],
            ["mmproj-gemma-3-4b-it-F16", "mmproj-gemma-3-4b-it-F16"],
            None,
            id="variants share it",
        ),
        pytest.param(
            [model("gemma-3-4b-it-qat-Q4_0")],
            [projector("mmproj-gemma-3-4b-it-F16"), projector("mmproj-gemma-3-4b-it-qat-F16")],
            ["mmproj-gemma-3-4b-it-qat-F16"],
            None,
            id="the closest name",
        ),
    ],
)
def test_projectors_are_paired(
    models: list[dict[str, Any]], projectors: list[dict[str, Any]], chosen: list[str | None], warning: str | None
) -> None:
    for order in (projectors, projectors[::-1]):
        records = [dict(record) for record in models]
        pair_projectors(records, order)
        assert [Path(record["mmproj"]).stem if record["mmproj"] else None for record in records] == chosen
        for record in records:
            assert record["warnings"][0] == "tier: kept"
            topics = [text for text in record["warnings"] if text.startswith("mmproj: ")]
            assert bool(topics) == bool(warning) and all(warning in text for text in topics)


def test_projector_of_gguf_package_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mmproj-x-F16.gguf"
    values = {"general.architecture": "clip", "general.type": "mmproj", "clip.vision.projection_dim": 256}
    path.write_bytes(make.model_bytes(values))
    record = describe([SourceFile(str(path), 1, 2, 3)], [read_header(str(path))])
    assert (record["kind"], record["embedding_length"], record["quantization"]) == ("mmproj", 256, "F16")


@pytest.mark.parametrize(
    ("tensors", "embedding"),
    [
        # LLaVA's converter writes CLIP's own 768 into the key.
        ([("mm.0.weight", (1024, 4096)), ("mm.0.bias", (4096,)), ("mm.2.bias", (4096,))], 4096),
        ([("mm.2.bias", (2048,)), ("mm.3.bias", (2560,))], 2560),
        ([("mm.model.mb_block.1.block.2.1.bias", (2048,))], 2048),
        ([("mm.model.peg.0.bias", (2048,))], 2048),
        ([("mm.model.fc.weight", (12288, 960))], 960),
        ([("mm.input_projection.weight", (2560, 1152))], 2560),
        ([("mm.model.fc.weight", (5,)), ("v.blk.0.ln1.bias", (1024,))], 768),
    ],
)
def test_projector_width_is_that_of_last_tensor(tensors: list[Any], embedding: int) -> None:
    values = {"general.architecture": "clip", "clip.vision.projection_dim": 768}
    header = header_of(values, tuple(Tensor(name, shape, 0, 0) for name, shape in tensors))
    record = describe([SourceFile("/m/mmproj.gguf", 1, 2, 3)], [header])
    assert record["embedding_length"] == embedding


def test_projector_fitting_no_model_is_reported() -> None:
    companions = [projector("mmproj-x", embedding=512), projector("mmproj-y"), projector("z", folder="/n", embedding=5)]
    assert pair_projectors([model("x-7b")], companions) == [
        "/m/mmproj-x.gguf is for models of width 512, but its folder has no such model: it is not used",
        "/m/mmproj-y.gguf is named after a model that is not in its folder: it is not used. Rename it, or name the right "
        "one as mmproj in the profile's parameters",
    ]


def test_projector_pairing_is_fast() -> None:
    models = [model(f"model-{number}-7b-Q4_K_M") for number in range(3000)]
    projectors = [projector(f"mmproj-other-{number}") for number in range(3000)]
    with counted() as work:
        pair_projectors(models, projectors)
    assert work.calls < 60 * (len(models) + len(projectors)), work
