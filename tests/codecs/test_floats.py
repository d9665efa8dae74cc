from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onebitfmt.codecs import floats
from onebitfmt.format.dtypes import DTYPES

Array = NDArray[Any]
ToTorch = Callable[[Array, str], torch.Tensor]
ToBits = Callable[[torch.Tensor], Array]
TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}
TOP_MANTISSA = {"BF16": 0x40, "F16": 0x200, "F32": 0x400000}


def patterns(dtype: str) -> Array:
    """All patterns of 16 bits; of 32 bits the halfway points of BF16, F16 and random ones."""
    if dtype != "F32":
        return np.arange(1 << 16, dtype=np.uint16)
    rng = np.random.default_rng(5)
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    ties = [upper + np.uint32(low) for low in (0, 0x1000, 0x3000, 0x7FFF, 0x8000, 0x8001)]
    return np.concatenate([*ties, rng.integers(0, 1 << 32, 100_000, np.uint32)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_patterns_are_little_endian_and_unsigned(dtype: str) -> None:
    found = floats.unsigned(dtype)
    assert (found.kind, found.itemsize) == ("u", DTYPES[dtype].bits // 8)
    assert np.array([1], found).tobytes()[0] == 1


@pytest.mark.parametrize(("source", "target"), tuple(permutations(TORCH, 2)))
def test_conversion_between_types(
    source: str, target: str, to_torch: ToTorch, to_bits: ToBits
) -> None:
    bits = patterns(source)
    values = to_torch(bits, source)
    found = floats.convert(bits, source, target)
    number = ~values.isnan().numpy()
    np.testing.assert_array_equal(found[number], to_bits(values.to(TORCH[target]))[number])


@pytest.mark.parametrize(("source", "target"), tuple(permutations(TORCH, 2)))
def test_nan_of_another_type_keeps_only_its_sign(source: str, target: str) -> None:
    bits = patterns(source)
    top, kind = (31 if source == "F32" else 15), bits.dtype.type
    nan = (bits & kind((1 << top) - 1)) > EXPONENT[source]
    negative = bits[nan] >> kind(top)
    found = floats.convert(bits[nan], source, target).astype(np.int64)
    sign = 1 << (31 if target == "F32" else 15)
    assert negative.any()
    assert not negative.all()
    np.testing.assert_array_equal(
        found, negative.astype(np.int64) * sign + EXPONENT[target] + TOP_MANTISSA[target]
    )


@pytest.mark.parametrize("dtype", TORCH)
def test_conversion_to_the_same_type_changes_no_bit(dtype: str) -> None:
    bits = patterns(dtype)
    np.testing.assert_array_equal(floats.convert(bits, dtype, dtype), bits)


@pytest.mark.parametrize("shape", [(), (0,), (6,), (2, 3), (3, 0, 2), (2, 1, 3)])
@pytest.mark.parametrize("dtype", TORCH)
def test_shapes_are_kept(dtype: str, shape: tuple[int, ...]) -> None:
    bits = np.zeros(shape, floats.unsigned(dtype))
    values = floats.to_float32(bits, dtype)
    back = floats.from_float32(values, dtype)
    assert values.shape == back.shape == shape
    assert (values.dtype, back.dtype) == (np.dtype(np.float32), bits.dtype)


@pytest.mark.parametrize("dtype", TORCH)
def test_layout_does_not_matter(dtype: str, to_torch: ToTorch) -> None:
    bits = patterns(dtype)[: 1 << 12].reshape(64, 64)
    wanted = to_torch(bits, dtype).float().numpy()
    for view in (np.s_[:, ::2], np.s_[::-1], np.s_[3:, 5:]):
        found = floats.to_float32(bits[view], dtype)
        np.testing.assert_array_equal(found, wanted[view])
    np.testing.assert_array_equal(floats.to_float32(bits.T, dtype), wanted.T)
    np.testing.assert_array_equal(floats.from_float32(wanted.T, dtype), bits.T)
