"""The exact coding: symbols, groups, modes, chunks, blobs (spec 6.2)."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from vectors.frames import Coder, raw, u32
from vectors.numbers import DTYPES, Tensor, convert

CHUNK: Final = 2**20

Mode = Callable[[list[int], int], bytes]  # symbols of a group, width -> mode and payload


def packed(values: Sequence[int], k: int) -> bytes:
    """Values of k bits, least significant first, across byte borders."""
    number = sum(value << (k * i) for i, value in enumerate(values))
    return number.to_bytes(-(-len(values) * k // 8), "little")


def split_payload(symbols: list[int], low: int, planes: int, coders: Sequence[Coder]) -> bytes:
    """SPLIT: `low` bits packed, then byte planes (0: as many as it takes); the last coder serves
    the rest."""
    planes = planes or max(1, -(-(max(symbols).bit_length() - low) // 8))
    result = bytes([low, planes]) + packed([symbol % 2**low for symbol in symbols], low)
    for index in range(planes):
        coder = coders[min(index, len(coders) - 1)]
        result += coder(bytes(symbol >> low + 8 * index & 255 for symbol in symbols))
    return result


def zero(symbols: list[int], width: int) -> bytes:
    """Mode 0."""
    assert not any(symbols)
    return b"\0"


def split(low: int = 0, planes: int = 0, coders: Sequence[Coder] = (raw,)) -> Mode:
    """Mode 1."""
    return lambda symbols, width: b"\1" + split_payload(symbols, low, planes, coders)


def pack(k: int, coder: Coder = raw, low: int = 0, coders: Sequence[Coder] = (raw,)) -> Mode:
    """Mode 2."""

    def mode(symbols: list[int], width: int) -> bytes:
        escape = 2**k - 1
        result = b"\2" + bytes([k]) + coder(packed([min(n, escape) for n in symbols], k))
        escaped = [symbol - escape for symbol in symbols if symbol >= escape]
        return result + (split_payload(escaped, low, 0, coders) if escaped else b"")

    return mode


def symbols_of(values: list[int], predictions: list[int], dtype: str) -> list[int]:
    """Map, difference, zigzag."""
    size, exponent, _ = DTYPES[dtype]
    width = 8 * size
    mask, top = (1 << width) - 1, 1 << (width - 1)

    def ordered(bits: int) -> int:
        if not exponent:
            return bits
        return bits ^ mask if bits & top else bits | top

    result = []
    for value, prediction in zip(values, predictions, strict=True):
        step = (ordered(value) - ordered(prediction)) & mask
        result.append((step << 1 ^ -(step >> (width - 1))) & mask)
    return result


def groups_of(predictions: list[int], dtype: str) -> list[list[int]]:
    """The element indices of each group of a chunk, in symbol order."""
    _, exponent, mantissa = DTYPES[dtype]
    keys = [bits >> mantissa & (2**exponent - 1) for bits in predictions]
    counts = Counter(keys)
    order = sorted(range(len(keys)), key=lambda index: (keys[index], index))
    groups: list[list[int]] = []
    start = end = 0
    for key in sorted(counts):
        end += counts[key]
        if end - start >= 2048:
            groups.append(order[start:end])
            start = end
    if start < end and groups:
        groups[-1] += order[start:]
    elif start < end:
        groups.append(order)
    return groups


def chunk_of(values: list[int], predictions: list[int], dtype: str, modes: Sequence[Mode]) -> bytes:
    """One chunk; the last mode serves the remaining groups; no mode means all zero."""
    symbols = symbols_of(values, predictions, dtype)
    if not modes:
        assert not any(symbols)
        return b"\0"
    result = b"\1"
    for index, group in enumerate(groups_of(predictions, dtype)):
        mode = modes[min(index, len(modes) - 1)]
        result += mode([symbols[i] for i in group], 8 * DTYPES[dtype][0])
    return result


def blob_of(chunks: Sequence[bytes]) -> bytes:
    """Chunks and their table."""
    return b"".join(chunks) + b"".join(u32(len(chunk)) for chunk in chunks)


def predictions_of(shape: Sequence[int], base: Tensor | None, dtype: str) -> list[int]:
    """Spec 6.2.1, element by element."""
    if base is None:
        return [0] * math.prod(shape)
    bits = base.bits()
    result = []
    for index in itertools.product(*(range(n) for n in shape)):
        inside = all(i < n for i, n in zip(index, base.shape, strict=True))
        place = 0
        for i, n in zip(index, base.shape, strict=True):
            place = place * n + i
        result.append(convert(bits[place] if inside else 0, base.dtype, dtype))
    return result
