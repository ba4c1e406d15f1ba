# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the header of a GGUF file: metadata and tensor infos, never a token array, never the weights.

The file is a stranger's. Every count is held against the bytes that are left before anything is done with it, what is
kept is bounded, nesting is walked without recursion, and processor time per file has a budget.
"""

from __future__ import annotations

import os
import stat
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Union

from ._errors import MagiError

Scalar = Union[int, float, bool, str]
Value = Union[Scalar, tuple[Scalar, ...]]

BLOCK = 1 << 20
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_NESTING = 4
MAX_KEY = 0xFFFF  # the format's own limit
MAX_TENSOR_NAME = 63  # ggml's

# What is kept in memory, at most. The largest real headers stay far below: 2,000 keys, 10,000 tensors, 100 KB of text.
MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_KEPT_ELEMENTS = 4_096
MAX_KEPT_STRING = 1 << 20
MAX_KEPT_TEXT = 4 << 20
MAX_KEPT_VALUES = 1 << 18

_I63 = 1 << 63


class GgufError(MagiError):
    """The file is not a GGUF file that llama.cpp could load; the text is the reason."""


class ReadError(GgufError):
    """The file could not be read this time; that says nothing about what is in it."""


class GgmlType(NamedTuple):
    """A tensor type: block_size elements are stored in type_size bytes."""

    name: str
    block_size: int
    type_size: int


# Numbers and sizes as in ggml; a unit test holds them against the gguf package.
GGML_TYPES: dict[int, GgmlType] = {
    0: GgmlType("F32", 1, 4),
    1: GgmlType("F16", 1, 2),
    2: GgmlType("Q4_0", 32, 18),
    3: GgmlType("Q4_1", 32, 20),
    6: GgmlType("Q5_0", 32, 22),
    7: GgmlType("Q5_1", 32, 24),
    8: GgmlType("Q8_0", 32, 34),
    9: GgmlType("Q8_1", 32, 40),
    10: GgmlType("Q2_K", 256, 84),
    11: GgmlType("Q3_K", 256, 110),
    12: GgmlType("Q4_K", 256, 144),
    13: GgmlType("Q5_K", 256, 176),
    14: GgmlType("Q6_K", 256, 210),
    15: GgmlType("Q8_K", 256, 292),
    16: GgmlType("IQ2_XXS", 256, 66),
    17: GgmlType("IQ2_XS", 256, 74),
    18: GgmlType("IQ3_XXS", 256, 98),
    19: GgmlType("IQ1_S", 256, 50),
    20: GgmlType("IQ4_NL", 32, 18),
    21: GgmlType("IQ3_S", 256, 110),
    22: GgmlType("IQ2_S", 256, 82),
    23: GgmlType("IQ4_XS", 256, 136),
    24: GgmlType("I8", 1, 1),
    25: GgmlType("I16", 1, 2),
    26: GgmlType("I32", 1, 4),
    27: GgmlType("I64", 1, 8),
    28: GgmlType("F64", 1, 8),
    29: GgmlType("IQ1_M", 256, 56),
    30: GgmlType("BF16", 1, 2),
    34: GgmlType("TQ1_0", 256, 54),
    35: GgmlType("TQ2_0", 256, 66),
    39: GgmlType("MXFP4", 32, 17),
    40: GgmlType("NVFP4", 64, 36),
    41: GgmlType("Q1_0", 128, 18),
}

_UINT32 = 4
_STRING = 8
_ARRAY = 9
# Metadata value types of fixed size: struct code of one little-endian element.
_FIXED: dict[int, str] = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SIZES = {number: struct.calcsize("<" + code) for number, code in _FIXED.items()}
_SCALARS = {number: struct.Struct("<" + code) for number, code in _FIXED.items()}
# The fewest bytes that one element of an array takes.
_SMALLEST = {**_SIZES, _STRING: 8, _ARRAY: 12}

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
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
    """What a GGUF file says before its weights.

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


