"""The exact coding: lossless against a prediction, in independent chunks (spec section 6.2).

The size of a difference, counted in units in the last place, depends on the exponent of the
predicted weight, which the decoder knows. So symbols are grouped by that exponent before they are
split into planes; each plane is a zstd frame of the Huffman stage alone, since match finding only
hurts on such data.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, Final, NoReturn

import numpy as np
import zstandard
from numpy.typing import NDArray

from onebitfmt.codecs.floats import convert, unsigned
from onebitfmt.errors import FormatError
from onebitfmt.format.dtypes import DTYPES, DType
from onebitfmt.kernels import symbols as kernels

Array = NDArray[Any]
Buffer = bytes | memoryview

CHUNK: Final = 1 << 20
MIN_GROUP: Final = 2048
ZERO, SPLIT, PACK = 0, 1, 2
PACK_WIDTHS: Final = (1, 2, 4)
RAW_PLANE: Final = 1 << 31
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"

_SAMPLE: Final = 1 << 13
_HUFFMAN_ONLY: Final = zstandard.ZstdCompressionParameters.from_level(
    1, strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6, window_log=17
)


class _Zstd(threading.local):
    """Contexts are not safe to share between threads."""

    def __init__(self) -> None:
        self.huffman = zstandard.ZstdCompressor(compression_params=_HUFFMAN_ONLY)
        self.matching = zstandard.ZstdCompressor(level=3)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd = _Zstd()


def encode_table(lengths: list[int]) -> bytes:
    """The table that ends a blob: the chunks' lengths in bytes."""
    return struct.pack(f"<{len(lengths)}I", *lengths)


def chunk_spans(blob: Buffer, elements: int, where: str) -> list[tuple[int, int]]:
    """Where each chunk lies in a blob. Raises `FormatError` OBD-EXACT-TABLE."""
    count = ceil(elements / CHUNK)
    start = len(blob) - 4 * count
    if start < 0:
        raise FormatError("OBD-EXACT-TABLE", where, f"no room for a table of {count} chunks")
    lengths = struct.unpack_from(f"<{count}I", blob, start)
    if sum(lengths) != start:
        raise FormatError("OBD-EXACT-TABLE", where, "the chunks' lengths do not fill the blob")
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    return [(end - length, end) for end, length in zip(ends, lengths, strict=True)]


