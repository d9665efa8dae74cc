"""Bit patterns that weights may have, and sign planes to go with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onebitfmt.kernels.reference import BF16, F32

Array = NDArray[Any]
Planes = tuple[Array, Array, Array]


def as_bits(values: Array, dtype: int) -> Array:
    """Bit patterns of values; BF16 is cut, not rounded, which is good enough to make inputs."""
    single = values.astype(np.float32)
    if dtype == F32:
        return single.view(np.uint32)
    if dtype == BF16:
        return (single.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16).view(np.uint16)


@pytest.fixture
def make_pair() -> Callable[..., tuple[Array, Array]]:
    def make(
        seed: int, shape: tuple[int, int], dtypes: tuple[int, int] = (BF16, BF16)
    ) -> tuple[Array, Array]:
        """A base and an expert; a fifth of the weights is equal, a few are zero of either sign."""
        rng = np.random.default_rng(seed)
        base = rng.normal(0.0, 0.02, shape)
        # Few mantissa bits: every type holds them, so that equal means equal.
        coarse = np.round(base * 256) / 256
        base = np.where(rng.random(shape) < 0.3, coarse, base)
        change = np.where(rng.random(shape) < 0.2, 0.0, rng.normal(0.0, 0.003, shape))
        expert = np.where(rng.random(shape) < 0.05, -0.0, base + change)
        return as_bits(base, dtypes[0]), as_bits(expert, dtypes[1])

    return make


@pytest.fixture
def make_planes() -> Callable[..., Planes]:
    def make(seed: int, count: int, shape: tuple[int, int], size: float = 0.002) -> Planes:
        rng = np.random.default_rng(seed)
        height, width = shape
        bits = rng.random((count, height, width)) < 0.5
        return (
            np.packbits(bits, axis=2, bitorder="little"),
            rng.uniform(0.0, size, (count, height)).astype(np.float32),
            rng.uniform(0.5, 1.5, (count, width)).astype(np.float32),
        )

    return make
