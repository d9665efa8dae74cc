from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onebitfmt.merge.ties import PRESETS, elect, votes

Array = NDArray[Any]

ONE = np.float32(1)


def vectors(seed: int, count: int, values: str = "normal") -> list[Array]:
    rng = np.random.default_rng(seed)
    if values == "ties":
        return [rng.integers(-2, 3, 400).astype(np.float32) for _ in range(count)]
    found = [rng.normal(0, 1, 400).astype(np.float32) for _ in range(count)]
    return [np.where(rng.random(400) < 0.4, v, np.float32(0)) for v in found]


def mergekit(deltas: list[Array], weights: list[float], normalize: bool) -> Array:
    """Election and disjoint mean as mergekit documents them, in torch."""
    w = torch.tensor(weights).reshape(-1, 1)
    weighted = torch.from_numpy(np.stack(deltas)) * w
    majority = (weighted.sum(0) >= 0).float() * 2 - 1
    mask = (weighted.sign() == majority).float()
    mixed, divisor = (weighted * mask).sum(0), (w * mask).sum(0)
    divisor[divisor == 0] = 1
    return (mixed / divisor if normalize else mixed).numpy()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("values", ["normal", "ties"])
@pytest.mark.parametrize("normalize", [True, False])
def test_election_is_mergekits(count: int, values: str, normalize: bool) -> None:
    deltas = vectors(count, count, values)
    weights = [1.0, 0.7, 0.3, -0.5, 2.0][:count]
    found = elect(deltas, [np.float32(w) for w in weights], normalize=normalize)
    assert np.array_equal(found, mergekit(deltas, weights, normalize))


def test_zeros_have_no_vote_and_do_not_count() -> None:
    deltas = [np.array(v, np.float32) for v in ([3, 0, 0], [1, -2, 0], [-1, -4, 0])]
    assert elect(deltas, [ONE] * 3).tolist() == [2, -3, 0]


@pytest.mark.parametrize(("plus", "expected"), [(True, [1, 0, 2]), (False, [-1, 0, 2])])
def test_where_votes_cancel_out_the_majority_decides(plus: bool, expected: list[float]) -> None:
    deltas = [np.array(v, np.float32) for v in ([1, 0, 2], [-1, 0, 2])]
    assert elect(deltas, [ONE] * 2, majority=lambda: plus).tolist() == expected
    assert elect(deltas, [ONE] * 2).tolist() == [1, 0, 2]


def test_the_majority_is_not_asked_in_vain() -> None:
    def never() -> bool:
        raise AssertionError

    deltas = [np.array(v, np.float32) for v in ([1, 0], [2, 0])]
    assert elect(deltas, [ONE] * 2, majority=never).tolist() == [1.5, 0]


def test_inputs_stay_as_they_are() -> None:
    deltas = vectors(1, 3)
    before = [v.copy() for v in deltas]
    elect(deltas, [np.float32(2)] * 3)
    assert all(np.array_equal(a, b) for a, b in zip(deltas, before, strict=True))


def test_votes_are_signs_of_sums() -> None:
    deltas = [np.array(v, np.float32) for v in ([1, 1, 0, -5], [1, -1, 0, 2])]
    assert votes(deltas, [ONE] * 2) == 0
    assert votes(deltas, [ONE, np.float32(4)]) == 2 - 1 - 0 + 0


@pytest.mark.parametrize(
    ("preset", "elements", "density", "position"),
    [
        ("official", 4, 0.5, 2), ("official", 10, 0.2, 8), ("official", 10, 1.0, 0),
        ("mergelm", 10, 0.2, 8), ("mergelm", 10, 0.7, 3), ("mergelm", 11, 0.2, 8),
        ("paper", 11, 0.2, 9), ("onebit", 11, 0.2, 9),
    ],
)  # fmt: skip
def test_positions_of_thresholds(preset: str, elements: int, density: float, position: int) -> None:
    assert PRESETS[preset].position(elements, density) == position


def test_mergekit_keeps_a_count() -> None:
    count = PRESETS["mergekit"].count
    assert count is not None
    assert [count(n, 0.2) for n in (1, 4, 5, 11)] == [1, 1, 1, 2]