# --- prediction and narrowing --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """The prediction of an expert tensor: a base tensor cropped or extended to its shape.

    `base` holds bit patterns of type `dtype`; None predicts zero everywhere.
    """

    base: Array | None
    dtype: str
    shape: tuple[int, ...]
    coded: str

    def block(self, first: int, stop: int) -> Array:
        """Predicted bit patterns, in the coded type, of elements first..stop in row-major order."""
        if self.base is None:
            return np.zeros(stop - first, unsigned(self.coded))
        if self.base.shape == self.shape:
            bits = self.base.reshape(-1)[first:stop]
        else:
            bits = self._fitted(self.base, first, stop)
        return convert(bits, self.dtype, self.coded)

    def _fitted(self, base: Array, first: int, stop: int) -> Array:
        """The same from a base of another shape; only the rows that are touched are built."""
        inner = prod(self.shape[1:])
        top, bottom = first // inner, -(-stop // inner)
        rows = np.zeros((bottom - top, *self.shape[1:]), base.dtype)
        common = tuple(
            slice(0, min(a, b)) for a, b in zip(self.shape[1:], base.shape[1:], strict=True)
        )
        last = min(bottom, base.shape[0])
        if last > top:
            here, there = (slice(0, last - top), *common), (slice(top, last), *common)
            rows[here] = base[there]
        return rows.reshape(-1)[first - top * inner : stop - top * inner]


def narrowed_dtype(flat: Array, dtype: str) -> str:
    """The narrowest type that holds every value of a tensor exactly (spec section 6.2)."""
    candidates = {"F32": ("BF16", "F16"), "F16": ("BF16",)}.get(dtype, ()) if flat.size else ()
    # The first few values decide for almost every tensor.
    ends = [min(flat.size, 4096), *range(CHUNK, flat.size + CHUNK, CHUNK)]
    for target in candidates:
        spans = zip([0, *ends], ends, strict=False)
        if all(_holds(flat[begin:end], dtype, target) for begin, end in spans):
            return target
    return dtype


def _holds(bits: Array, dtype: str, target: str) -> bool:
    d = DTYPES[dtype]
    exponent = ((1 << d.exponent) - 1) << d.mantissa
    finite = (bits & bits.dtype.type(exponent)) != exponent
    back = convert(convert(bits, dtype, target), target, dtype)
    return bool(finite.all()) and np.array_equal(back, bits)


def grouping_key(dtype: DType) -> tuple[int, int]:
    """(shift, mask) of the exponent field that groups symbols; integers form one group."""
    return (dtype.mantissa, (1 << dtype.exponent) - 1) if dtype.is_float else (0, 0)


def _groups(counts: Array) -> list[int]:
    """Ends of the groups: keys in order, closed at MIN_GROUP symbols, the rest to the last."""
    ends: list[int] = []
    begin = position = 0
    for count in counts.tolist():
        position += count
        if position - begin >= MIN_GROUP:
            ends.append(position)
            begin = position
    if position > begin:
        ends[-1:] = [position]
    return ends


# --- encoding ------------------------------------------------------------------------------------


def encode_chunk(values: Array, prediction: Array, dtype: str) -> bytes:
    """The bytes of one chunk; both arrays are 1-D bit patterns of `dtype`."""
    if np.array_equal(values, prediction):
        return b"\0"
    d = DTYPES[dtype]
    key = grouping_key(d)
    counts = kernels.count_keys(prediction, *key)
    symbols = np.empty_like(values)
    kernels.to_symbols(values, prediction, key, d.is_float, np.cumsum(counts) - counts, symbols)
    parts = [b"\1"]
    begin = 0
    for end in _groups(counts):
        _encode_group(symbols[begin:end], parts)
        begin = end
    return b"".join(parts)


def _encode_group(symbols: Array, parts: list[bytes]) -> None:
    if not symbols.any():
        parts.append(bytes([ZERO]))
        return
    mode, parameter = _choose(symbols)
    if mode == SPLIT:
        parts.append(bytes([SPLIT]))
        _encode_split(symbols, parameter, parts)
        return
    parts.append(bytes([PACK, parameter]))
    top = symbols.dtype.type((1 << parameter) - 1)
    _encode_plane(_pack(np.minimum(symbols, top), parameter), parts)
    escapes = symbols[symbols >= top] - top
    if escapes.size:
        _encode_split(escapes, _split_choice(_sample(escapes))[1], parts)


def _pack(values: Array, width: int) -> Array:
    packed = np.empty(ceil(values.size * width / 8), np.uint8)
    kernels.pack_bits(values, width, packed)
    return packed


def _encode_split(symbols: Array, shift: int, parts: list[bytes]) -> None:
    kind = symbols.dtype.type
    planes = _planes(symbols, shift)
    parts.append(bytes([shift, len(planes)]))
    if shift:
        parts.append(_pack(symbols & kind((1 << shift) - 1), shift).tobytes())
    for plane in planes:
        _encode_plane(plane, parts)


def _planes(symbols: Array, shift: int) -> list[Array]:
    """Bytes from bit `shift` up to the highest that is not all zero; at least one."""
    rest = symbols >> symbols.dtype.type(shift)
    count = max(1, ceil(int(rest.max()).bit_length() / 8))
    return [(rest >> rest.dtype.type(8 * k)).astype(np.uint8) for k in range(count)]


def _encode_plane(plane: Array, parts: list[bytes]) -> None:
    data = plane.tobytes()
    frame = _zstd.huffman.compress(data)
    # Huffman codes spend at least a bit on a byte; long runs are better served by matches.
    if len(frame) < len(data) // 4:
        frame = min(frame, _zstd.matching.compress(data), key=len)
    if len(frame) < len(data):
        parts += [struct.pack("<I", len(frame)), frame]
    else:
        parts += [struct.pack("<I", len(data) | RAW_PLANE), data]


def _sample(symbols: Array) -> Array:
    return symbols if symbols.size <= _SAMPLE else symbols[:: symbols.size // _SAMPLE]


def _choose(symbols: Array) -> tuple[int, int]:
    """The mode and its parameter of least estimated cost, from a sample."""
    sample = _sample(symbols)
    cost, shift = _split_choice(sample)
    costs = [(cost, SPLIT, shift)]
    if float((sample == 0).mean()) > 0.2:
        costs += [(_pack_cost(sample, width), PACK, width) for width in PACK_WIDTHS]
    return min(costs)[1:]


def _split_choice(sample: Array) -> tuple[float, int]:
    """(estimated bits a symbol, shift) of the best place to cut off the low bits."""
    return min((_split_cost(sample, shift), shift) for shift in range(8))


def _split_cost(sample: Array, shift: int) -> float:
    return shift + sum(_plane_cost(plane) for plane in _planes(sample, shift)) / sample.size


def _pack_cost(sample: Array, width: int) -> float:
    top = sample.dtype.type((1 << width) - 1)
    cost = _plane_cost(_pack(np.minimum(sample, top), width)) / sample.size
    escapes = sample[sample >= top] - top
    if escapes.size:
        cost += _split_choice(escapes)[0] * escapes.size / sample.size
    return cost


def _plane_cost(plane: Array) -> int:
    """Bits that Huffman coding, or none, spends on a plane."""
    counts = np.bincount(plane)
    return min(8 * plane.size, int(kernels.huffman_bits(np.sort(counts[counts > 0]))))


# --- decoding ------------------------------------------------------------------------------------


def decode_chunk(data: Buffer, prediction: Array, dtype: str, where: str) -> Array:
    """The bit patterns of one chunk; `where` names it in errors.

    Raises `FormatError` with an OBD-EXACT id. Nothing larger than the chunk is allocated.
    """
    reader = _Reader(data=memoryview(data), where=where)
    marker = reader.byte()
    if marker == 0:
        reader.end()
        return np.array(prediction)
    if marker != 1:
        reader.fail("OBD-EXACT-CHUNK", f"a chunk begins with {marker}, not 0 or 1")
    d = DTYPES[dtype]
    key = grouping_key(d)
    counts = kernels.count_keys(prediction, *key)
    symbols = np.empty(prediction.size, unsigned(dtype))
    begin = 0
    for end in _groups(counts):
        _decode_group(reader, symbols[begin:end])
        begin = end
    reader.end()
    out = np.empty_like(symbols)
    kernels.from_symbols(symbols, prediction, key, d.is_float, np.cumsum(counts) - counts, out)
    return out


@dataclass(kw_only=True, slots=True)
class _Reader:
    """A position in a chunk's bytes; every read checks what is left."""

    data: memoryview
    where: str
    position: int = 0

    def fail(self, id: str, problem: str) -> NoReturn:
        raise FormatError(id, self.where, f"{problem}, at byte {self.position} of the chunk")

    def take(self, size: int, id: str) -> memoryview:
        part = self.data[self.position : self.position + size]
        if len(part) < size:
            self.fail(id, "cut short")
        self.position += size
        return part

    def byte(self) -> int:
        return self.take(1, "OBD-EXACT-CHUNK")[0]

    def end(self) -> None:
        if self.position != len(self.data):
            self.fail("OBD-EXACT-CHUNK", "bytes left over")

    def plane(self, size: int) -> Array:
        word = int.from_bytes(self.take(4, "OBD-EXACT-PLANE"), "little")
        length = word & (RAW_PLANE - 1)
        if word & RAW_PLANE:
            if length != size:
                self.fail("OBD-EXACT-PLANE", f"a raw plane of {length} bytes, not {size}")
            return np.frombuffer(self.take(length, "OBD-EXACT-PLANE"), np.uint8)
        frame = self.take(length, "OBD-EXACT-PLANE")
        return np.frombuffer(self._decompress(frame, size), np.uint8)

    def _decompress(self, frame: memoryview, size: int) -> bytes:
        try:
            if bytes(frame[:4]) != ZSTD_MAGIC or zstandard.frame_content_size(frame) != size:
                self.fail("OBD-EXACT-FRAME", f"not a zstd frame that declares {size} bytes")
            if zstandard.get_frame_parameters(frame).dict_id:
                self.fail("OBD-EXACT-FRAME", "the zstd frame needs a dictionary")
            data = _zstd.decompressor.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as e:
            self.fail("OBD-EXACT-FRAME", f"bad zstd frame ({e})")
        return data


