from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onebitfmt.merge.trim import Part, Trim, at_least, largest, magnitude_bits, rank, trim
from onebitfmt.parallel import Workers

Array = NDArray[Any]


def parts_of(values: Array, size: int) -> list[Part]:
    return [partial(values.__getitem__, slice(i, i + size)) for i in range(0, values.size, size)]


def sample(kind: str) -> Array:
    rng = np.random.default_rng(len(kind))
    if kind == "ties":
        return rng.integers(-4, 5, 1000).astype(np.float32) / np.float32(7)
    if kind == "wide":
        sizes = np.exp(rng.uniform(-80, 80, 1000)).astype(np.float32)
        return (sizes * rng.choice([-1, 1], 1000)).astype(np.float32)
    if kind == "near":  # equal upper halves: the second pass decides
        bits = np.uint32(0x3F800000) + rng.integers(0, 60_000, 1000).astype(np.uint32)
        return bits.view(np.float32)
    return rng.normal(0, 0.01, 1000).astype(np.float32)


KINDS = ["normal", "ties", "wide", "near"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 70, 5000])
def test_a_rank_is_that_of_a_sorted_array(kind: str, size: int) -> None:
    values = sample(kind)
    ordered = np.sort(np.abs(values))
    for k in (1, 2, 137, 500, 1000):
        found = rank(parts_of(values, size), k, map)
        assert np.uint32(found.threshold).view(np.float32) == ordered[k - 1]
        assert found.smaller == (ordered < ordered[k - 1]).sum()
        assert found.equal == (ordered == ordered[k - 1]).sum()


def test_threads_do_not_matter() -> None:
    values = sample("ties")
    with Workers(2) as workers:
        assert rank(parts_of(values, 9), 400, workers.map) == rank(parts_of(values, 1000), 400, map)


@pytest.mark.parametrize("kind", KINDS)
def test_at_least_keeps_ties(kind: str) -> None:
    values = sample(kind)
    cut = at_least(parts_of(values, 64), 800, map)
    assert cut is not None
    threshold = np.sort(np.abs(values))[799]
    expected = np.where(np.abs(values) >= threshold, values, 0)
    assert np.array_equal(trim(values, cut, 0), expected)
    assert at_least(parts_of(values, 64), 0, map) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 200, 999])
@pytest.mark.parametrize("size", [33, 1000])
def test_largest_keeps_exactly_so_many_and_the_first_of_equals(
    kind: str, count: int, size: int
) -> None:
    values = sample(kind)
    cut = largest(parts_of(values, size), values.size, count, map)
    assert cut is not None
    expected = np.zeros_like(values)
    first = np.argsort(-np.abs(values), kind="stable")[:count]
    expected[first] = values[first]
    kept = [trim(values[i : i + size], cut, i) for i in range(0, values.size, size)]
    assert np.array_equal(np.concatenate(kept), expected)


def test_largest_of_all_trims_nothing() -> None:
    assert largest([], 5, 5, map) is None
    assert largest([], 5, 9, map) is None


def test_magnitudes_order_as_their_bits() -> None:
    values = np.array([0.0, -0.0, 1e-45, -1e-38, 1.0, -2.0, np.inf, np.nan], np.float32)
    bits = magnitude_bits(values)
    assert bits[0] == bits[1] == 0
    assert (np.diff(bits[1:].astype(np.int64)) > 0).all()


def test_a_cut_past_the_block_changes_nothing_in_it() -> None:
    values = np.array([1, -1, 0.5], np.float32)
    cut = Trim(threshold=int(np.float32(1).view(np.uint32)), last=100)
    assert trim(values, cut, 0).tolist() == [1, -1, 0]
    assert trim(values, cut, 100).tolist() == [1, 0, 0]
