"""Averaging: the base and the weighted mean of the task vectors (model soups, Wortsman 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebitfmt.merge.task_arithmetic import add_up

Array = NDArray[Any]


def average(vectors: Sequence[Array], weights: Sequence[np.float32]) -> Array:
    """Sum of weight * vector over the sum of the weights; float32 arrays of one shape."""
    return add_up(vectors, weights, normalize=True)