def _decode_group(reader: _Reader, out: Array) -> None:
    mode = reader.byte()
    if mode == ZERO:
        out[:] = 0
    elif mode == SPLIT:
        _decode_split(reader, out)
    elif mode == PACK:
        _decode_pack(reader, out)
    else:
        reader.fail("OBD-EXACT-MODE", f"mode {mode} is unknown")


def _decode_split(reader: _Reader, out: Array) -> None:
    shift, count = reader.byte(), reader.byte()
    width = 8 * out.itemsize
    if shift > 7 or count < 1 or shift + 8 * count > width + 7:
        reader.fail("OBD-EXACT-SPLIT", f"{count} planes above {shift} low bits of {width}")
    out[:] = 0
    if shift:
        packed = reader.take(ceil(out.size * shift / 8), "OBD-EXACT-PLANE")
        _unpack(reader, np.frombuffer(packed, np.uint8), shift, out)
    for k in range(count):
        plane = reader.plane(out.size)
        position = shift + 8 * k
        if width - position < 8 and (plane >> (width - position)).any():
            reader.fail("OBD-EXACT-RANGE", f"a symbol needs more than {width} bits")
        out |= plane.astype(out.dtype) << out.dtype.type(position)


def _decode_pack(reader: _Reader, out: Array) -> None:
    width = reader.byte()
    if width not in PACK_WIDTHS:
        reader.fail("OBD-EXACT-PACK", f"packed width {width} is not 1, 2 or 4")
    _unpack(reader, reader.plane(ceil(out.size * width / 8)), width, out)
    top = out.dtype.type((1 << width) - 1)
    escaped = np.flatnonzero(out == top)
    if escaped.size:
        escapes = np.empty(escaped.size, out.dtype)
        _decode_split(reader, escapes)
        total = escapes + top
        if (total < top).any():
            reader.fail("OBD-EXACT-RANGE", "an escaped symbol is too large")
        out[escaped] = total


def _unpack(reader: _Reader, packed: Array, width: int, out: Array) -> None:
    used = out.size * width % 8
    if used and packed[-1] >> used:
        reader.fail("OBD-EXACT-PACK", "unused bits behind packed values are not zero")
    kernels.unpack_bits(packed, width, out)
