"""What a lossless coder of a fine-tune could reach at best, and what a common one reaches.

Written apart from the package, in plain numpy: the measure must not share its mistakes.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import zstandard
from numpy.typing import NDArray

Array = NDArray[Any]

# (mantissa bits, exponent mask) of the float types.
FIELDS: Final = {"BF16": (7, 0xFF), "F16": (10, 0x1F), "F32": (23, 0xFF)}


def ulp_symbols(expert: Array, base: Array) -> Array:
    """Zigzagged differences of two arrays of float bit patterns, in units in the last place."""
    bits = 8 * expert.itemsize
    top = expert.dtype.type(1 << (bits - 1))
    x = np.where(expert & top, ~expert, expert | top)
    y = np.where(base & top, ~base, base | top)
    d = (x - y).view(f"i{expert.itemsize}")
    return ((d << 1) ^ (d >> (bits - 1))).view(expert.dtype)


def conditional_entropy(symbols: Array, base: Array, dtype: str) -> float:
    """H(symbol | exponent of the base weight) in bits a symbol, with the Miller-Madow correction.

    Symbols of 20 bits and more are cut to their 12 leading bits, the rest counted as noise: a
    sample of a tensor says nothing about the distribution of 2^32 values.
    """
    mantissa, mask = FIELDS[dtype]
    keys = (base >> base.dtype.type(mantissa)) & base.dtype.type(mask)
    total = 0.0
    for key in np.unique(keys):
        group = symbols[keys == key].astype(np.uint64)
        length = np.frompyfunc(int.bit_length, 1, 1)(group).astype(np.int64)
        noise = np.maximum(length - 12, 0)
        _, counts = np.unique((group >> noise.astype(np.uint64)) | (noise.astype(np.uint64) << 32),
                              return_counts=True)  # fmt: skip
        p = counts / group.size
        entropy = float(-(p * np.log2(p)).sum()) + (counts.size - 1) / (2 * group.size * np.log(2))
        total += entropy * group.size + float(noise.sum())
    return total / symbols.size


def planes_zstd_bytes(symbols: Array) -> int:
    """Bytes of the usual coding: byte planes of the differences, each with zstd level 3."""
    compressor = zstandard.ZstdCompressor(level=3)
    planes = symbols.view(np.uint8).reshape(-1, symbols.itemsize)
    return sum(
        len(compressor.compress(np.ascontiguousarray(planes[:, k]).tobytes()))
        for k in range(symbols.itemsize)
    )
