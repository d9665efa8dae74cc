"""The kernels of the exact coding on the CPU: symbols, packed bits, Huffman costs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebitfmt.kernels.compile import kernel

Array = NDArray[Any]


@kernel
def count_keys(prediction: Array, shift: int, mask: int) -> Array:
    """How often each key (exponent field of the prediction) occurs: int64 [mask + 1]."""
    counts = np.zeros(mask + 1, np.int64)
    for i in range(prediction.size):
        counts[(np.uint64(prediction[i]) >> np.uint64(shift)) & np.uint64(mask)] += 1
    return counts


@kernel
def _ordered(u: Any, width: Any, is_float: Any) -> Any:
    """An integer that grows with the value of the bit pattern (spec section 6.2)."""
    if not is_float:
        return u
    # Only the low `width` bits of the result count.
    negative = np.uint64(0) - (u >> (width - np.uint64(1)))
    return u ^ (negative | (np.uint64(1) << (width - np.uint64(1))))


@kernel
def to_symbols(
    values: Array,
    prediction: Array,
    key: tuple[int, int],
    is_float: bool,
    starts: Array,
    out: Array,
) -> None:
    """Zigzagged differences of two bit patterns, stably sorted by key (spec section 6.2).

    `key` is (shift, mask) of the prediction's exponent field; `starts` [mask + 1] is where each
    key's symbols begin in `out`. All arrays but `starts` are unsigned integers of one width.
    """
    width = np.uint64(8 * values.itemsize)
    full = np.uint64(0xFFFFFFFFFFFFFFFF) >> (np.uint64(64) - width)
    one = np.uint64(1)
    position = starts.copy()
    for i in range(values.size):
        p = np.uint64(prediction[i])
        v = _ordered(np.uint64(values[i]), width, is_float)
        d = (v - _ordered(p, width, is_float)) & full
        z = ((d << one) ^ (np.uint64(0) - (d >> (width - one)))) & full
        k = (p >> np.uint64(key[0])) & np.uint64(key[1])
        out[position[k]] = z
        position[k] += 1


@kernel
def from_symbols(
    symbols: Array,
    prediction: Array,
    key: tuple[int, int],
    is_float: bool,
    starts: Array,
    out: Array,
) -> None:
    """The inverse of `to_symbols`."""
    width = np.uint64(8 * out.itemsize)
    full = np.uint64(0xFFFFFFFFFFFFFFFF) >> (np.uint64(64) - width)
    one = np.uint64(1)
    position = starts.copy()
    for i in range(out.size):
        p = np.uint64(prediction[i])
        k = (p >> np.uint64(key[0])) & np.uint64(key[1])
        z = np.uint64(symbols[position[k]])
        position[k] += 1
        d = (z >> one) ^ (np.uint64(0) - (z & one))
        v = (d + _ordered(p, width, is_float)) & full
        if is_float:
            # The mapping set the top bit of what was positive.
            positive = v >> (width - one)
            v ^= (np.uint64(0) - (one - positive)) | (one << (width - one))
            v &= full
        out[i] = v


@kernel
def pack_bits(values: Array, width: int, out: Array) -> None:
    """The low `width` bits of each value, one after the other, least significant bit first.

    `values` [n] are unsigned integers below 2**width, width 1 to 7; `out` is uint8
    [ceil(n * width / 8)], its unused bits become zero.
    """
    held = 0
    word = np.uint64(0)
    at = 0
    for i in range(values.size):
        word |= np.uint64(values[i]) << np.uint64(held)
        held += width
        if held >= 8:
            out[at] = np.uint8(word & np.uint64(0xFF))
            word >>= np.uint64(8)
            held -= 8
            at += 1
    if held:
        out[at] = np.uint8(word)


@kernel
def unpack_bits(packed: Array, width: int, out: Array) -> None:
    """The inverse of `pack_bits`; `out` [n] is of any unsigned type."""
    held = 0
    word = np.uint64(0)
    at = 0
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    for i in range(out.size):
        if held < width:
            word |= np.uint64(packed[at]) << np.uint64(held)
            at += 1
            held += 8
        out[i] = word & mask
        word >>= np.uint64(width)
        held -= width


@kernel
def huffman_bits(counts: Array) -> int:
    """Bits that an optimal Huffman code spends on symbols of these counts (int64, sorted up)."""
    n = counts.size
    merged = np.zeros(n, np.int64)
    total = leaf = node = 0
    for made in range(n - 1):
        weight = 0
        for _ in range(2):
            if leaf < n and (node >= made or counts[leaf] <= merged[node]):
                weight += counts[leaf]
                leaf += 1
            else:
                weight += merged[node]
                node += 1
        merged[made] = weight
        total += weight
    return total
