"""Bit patterns of BF16, F16 and F32 from one to another (spec section 6.2, prediction)."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onebitfmt.format.dtypes import DTYPES
from onebitfmt.kernels import cpu

Array = NDArray[Any]

# How the kernels name these types.
KERNEL_DTYPE: Final = {"BF16": 0, "F16": 1, "F32": 2}


def unsigned(dtype: str) -> np.dtype[Any]:
    """The little-endian unsigned integer type that holds one bit pattern."""
    return np.dtype(f"<u{DTYPES[dtype].itemsize}")


def to_float32(bits: Array, dtype: str) -> Array:
    """float32 values, of the same shape, of BF16, F16 or F32 bit patterns."""
    out = np.empty(bits.shape, np.float32)
    cpu.widen(bits.reshape(-1), KERNEL_DTYPE[dtype], out.reshape(-1))
    return out


def from_float32(values: Array, dtype: str) -> Array:
    """Bit patterns of float32 values rounded to nearest even; NaN becomes the quiet NaN."""
    out = np.empty(values.shape, unsigned(dtype))
    cpu.narrow(values.reshape(-1), KERNEL_DTYPE[dtype], out.reshape(-1))
    return out


def convert(bits: Array, source: str, target: str) -> Array:
    """Bit patterns of `source` as those of `target`: widened exactly, then rounded once."""
    if source == target:
        return bits
    return from_float32(to_float32(bits, source), target)
