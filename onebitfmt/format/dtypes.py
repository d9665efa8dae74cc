"""Element types of tensors, by their safetensors names (spec section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class DType:
    """An element type: `bits` wide; `mantissa` and `exponent` bits are zero for non-floats.

    The 8-bit floats count as integers here: their bit patterns are coded as they are.
    """

    name: str
    bits: int
    mantissa: int = 0
    exponent: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        """True for the floats whose order and exponent the exact coding uses."""
        return self.mantissa > 0


def _table(*dtypes: DType) -> Mapping[str, DType]:
    return MappingProxyType({d.name: d for d in dtypes})


DTYPES: Final = _table(
    DType(name="F64", bits=64, mantissa=52, exponent=11),
    DType(name="F32", bits=32, mantissa=23, exponent=8),
    DType(name="F16", bits=16, mantissa=10, exponent=5),
    DType(name="BF16", bits=16, mantissa=7, exponent=8),
    DType(name="F8_E4M3", bits=8),
    DType(name="F8_E5M2", bits=8),
    DType(name="I64", bits=64),
    DType(name="I32", bits=32),
    DType(name="I16", bits=16),
    DType(name="I8", bits=8),
    DType(name="U64", bits=64),
    DType(name="U32", bits=32),
    DType(name="U16", bits=16),
    DType(name="U8", bits=8),
    DType(name="BOOL", bits=8),
)

# The types between which task vectors are taken and predictions converted (spec 4.2).
HALF_AND_SINGLE: Final = frozenset({"F32", "F16", "BF16"})
NARROWER: Final = frozenset({("F32", "BF16"), ("F32", "F16"), ("F16", "BF16")})


def matrices(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(S, R, C): a tensor of two or more axes as a stack of S matrices of R rows and C columns."""
    return prod(shape[:-2]), shape[-2], shape[-1]


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of this type and shape."""
    return DTYPES[dtype].itemsize * prod(shape)