class _Reader:
    """A cursor over a file. Reads blocks of a megabyte, and no byte twice; long skipped ranges are not read at all."""

    def __init__(self, descriptor: int, size: int, deadline: Callable[[], None]) -> None:
        self.size = size
        self._descriptor = descriptor
        self._deadline = deadline
        self._buffer = b""
        self._start = 0  # where the buffer begins in the file
        self._at = 0  # the cursor within the buffer; may lie beyond its end after a skip

    @property
    def position(self) -> int:
        return self._start + self._at

    @property
    def remaining(self) -> int:
        return self.size - self._start - self._at

    def _fill(self, count: int) -> None:
        """Have at least count bytes in the buffer from the cursor on."""
        if count > self.remaining:
            raise GgufError(
                f"truncated: the header goes on after byte {self.size}, where the file ends"
                if self.position <= self.size
                else f"truncated: the header goes on at byte {self.position}, the file has {self.size}"
            )
        self._deadline()
        tail = self._buffer[self._at :]
        self._start += self._at
        self._at = 0
        pieces = [tail]
        have = len(tail)
        while have < count:
            piece = os.pread(self._descriptor, max(BLOCK, count - have), self._start + have)
            if not piece:
                raise ReadError("truncated: the file became shorter while it was read")
            pieces.append(piece)
            have += len(piece)
        self._buffer = b"".join(pieces)

    def take(self, layout: struct.Struct) -> tuple[int, ...]:
        if self._at + layout.size > len(self._buffer):
            self._fill(layout.size)
        values = layout.unpack_from(self._buffer, self._at)
        self._at += layout.size
        return values

    def bytes(self, count: int) -> bytes:
        if self._at + count > len(self._buffer):
            self._fill(count)
        data = self._buffer[self._at : self._at + count]
        self._at += count
        return data

    def skip(self, count: int) -> None:
        # Past the end too: the next read, or the end of the header, tells.
        self._at += count

    def skip_strings(self, count: int) -> None:
        """Walk over count length-prefixed strings. This loop is where a scan's time goes."""
        unpack = _U64.unpack_from
        while count:
            buffer = self._buffer
            at = self._at
            left = 0
            try:
                for left in range(count, 0, -1):  # noqa: B007
                    at += 8 + unpack(buffer, at)[0]
                left = 0
            except (struct.error, OverflowError, IndexError):
                pass  # the next prefix is not in the buffer
            self._at = at
            count = left
            if self.remaining < 8 * count:
                raise GgufError(f"truncated or broken: {count} strings of an array reach over the file's end")
            if count:
                self._fill(8)


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise GgufError(f"broken: {what} is not UTF-8") from None


def _name(reader: _Reader, what: str, limit: int) -> str:
    (length,) = reader.take(_U64)
    if length > reader.remaining:
        raise GgufError(f"truncated or broken: {what} has {length} bytes, the file has {reader.remaining} left")
    if length > limit:
        raise GgufError(f"broken: {what} has {length} bytes, {limit} at most")
    return _text(reader.bytes(length), what)


