"""A merge that looks at one weight at a time, as a record, and what it does in plain numpy.

The order of the float32 operations is stated once, here; the kernels of `lookup`, `triton_kernels`
and `torch_reference` follow it, so that all of them give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebitfmt.errors import UsageError

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Elementwise:
    """How the task vectors of K experts become the one that is added to the base.

    With v_j = weights[j] * d_j for all experts but `select`, in order:

    - `elect` false (average, task arithmetic): t = (v_0 + v_1 + ...) / divisor;
    - `elect` true (TIES without trimming): the sign of v_0 + v_1 + ... is elected, a sum of zero
      counts as positive, and t is the sum of the v_j that have this sign, divided by the number of
      them, or by the sum of their `shares` if there are any; a divisor of zero counts as one.

    The result is d_select + (scale * t), or scale * t where `select` is None. `scale` is the
    lambda of the papers. Numbers count as float32, and so does every intermediate result.
    Making one raises `UsageError` for a divisor of zero.
    """

    weights: tuple[float, ...]
    select: int | None = None
    elect: bool = False
    shares: tuple[float, ...] | None = None
    divisor: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what would divide by zero, on every path."""
        if np.float32(self.divisor) == 0:
            raise UsageError(f"cannot divide a merge by {self.divisor}; use 1 for no division")

    @property
    def others(self) -> tuple[int, ...]:
        """The experts that are merged: all but the selected one."""
        return tuple(k for k in range(len(self.weights)) if k != self.select)

    @property
    def divisors(self) -> tuple[float, ...]:
        """What each expert adds to the divisor where it agrees with the elected sign."""
        return (1.0,) * len(self.weights) if self.shares is None else self.shares

    def apply(self, task_vectors: Array) -> Array:
        """The merged task vector, float32 [...], of task vectors float32 [K, ...]."""
        vectors = [np.float32(self.weights[k]) * task_vectors[k] for k in self.others]
        if not vectors:
            alone: Array = task_vectors[self.select or 0]
            return alone
        total = vectors[0]
        for vector in vectors[1:]:
            total = total + vector
        merged = self._elected(vectors, total) if self.elect else total / np.float32(self.divisor)
        result: Array = np.float32(self.scale) * merged
        return result if self.select is None else task_vectors[self.select] + result

    def _elected(self, vectors: list[Array], total: Array) -> Array:
        agreed = np.zeros_like(total)
        count = np.zeros_like(total)
        for k, vector in zip(self.others, vectors, strict=True):
            agrees = np.where(total >= 0, vector > 0, vector < 0)
            agreed = agreed + np.where(agrees, vector, np.float32(0))
            count = count + np.where(agrees, np.float32(self.divisors[k]), np.float32(0))
        return agreed / np.where(count == 0, np.float32(1), count)
