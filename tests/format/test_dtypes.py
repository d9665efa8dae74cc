from __future__ import annotations

from math import log2
from typing import Final

import pytest
import torch

from onebitfmt.format.dtypes import DTYPES, HALF_AND_SINGLE, NARROWER, DType, nbytes

TORCH: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FLOATS: Final = ("F64", "F32", "F16", "BF16")


def test_the_fifteen_types_are_all_and_named_like_their_keys() -> None:
    assert set(DTYPES) == set(TORCH)
    assert all(dtype.name == name for name, dtype in DTYPES.items())


@pytest.mark.parametrize("name", TORCH)
def test_item_size(name: str) -> None:
    assert DTYPES[name].itemsize == TORCH[name].itemsize
    assert DTYPES[name].bits == 8 * TORCH[name].itemsize


@pytest.mark.parametrize("name", FLOATS)
def test_fields_of_floats(name: str) -> None:
    info = torch.finfo(TORCH[name])
    mantissa = -int(log2(info.eps))
    assert DTYPES[name].is_float
    assert DTYPES[name].mantissa == mantissa
    assert DTYPES[name].exponent == info.bits - 1 - mantissa


@pytest.mark.parametrize("name", sorted(set(TORCH) - set(FLOATS)))
def test_all_others_count_as_integers(name: str) -> None:
    assert not DTYPES[name].is_float
    assert (DTYPES[name].mantissa, DTYPES[name].exponent) == (0, 0)


def test_narrower_pairs_are_those_of_the_specification() -> None:
    assert {("F32", "BF16"), ("F32", "F16"), ("F16", "BF16")} == NARROWER
    assert {"F32", "F16", "BF16"} == HALF_AND_SINGLE


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("BF16", (), 2),
        ("F32", (2, 3, 5), 120),
        ("F64", (7,), 56),
        ("U8", (0,), 0),
        ("I16", (4, 0, 2**53), 0),
        ("F64", (2**31, 2**31), 2**65),
    ],
)
def test_nbytes(dtype: str, shape: tuple[int, ...], size: int) -> None:
    assert nbytes(dtype, shape) == size


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError, match="does not support item assignment"):
        DTYPES["F4"] = DType(name="F4", bits=4)  # type: ignore[index]
    with pytest.raises(AttributeError):
        DTYPES["F32"].bits = 16  # type: ignore[misc]
