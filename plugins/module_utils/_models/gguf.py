# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Read the header of a GGUF file: metadata and tensor infos, never a token array, never the weights.

The file is untrusted: every count is checked against the remaining bytes before it is used, retained data is
bounded, nesting is handled without recursion, and processor time per file is limited.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass, field
from typing import Union

from .._core.text import quoted
from .bounded_reader import (
    FIXED_SIZES,
    FIXED_TYPES,
    MAX_KEPT_STRING,
    STRING_TYPE,
    U64,
    BoundedReader,
    Budget,
    GgufError,
    ReadError,
)
from .ggml_types import GGML_TYPES

Scalar = Union[int, float, bool, str]
Value = Union[Scalar, tuple[Scalar, ...]]
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_NESTING = 4
MAX_KEY = 0xFFFF  # the format's own limit
MAX_TENSOR_NAME = 63  # ggml's
MAX_KEPT_ELEMENTS = 4_096

_I63 = 1 << 63

_UINT32 = 4
_ARRAY = 9
_SCALARS = {number: struct.Struct("<" + code) for number, code in FIXED_TYPES.items()}
# The minimum size in bytes of one array element.
_SMALLEST = {**FIXED_SIZES, STRING_TYPE: 8, _ARRAY: 12}

_U32 = struct.Struct("<I")
_U32_U64 = struct.Struct("<IQ")
_COUNTS = struct.Struct("<QQ")
# What follows a tensor's name and number of dimensions: its dimensions, type and offset.
_TENSOR_TAILS = tuple(struct.Struct("<" + "Q" * count + "IQ") for count in range(MAX_DIMENSIONS + 1))


@dataclass(frozen=True)
class Tensor:
    """One tensor info. offset counts from the header's data_offset; shape is in ggml's order (rows first)."""

    __slots__ = ("name", "offset", "shape", "type")

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def elements(self) -> int:
        product = 1
        for dimension in self.shape:
            product *= dimension
        return product

    @property
    def n_bytes(self) -> int:
        """The exact size of the tensor's data."""
        kind = GGML_TYPES[self.type]
        return self.elements // kind.block_size * kind.type_size


@dataclass(frozen=True)
class Header:
    """The header of a GGUF file.

    metadata holds scalars and numeric or boolean arrays of up to 4,096 elements (as tuples). Other arrays are only
    counted, in array_lengths (which counts the kept ones too), and texts over 1 MiB only measured, in text_lengths.
    """

    version: int
    alignment: int
    metadata: dict[str, Value]
    array_lengths: dict[str, int]
    tensors: tuple[Tensor, ...]
    data_offset: int
    data_end: int
    file_size: int
    text_lengths: dict[str, int] = field(default_factory=dict)


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise GgufError(f"broken: {what} is not UTF-8") from None


def _name(reader: BoundedReader, what: str, limit: int) -> str:
    (length,) = reader.take(U64)
    if length > reader.remaining:
        raise GgufError(f"truncated or broken: {what} has {length} bytes, the file has {reader.remaining} left")
    if length > limit:
        raise GgufError(f"broken: {what} has {length} bytes, {limit} at most")
    return _text(reader.bytes(length), what)


def _array_head(reader: BoundedReader, key: str) -> tuple[int, int]:
    element, count = reader.take(_U32_U64)
    smallest = _SMALLEST.get(element)
    if smallest is None:
        raise GgufError(f"broken: the array {quoted(key)} has elements of the unknown type {element}")
    if count * smallest > reader.remaining:
        raise GgufError(
            f"truncated or broken: the array {quoted(key)} has {count} elements, "
            f"the file has {reader.remaining} bytes left"
        )
    return element, count


