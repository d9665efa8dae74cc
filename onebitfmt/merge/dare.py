"""DARE (Yu 2024): drop elements of a task vector at random and make up for it by a factor.

What is kept is merged by sum (`dare_linear`) or by election (`dare_ties`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onebitfmt.merge.masks import keep_mask
from onebitfmt.merge.trim import Part, Run

Array = NDArray[Any]

# Norms under this are not matched (mergekit's bound).
_NO_NORM: Final = 1e-7


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """Keep each element with chance `density` by the mask of `key`, and multiply by `factor`."""

    key: int
    density: float
    factor: float = 1.0


def drop(values: Array, dropped: Drop, first: int) -> Array:
    """`values` (flat float32) with dropped elements set to zero; the first has index `first`."""
    kept = np.where(
        keep_mask(dropped.key, first, values.size, dropped.density), values, np.float32(0)
    )
    return kept if dropped.factor == 1.0 else kept * np.float32(dropped.factor)


def inverse_density(density: float) -> float:
    """The paper's factor 1/(1 - p), which keeps the expectation; 1 where nothing is kept."""
    return 1.0 / density if density > 0 else 1.0


def sum_ratio(before: Sequence[Part], after: Sequence[Part], run: Run) -> float:
    """mergekit's factor: the sum of magnitudes before over the one after, 1 if one is nearly 0.

    Summed in double precision in row-major order, so that threads and machines agree; mergekit
    sums in single precision, and its factor differs in the last bits.
    """
    sums = [0.0, 0.0]
    for i, parts in enumerate((before, after)):
        for part in run(_ordered_sum, parts):
            sums[i] += part
    if min(sums) < _NO_NORM:
        return 1.0
    return sums[0] / sums[1]


def _ordered_sum(part: Part) -> float:
    values = np.abs(part()).astype(np.float64).reshape(-1)
    return float(np.add.accumulate(values)[-1]) if values.size else 0.0
