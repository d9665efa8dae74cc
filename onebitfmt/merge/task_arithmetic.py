"""Task arithmetic: the sum of weighted task vectors (Ilharco 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Weights that cancel each other leave nothing to divide by (mergekit's bound).
_NO_WEIGHT: Final = 1e-8


def add_up(vectors: Sequence[Array], weights: Sequence[np.float32], *, normalize: bool) -> Array:
    """Sum of weight * vector, from the first to the last, in float32.

    `normalize` divides by the sum of the weights, unless that is zero.
    """
    total: Array = vectors[0] * weights[0]
    for vector, weight in zip(vectors[1:], weights[1:], strict=True):
        total += vector * weight
    if normalize:
        total /= mean_divisor(weights)
    return total


def mean_divisor(weights: Sequence[np.float32]) -> np.float32:
    """The sum of the weights from the first to the last, in float32; 1 where it is nearly zero."""
    total = np.zeros((), np.float32)
    for weight in weights:
        total = total + weight
    divisor: np.float32 = np.float32(total if abs(float(total)) >= _NO_WEIGHT else 1.0)
    return divisor
