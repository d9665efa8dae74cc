from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from onebitfmt.merge.dare import Drop, drop, inverse_density, sum_ratio
from onebitfmt.merge.masks import keep_mask

VALUES = np.random.default_rng(1).normal(0, 0.01, 10_000).astype(np.float32)


def test_dropped_elements_are_zero_and_the_rest_is_scaled() -> None:
    found = drop(VALUES, Drop(key=5, density=0.25, factor=inverse_density(0.25)), 10)
    expected = VALUES * keep_mask(5, 10, VALUES.size, 0.25) * np.float32(4)
    assert np.array_equal(found, expected)


def test_the_expectation_stays() -> None:
    ones = np.ones(200_000, np.float32)
    kept = drop(ones, Drop(key=9, density=0.1, factor=inverse_density(0.1)), 0)
    assert abs(float(kept.mean()) - 1) < 0.05


def test_nothing_kept_has_a_factor_too() -> None:
    assert inverse_density(0.0) == 1.0


@pytest.mark.parametrize("size", [100, 4096, 10_000])
def test_the_ratio_is_mergekits_up_to_its_rounding(size: int) -> None:
    after = drop(VALUES, Drop(key=1, density=0.3), 0)
    parts = [
        [partial(v.__getitem__, slice(i, i + size)) for i in range(0, v.size, size)]
        for v in (VALUES, after)
    ]
    before, kept = torch.from_numpy(VALUES).abs().sum(), torch.from_numpy(after).abs().sum()
    assert sum_ratio(parts[0], parts[1], map) == pytest.approx(float(before / kept), rel=1e-6)


def test_a_norm_of_nothing_is_not_matched() -> None:
    zeros = np.zeros(4, np.float32)
    assert sum_ratio([lambda: zeros], [lambda: zeros], map) == 1.0
    assert sum_ratio([lambda: zeros[:0]], [lambda: zeros], map) == 1.0