def _printable(name: str) -> str:
    """A stranger's name, fit for one line of a message."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


class Budget:
    """What reading one model may take, however many shards it has: processor time, and what stays in memory."""

    def __init__(self, seconds: float = 2.0) -> None:
        self._seconds = seconds
        # Processor time, so that a slow disk does not condemn a good file.
        self._ends_at = time.thread_time() + seconds
        self._text = 0
        self._values = 0
        self._keys = 0
        self._tensors = 0

    def time(self) -> None:
        if time.thread_time() > self._ends_at:
            raise GgufError(f"broken: reading the header takes more than {self._seconds:g} s of processor time")

    def counts(self, keys: int, tensors: int) -> None:
        self._keys += keys
        self._tensors += tensors
        for count, limit, what in ((self._keys, MAX_KEYS, "keys"), (self._tensors, MAX_TENSORS, "tensors")):
            if count > limit:
                raise GgufError(f"broken: the header announces {count} {what}; no model has more than {limit}")

    def text(self, count: int) -> None:
        self._text += count
        if self._text > MAX_KEPT_TEXT:
            raise GgufError(f"broken: the header has more than {MAX_KEPT_TEXT >> 20} MiB of names and texts")

    def values(self, count: int) -> None:
        self._values += count
        if self._values > MAX_KEPT_VALUES:
            raise GgufError(f"broken: the header has more than {MAX_KEPT_VALUES} numbers in short arrays")


def _array_head(reader: _Reader, key: str) -> tuple[int, int]:
    element, count = reader.take(_U32_U64)
    smallest = _SMALLEST.get(element)
    if smallest is None:
        raise GgufError(f"broken: the array {_printable(key)} has elements of the unknown type {element}")
    if count * smallest > reader.remaining:
        raise GgufError(
            f"truncated or broken: the array {_printable(key)} has {count} elements, "
            f"the file has {reader.remaining} bytes left"
        )
    return element, count


def _skip_arrays(reader: _Reader, key: str, count: int) -> None:
    """Walk over count arrays, which may hold arrays themselves."""
    open_arrays = [count]
    while open_arrays:
        if not open_arrays[-1]:
            open_arrays.pop()
            continue
        open_arrays[-1] -= 1
        element, count = _array_head(reader, key)
        if element == _ARRAY:
            if len(open_arrays) + 1 >= MAX_NESTING:
                raise GgufError(f"broken: the array {_printable(key)} is nested more than {MAX_NESTING} deep")
            open_arrays.append(count)
        elif element == _STRING:
            reader.skip_strings(count)
        else:
            reader.skip(count * _SIZES[element])


def _array(reader: _Reader, key: str, budget: Budget) -> tuple[int, Value | None]:
    """The array's length, and its elements where they are few and numeric."""
    element, count = _array_head(reader, key)
    if element == _ARRAY:
        _skip_arrays(reader, key, count)
    elif element == _STRING:
        reader.skip_strings(count)
    elif count > MAX_KEPT_ELEMENTS:
        reader.skip(count * _SIZES[element])
    else:
        budget.values(count)
        return count, struct.unpack(f"<{count}{_FIXED[element]}", reader.bytes(count * _SIZES[element]))
    return count, None


def _metadata(reader: _Reader, count: int, budget: Budget) -> tuple[dict[str, Value], dict[str, int], dict[str, int]]:
    metadata: dict[str, Value] = {}
    arrays: dict[str, int] = {}
    texts: dict[str, int] = {}
    for _index in range(count):
        key = _name(reader, "a key", MAX_KEY)
        budget.text(len(key))
        if key in metadata or key in arrays or key in texts:
            raise GgufError(f"broken: the key {_printable(key)} is there twice")
        (kind,) = reader.take(_U32)
        if key == "general.alignment" and kind != _UINT32:
            raise GgufError("broken: general.alignment is not of the type u32")
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            metadata[key] = reader.take(scalar)[0]
        elif kind == _STRING:
            (length,) = reader.take(_U64)
            if length > MAX_KEPT_STRING:
                reader.skip(length)
                texts[key] = length
            else:
                budget.text(length)
                # Text from a stranger in any encoding: shown to people, so what is not UTF-8 is marked, not refused.
                metadata[key] = reader.bytes(length).decode("utf-8", "replace")
        elif kind == _ARRAY:
            arrays[key], elements = _array(reader, key, budget)
            if elements is not None:
                metadata[key] = elements
        else:
            raise GgufError(f"broken: the key {_printable(key)} has the unknown type {kind}")
    return metadata, arrays, texts