def _skip_arrays(reader: BoundedReader, key: str, count: int) -> None:
    """Skip count arrays, which may contain arrays themselves."""
    open_arrays = [count]
    while open_arrays:
        if not open_arrays[-1]:
            open_arrays.pop()
            continue
        open_arrays[-1] -= 1
        element, count = _array_head(reader, key)
        if element == _ARRAY:
            if len(open_arrays) + 1 >= MAX_NESTING:
                raise GgufError(f"broken: the array {quoted(key)} is nested more than {MAX_NESTING} deep")
            open_arrays.append(count)
        elif element == STRING_TYPE:
            reader.skip_strings(count)
        else:
            reader.skip(count * FIXED_SIZES[element])


def _array(reader: BoundedReader, key: str, budget: Budget) -> tuple[int, Value | None]:
    """Return the array's length, and its elements if they are few and numeric."""
    element, count = _array_head(reader, key)
    if element == _ARRAY:
        _skip_arrays(reader, key, count)
    elif element == STRING_TYPE:
        reader.skip_strings(count)
    elif count > MAX_KEPT_ELEMENTS:
        reader.skip(count * FIXED_SIZES[element])
    else:
        budget.values(count)
        return count, struct.unpack(f"<{count}{FIXED_TYPES[element]}", reader.bytes(count * FIXED_SIZES[element]))
    return count, None


def _metadata(
    reader: BoundedReader, count: int, budget: Budget
) -> tuple[dict[str, Value], dict[str, int], dict[str, int]]:
    metadata: dict[str, Value] = {}
    arrays: dict[str, int] = {}
    texts: dict[str, int] = {}
    for _index in range(count):
        key = _name(reader, "a key", MAX_KEY)
        budget.text(len(key))
        if key in metadata or key in arrays or key in texts:
            raise GgufError(f"broken: the key {quoted(key)} occurs twice")
        (kind,) = reader.take(_U32)
        if key == "general.alignment" and kind != _UINT32:
            raise GgufError("broken: general.alignment is not of the type u32")
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            metadata[key] = reader.take(scalar)[0]
        elif kind == STRING_TYPE:
            (length,) = reader.take(U64)
            if length > MAX_KEPT_STRING:
                reader.skip(length)
                texts[key] = length
            else:
                budget.text(length)
                # Untrusted text in any encoding, only displayed: bytes that are not UTF-8 are marked, not refused.
                metadata[key] = reader.bytes(length).decode("utf-8", "replace")
        elif kind == _ARRAY:
            arrays[key], elements = _array(reader, key, budget)
            if elements is not None:
                metadata[key] = elements
        else:
            raise GgufError(f"broken: the key {quoted(key)} has the unknown type {kind}")
    return metadata, arrays, texts


def _tensor(reader: BoundedReader, budget: Budget) -> Tensor:
    name = _name(reader, "a tensor's name", MAX_TENSOR_NAME)
    budget.text(len(name))
    (dimensions,) = reader.take(_U32)
    if dimensions > MAX_DIMENSIONS:
        raise GgufError(f"broken: the tensor {quoted(name)} has {dimensions} dimensions, {MAX_DIMENSIONS} at most")
    *shape, kind, offset = reader.take(_TENSOR_TAILS[dimensions])
    tensor = Tensor(name, tuple(shape), kind, offset)
    ggml = GGML_TYPES.get(kind)
    if ggml is None:
        raise GgufError(
            f"the tensor {quoted(name)} has the type {kind}, which is not one of llama.cpp's: "
            "the file is broken, or made for a fork or a newer llama.cpp"
        )
    if tensor.elements >= _I63 or any(dimension >= _I63 for dimension in shape):
        raise GgufError(f"broken: the tensor {quoted(name)} has the shape {tuple(shape)}")
    if (shape[0] if shape else 1) % ggml.block_size:
        raise GgufError(
            f"broken: the tensor {quoted(name)} has rows of {shape[0] if shape else 1} elements, "
            f"which is not a multiple of {ggml.name}'s block of {ggml.block_size}"
        )
    return tensor


