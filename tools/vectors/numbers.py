"""Tensors as bit patterns, with Python's own binary64 for arithmetic."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

# dtype -> (bytes, exponent bits, mantissa bits)
DTYPES: Final[dict[str, tuple[int, int, int]]] = {
    "F64": (8, 11, 52), "F32": (4, 8, 23), "F16": (2, 5, 10), "BF16": (2, 8, 7),
    "F8_E4M3": (1, 0, 0), "F8_E5M2": (1, 0, 0), "I64": (8, 0, 0), "I32": (4, 0, 0),
    "I16": (2, 0, 0), "I8": (1, 0, 0), "U64": (8, 0, 0), "U32": (4, 0, 0), "U16": (2, 0, 0),
    "U8": (1, 0, 0), "BOOL": (1, 0, 0),
}  # fmt: skip

FLOATS: Final = ("F64", "F32", "F16", "BF16")

INTEGERS: Final = tuple(name for name in DTYPES if name not in FLOATS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """A tensor as its little-endian, row-major bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def bits(self) -> list[int]:
        """The bit pattern of every element."""
        size = DTYPES[self.dtype][0]
        return list(struct.unpack(f"<{len(self.data) // size}{' BH I   Q'[size]}", self.data))


def tensor(dtype: str, shape: Sequence[int], bits: Iterable[int]) -> Tensor:
    """A tensor from bit patterns."""
    code = " BH I   Q"[DTYPES[dtype][0]]
    values = list(bits)
    assert len(values) == math.prod(shape), (len(values), shape)
    return Tensor(
        dtype=dtype, shape=tuple(shape), data=struct.pack(f"<{len(values)}{code}", *values)
    )


def floats(dtype: str, shape: Sequence[int], values: Iterable[float]) -> Tensor:
    """A tensor from numbers, each rounded to nearest even."""
    return tensor(dtype, shape, [from_float(value, dtype) for value in values])


def single(value: float) -> float:
    """Rounds to binary32; overflow gives infinity as IEEE 754 says."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def from_float(value: float, dtype: str) -> int:
    """The bit pattern of a binary32 value (binary64 for F64), rounded to nearest even."""
    size = DTYPES[dtype][0]
    if math.isnan(value):
        raise AssertionError("NaN is spelled in bits")
    if dtype == "BF16":
        bits = from_float(value, "F32")
        return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    code = {"F64": "d", "F32": "f", "F16": "e"}[dtype]
    value = value if dtype == "F64" else single(value)
    try:
        return int.from_bytes(struct.pack(f"<{code}", value), "little")
    except OverflowError:
        infinite = struct.pack(f"<{code}", math.copysign(math.inf, value))
        return int.from_bytes(infinite[:size], "little")


def is_nan(bits: int, dtype: str) -> bool:
    """Whether a bit pattern of a float dtype is a NaN."""
    _, exponent, mantissa = DTYPES[dtype]
    return bits & ((1 << exponent + mantissa) - 1) > ((1 << exponent) - 1) << mantissa


def to_float(bits: int, dtype: str) -> float:
    """The value of a bit pattern that is not a NaN."""
    if dtype == "BF16":
        bits, dtype = bits << 16, "F32"
    code = {"F64": "d", "F32": "f", "F16": "e"}[dtype]
    return float(struct.unpack(f"<{code}", bits.to_bytes(DTYPES[dtype][0], "little"))[0])


def convert(bits: int, source: str, target: str) -> int:
    """Spec 6.0: one value as a bit pattern of another dtype."""
    if source == target:
        return bits
    if is_nan(bits, source):
        size, exponent, mantissa = DTYPES[target]
        sign = bits >> (8 * DTYPES[source][0] - 1)
        return sign << (8 * size - 1) | ((2 << exponent) - 1) << (mantissa - 1)
    return from_float(to_float(bits, source), target)


def specials(dtype: str) -> list[int]:
    """Zeros, subnormals, limits, infinities, quiet and signalling NaNs, of both signs."""
    size, exponent, mantissa = DTYPES[dtype]
    infinity = (2**exponent - 1) << mantissa
    one = (2 ** (exponent - 1) - 1) << mantissa
    largest = 2 ** (8 * size - 1) - 1
    positive = [0, 1, 2**mantissa - 1, 2**mantissa, one, infinity - 1, infinity, infinity + 1,
                infinity + 5, infinity | 1 << (mantissa - 1), largest]  # fmt: skip
    return [*positive, *(bits + largest + 1 for bits in positive)]


def noise(count: int, below: int, seed: int = 1) -> list[int]:
    """A fixed pseudo-random sequence (a linear congruential generator)."""
    values = []
    for _ in range(count):
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        values.append((seed >> 33) % below)
    return values


def skewed(count: int, seed: int = 1) -> list[int]:
    """Small numbers, the smaller the more frequent: what symbols look like."""
    return [
        min(a, b, c)
        for a, b, c in zip(*(noise(count, 40, seed + i) for i in range(3)), strict=True)
    ]