def _tensor(reader: _Reader, budget: Budget) -> Tensor:
    name = _name(reader, "a tensor's name", MAX_TENSOR_NAME)
    budget.text(len(name))
    (dimensions,) = reader.take(_U32)
    if dimensions > MAX_DIMENSIONS:
        raise GgufError(f"broken: the tensor {_printable(name)} has {dimensions} dimensions, {MAX_DIMENSIONS} at most")
    *shape, kind, offset = reader.take(_TENSOR_TAILS[dimensions])
    tensor = Tensor(name, tuple(shape), kind, offset)
    ggml = GGML_TYPES.get(kind)
    if ggml is None:
        raise GgufError(
            f"the tensor {_printable(name)} has the type {kind}, which is not one of llama.cpp's: "
            "the file is broken, or made for a fork or a newer llama.cpp"
        )
    if tensor.elements >= _I63 or any(dimension >= _I63 for dimension in shape):
        raise GgufError(f"broken: the tensor {_printable(name)} has the shape {tuple(shape)}")
    if (shape[0] if shape else 1) % ggml.block_size:
        raise GgufError(
            f"broken: the tensor {_printable(name)} has rows of {shape[0] if shape else 1} elements, "
            f"which is no multiple of {ggml.name}'s block of {ggml.block_size}"
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
    """The end of the last tensor's data. Tensors lie one after the other, as llama.cpp demands."""
    end = 0
    for tensor in tensors:
        if tensor.offset != _padded(end, alignment):
            raise GgufError(
                f"broken: the data of the tensor {_printable(tensor.name)} is said to be at {tensor.offset}, "
                f"it must be at {_padded(end, alignment)}"
            )
        end = tensor.offset + tensor.n_bytes
    return end


def _opening(reader: _Reader) -> tuple[int, int, int]:
    """Version, number of tensors and number of keys."""
    if reader.size < 4:
        raise GgufError(f"not a GGUF file: it has {reader.size} bytes")
    magic = reader.bytes(4)
    if magic != b"GGUF":
        if not any(magic):
            raise GgufError("not a GGUF file: it begins with zeros, perhaps a download that was never filled")
        raise GgufError(f"not a GGUF file: it begins with {magic!r}")
    if reader.size < 8:
        raise GgufError(f"truncated: the header goes on after byte {reader.size}, where the file ends")
    (version,) = reader.take(_U32)
    if version and not version & 0xFFFF:
        raise GgufError("big-endian: llama.cpp on this machine reads little-endian files only")
    if version == 1:
        raise GgufError("GGUF version 1: no llama.cpp of today reads it; convert the model again")
    if version not in (2, 3):
        raise GgufError(f"GGUF version {version} is not known; versions 2 and 3 are")
    tensors, keys = reader.take(_COUNTS)
    for count, smallest, what in ((keys, 13, "keys"), (tensors, 24, "tensors")):
        if count * smallest > reader.remaining:
            raise GgufError(
                f"truncated or broken: the header announces {count} {what}, the file has {reader.remaining} bytes left"
            )
    return version, tensors, keys


def open_regular(path: str | bytes) -> tuple[int, os.stat_result]:
    """Open a regular file for reading; the caller closes the descriptor.

    Without O_NONBLOCK, a FIFO named x.gguf would hang the scan. Raises GgufError.
    """
    try:
        # Opening alone can rewind a tape or arm a watchdog, so look first; the look after it is the one that counts.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise GgufError("not a regular file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise GgufError(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise GgufError("not a regular file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status


def read_open_header(descriptor: int, size: int, budget: Budget) -> Header:
    """The header of an open file of that size. Raises GgufError; ReadError where another try may do better."""
    reader = _Reader(descriptor, size, budget.time)
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
    """The header of the GGUF file at path. Raises GgufError with the reason, and nothing else."""
    descriptor, status = open_regular(path)
    try:
        return read_open_header(descriptor, status.st_size, Budget(time_budget))
    finally:
        os.close(descriptor)