def _alignment(metadata: dict[str, Value]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise GgufError(f"broken: general.alignment is {alignment!r}, not a power of two")
    return alignment


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _check_offsets(tensors: tuple[Tensor, ...], alignment: int) -> int:
    """The end of the last tensor's data. Tensors are contiguous, as llama.cpp requires."""
    end = 0
    for tensor in tensors:
        if tensor.offset != _padded(end, alignment):
            raise GgufError(
                f"broken: the data of the tensor {quoted(tensor.name)} is at {tensor.offset} according "
                f"to the header, but must be at {_padded(end, alignment)}"
            )
        end = tensor.offset + tensor.n_bytes
    return end


def _opening(reader: BoundedReader) -> tuple[int, int, int]:
    """Version, number of tensors and number of keys."""
    if reader.size < 4:
        raise GgufError(f"not a GGUF file: it has {reader.size} bytes")
    magic = reader.bytes(4)
    if magic != b"GGUF":
        if not any(magic):
            raise GgufError("not a GGUF file: it begins with zeros, perhaps a download that was never filled")
        raise GgufError(f"not a GGUF file: it begins with {magic!r}")
    if reader.size < 8:
        raise GgufError(f"truncated: the header continues after byte {reader.size}, where the file ends")
    (version,) = reader.take(_U32)
    if version and not version & 0xFFFF:
        raise GgufError("big-endian: llama.cpp on this machine reads little-endian files only")
    if version == 1:
        raise GgufError("GGUF version 1: current llama.cpp cannot read it; convert the model again")
    if version not in (2, 3):
        raise GgufError(f"GGUF version {version} is not known; versions 2 and 3 are")
    tensors, keys = reader.take(_COUNTS)
    for count, smallest, what in ((keys, 13, "keys"), (tensors, 24, "tensors")):
        if count * smallest > reader.remaining:
            raise GgufError(
                f"truncated or broken: the header announces {count} {what}, the file has {reader.remaining} bytes left"
            )
    return version, tensors, keys


def open_regular(path: str | bytes, real: bytes = b"") -> tuple[int, os.stat_result]:
    """Open a regular file for reading; the caller closes the descriptor.

    Without O_NONBLOCK, a FIFO named x.gguf would hang the scan. real is where the path led when it was found: a link
    that was put in its place since is not followed. Raises GgufError.
    """
    try:
        # Opening a device may already have an effect (rewind a tape, arm a watchdog): check first, and again when open.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise GgufError("not a regular file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise GgufError(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise GgufError("not a regular file")
        if real and _path_of(descriptor) not in (real, None):
            raise GgufError("it was replaced by a link while the folders were scanned: scan again")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status


def _path_of(descriptor: int) -> bytes | None:
    """The path of an open file without links; None where the system does not say, or the file is removed already."""
    try:
        path = os.readlink(b"/proc/self/fd/%d" % descriptor)
    except OSError:
        return None
    return None if path.endswith(b" (deleted)") else path


def read_open_header(descriptor: int, size: int, budget: Budget) -> Header:
    """Read the header of an open file of this size. Raises GgufError, or ReadError if another attempt may succeed."""
    reader = BoundedReader(descriptor, size, budget.time)
    try:
        version, tensor_count, key_count = _opening(reader)
        budget.counts(key_count, tensor_count)
        metadata, arrays, texts = _metadata(reader, key_count, budget)
        alignment = _alignment(metadata)
        tensors = tuple(_tensor(reader, budget) for _index in range(tensor_count))
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror or error}") from None
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise GgufError("broken: two tensors have the same name")
    end_of_header = reader.position
    data_offset = _padded(end_of_header, alignment)
    end_of_data = _check_offsets(tensors, alignment)
    data_end = data_offset + end_of_data if tensors else end_of_header
    if data_end > size:
        raise GgufError(f"truncated: tensor data ends at byte {data_end}, the file has {size}")
    return Header(version, alignment, metadata, arrays, tensors, data_offset, data_end, size, texts)


def read_header(path: str, *, time_budget: float = 2.0) -> Header:
    """Read the header of the GGUF file at path. Raises only GgufError, with the reason."""
    descriptor, status = open_regular(path)
    try:
        return read_open_header(descriptor, status.st_size, Budget(time_budget))
    finally:
        os.close(descriptor)
