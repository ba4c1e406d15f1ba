# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GGUF files for tests: real tiny models written by the gguf package, and raw headers, valid or hostile."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from support.architectures import add_byte_vocabulary

CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"

# --- models that llama-server loads ----------------------------------------------------------------------------------


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_tiny_llama(
    path: str | os.PathLike[str],
    *,
    name: str | None = "Tiny Llama",
    seed: int = 1,
    blocks: int = 2,
    embedding: int = 256,
    heads: int = 4,
    heads_kv: int = 2,
    feed_forward: int = 512,
    context: int = 2048,
    file_type: gguf.LlamaFileType | None = gguf.LlamaFileType.MOSTLY_F16,
    chat_template: str | None = CHAT_TEMPLATE,
    split_max_tensors: int = 0,
    extra: Callable[[gguf.GGUFWriter], None] | None = None,
) -> Path:
    """A llama model in F16 with random weights (2.6 MB by default): llama-server loads it and generates random text.

    With split_max_tensors it is written as shards; path is then the name without `-00001-of-0000N`. extra adds keys.
    """
    target = Path(path)
    writer = gguf.GGUFWriter(target, "llama", split_max_tensors=split_max_tensors)
    writer.add_type(gguf.GGUFType.MODEL)
    if name is not None:
        writer.add_name(name)
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.add_context_length(context)
    writer.add_embedding_length(embedding)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads_kv)
    writer.add_rope_dimension_count(embedding // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    vocabulary = 260
    add_byte_vocabulary(writer, vocabulary)
    writer.add_vocab_size(vocabulary)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    if extra is not None:
        extra(writer)

    generator = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray[Any, np.dtype[np.float16]]:
        return (generator.standard_normal(shape) * 0.05).astype(np.float16)

    head = embedding // heads
    writer.add_tensor("token_embd.weight", weights(vocabulary, embedding))
    for block in range(blocks):
        prefix = f"blk.{block}."
        writer.add_tensor(prefix + "attn_norm.weight", np.ones(embedding, dtype=np.float32))
        writer.add_tensor(prefix + "attn_q.weight", weights(embedding, embedding))
        writer.add_tensor(prefix + "attn_k.weight", weights(head * heads_kv, embedding))
        writer.add_tensor(prefix + "attn_v.weight", weights(head * heads_kv, embedding))
        writer.add_tensor(prefix + "attn_output.weight", weights(embedding, embedding))
        writer.add_tensor(prefix + "ffn_norm.weight", np.ones(embedding, dtype=np.float32))
        writer.add_tensor(prefix + "ffn_gate.weight", weights(feed_forward, embedding))
        writer.add_tensor(prefix + "ffn_up.weight", weights(feed_forward, embedding))
        writer.add_tensor(prefix + "ffn_down.weight", weights(embedding, feed_forward))
    writer.add_tensor("output_norm.weight", np.ones(embedding, dtype=np.float32))
    writer.add_tensor("output.weight", weights(vocabulary, embedding))
    finish(writer)
    return target


def write_vocabulary_heavy(
    path: str | os.PathLike[str], *, tokens: int = 128_000, merges: int = 280_000, seed: int = 1
) -> Path:
    """A header as large as those of today's large vocabularies (10 MB by default), followed by one small tensor."""
    generator = random.Random(seed)
    alphabet = b"abcdefghijklmnopqrstuvwxyz"
    words = [bytes(generator.choices(alphabet, k=generator.randint(1, 14))) for _ in range(tokens)]
    pairs = [
        (generator.choice(words) + b" " + generator.choice(words)).decode()[: generator.randint(3, 20)]
        for _ in range(merges)
    ]
    writer = gguf.GGUFWriter(Path(path), "llama")
    writer.add_name("Vocabulary")
    writer.add_context_length(8192)
    writer.add_embedding_length(256)
    writer.add_block_count(1)
    writer.add_head_count(4)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([b"%d-%s" % item for item in enumerate(words)])
    writer.add_token_types([1] * tokens)
    writer.add_token_merges(pairs)
    writer.add_tensor("token_embd.weight", np.zeros((8, 256), dtype=np.float16))
    finish(writer)
    return Path(path)


# --- raw headers -----------------------------------------------------------------------------------------------------

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


def text(data: str | bytes) -> bytes:
    """A length-prefixed string."""
    raw = data.encode() if isinstance(data, str) else data
    return struct.pack("<Q", len(raw)) + raw


def array(element: int, values: Sequence[Any], *, count: int | None = None) -> bytes:
    """An array's value; count overrides the announced length."""
    body = b"".join(value_of(element, value) for value in values)
    return struct.pack("<IQ", element, len(values) if count is None else count) + body


def value_of(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        return bytes(value)
    return struct.pack("<" + _CODES[kind], value)


def key(name: str | bytes, kind: int, value: Any) -> bytes:
    """One key with its value; an array's value comes from array()."""
    return text(name) + struct.pack("<I", kind) + value_of(kind, value)


def keys_of(values: dict[str, Any]) -> list[bytes]:
    """Keys of the usual types for plain Python values; a list becomes an array."""
    result = []
    for name, value in values.items():
        if isinstance(value, list):
            element = _kind_of(value[0]) if value else U32
            result.append(key(name, ARRAY, array(element, value)))
        else:
            result.append(key(name, _kind_of(value), value))
    return result


def _kind_of(value: Any) -> int:
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return U32 if 0 <= value < 1 << 32 else I64
    return F32 if isinstance(value, float) else STRING


def tensor(name: str | bytes, shape: Sequence[int], kind: int = 1, offset: int = 0) -> bytes:
    """One tensor info; shape in ggml's order."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(
    keys: Iterable[bytes] = (),
    tensors: Iterable[bytes] = (),
    *,
    version: int = 3,
    key_count: int | None = None,
    tensor_count: int | None = None,
) -> bytes:
    """A header; the count arguments override the real counts."""
    key_list, tensor_list = list(keys), list(tensors)
    return b"".join(
        [
            b"GGUF",
            struct.pack(
                "<IQQ",
                version,
                len(tensor_list) if tensor_count is None else tensor_count,
                len(key_list) if key_count is None else key_count,
            ),
            *key_list,
            *tensor_list,
        ]
    )


def model_bytes(
    values: dict[str, Any] | None = None,
    tensors: Sequence[tuple[str, Sequence[int], int]] = (("token_embd.weight", (256, 260), 1),),
    *,
    alignment: int = 32,
    data: bool = True,
) -> bytes:
    """A valid file: keys, tensor infos in order, and zeros (or nothing) for the weights."""
    infos, end = [], 0
    for name, shape, kind in tensors:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        start = -(-end // alignment) * alignment
        infos.append(tensor(name, shape, kind, start))
        end = start + int(np.prod(shape)) // block * size
    head = header(keys_of(values or {}), infos)
    head += b"\0" * (-len(head) % alignment)
    return head + b"\0" * (end if data else 0)


def llama_values(**changes: Any) -> dict[str, Any]:
    """The keys of a small llama model; changes (dots as double underscores) override, None removes."""
    values: dict[str, Any] = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "Small Llama",
        "general.file_type": 1,
        "llama.context_length": 2048,
        "llama.embedding_length": 256,
        "llama.block_count": 2,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "tokenizer.ggml.model": "llama",
    }
    values.update({name.replace("__", "."): value for name, value in changes.items()})
    return {name: value for name, value in values.items() if value is not None}


def small_model(path: str | os.PathLike[str], *, tensor_type: int = 1, **changes: Any) -> Path:
    """A file of a few kilobytes that the scanner accepts as a model (llama-server does not)."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    tensors = [("token_embd.weight", (256, 4), tensor_type), ("blk.0.attn_q.weight", (256, 4), tensor_type)]
    target.write_bytes(model_bytes(llama_values(**changes), tensors))
    return target
