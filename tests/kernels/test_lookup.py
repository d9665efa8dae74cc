"""Table look-up and the fused merge equal plain numpy bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onebitfmt.kernels import lookup, reference
from onebitfmt.kernels.elementwise import Elementwise
from onebitfmt.kernels.reference import BF16, F16, F32

Array = NDArray[Any]
Planes = tuple[Array, Array, Array]
Pair = Callable[..., tuple[Array, Array]]
MakePlanes = Callable[..., Planes]

WIDTHS = (1, 7, 8, 9, 13, 63, 64, 65, 2047, 2048, 2049, 5000)
DTYPE_PAIRS = tuple(product((BF16, F16, F32), repeat=2))
STORAGE = {BF16: np.uint16, F16: np.uint16, F32: np.uint32}
HEIGHT = 3
RULES = (
    Elementwise(weights=(1.0, 0.7, 0.3)),
    Elementwise(weights=(1.0, 0.7, 0.3), divisor=2.0, scale=0.3, select=1),
    Elementwise(weights=(1.0, 0.7, 0.3), elect=True, scale=1.1),
    Elementwise(weights=(1.0, 1.0, 1.0), elect=True, select=0, scale=0.4),
    Elementwise(weights=(1.0, 0.7, 0.3), elect=True, shares=(1.0, 0.7, 0.3), select=2),
)


def look_up(base: Array, dtypes: tuple[int, int], packed: Array, table: Array) -> Array:
    """The twin of `lookup.lookup_rows`."""
    signs = np.unpackbits(packed, axis=2, bitorder="little")[:, :, : base.shape[1]]
    pattern = sum(signs[k].astype(np.int64) << k for k in range(len(packed)))
    with np.errstate(invalid="ignore", over="ignore"):
        return reference.narrow(reference.widen(base, dtypes[0]) + table[pattern], dtypes[1])


def check_lookup(base: Array, dtypes: tuple[int, int], packed: Array, table: Array) -> None:
    out = np.empty(base.shape, STORAGE[dtypes[1]])
    lookup.lookup_rows(base, dtypes, packed, table, out)
    np.testing.assert_array_equal(out, look_up(base, dtypes, packed, table))


def random_table(count: int) -> Array:
    return np.random.default_rng(count).normal(0, 0.003, 1 << count).astype(np.float32)


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("width", WIDTHS)
def test_look_up_equals_its_twin(
    width: int, count: int, make_pair: Pair, make_planes: MakePlanes
) -> None:
    base, _ = make_pair(width, (HEIGHT, width))
    packed = make_planes(count, count, (HEIGHT, width))[0]
    check_lookup(base, (BF16, BF16), packed, random_table(count))


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
def test_look_up_of_every_pair_of_types(
    dtypes: tuple[int, int], make_pair: Pair, make_planes: MakePlanes
) -> None:
    base, _ = make_pair(4, (HEIGHT, 2049), dtypes)
    packed = make_planes(1, 3, (HEIGHT, 2049))[0]
    check_lookup(base, dtypes, packed, random_table(3))


def test_every_pattern_takes_its_entry() -> None:
    pattern = np.arange(256)
    bits = (pattern[None, :] >> np.arange(8)[:, None]) & 1
    packed = np.packbits(bits[:, None, :].astype(np.uint8), axis=2, bitorder="little")
    table = pattern.astype(np.float32)
    out = np.empty((1, 256), np.uint32)
    lookup.lookup_rows(np.zeros((1, 256), np.uint32), (F32, F32), packed, table, out)
    assert out.view(np.float32)[0].tolist() == pattern.tolist()


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_look_up_on_all_patterns_of_16_bits(dtype: int, make_planes: MakePlanes) -> None:
    base = np.arange(1 << 16, dtype=np.uint16).reshape(16, 4096)
    packed = make_planes(5, 2, base.shape)[0]
    check_lookup(base, (dtype, dtype), packed, np.array([-0.1, 0.0, -0.0, 6e4], np.float32))


def test_rows_that_lie_apart_in_memory(make_pair: Pair, make_planes: MakePlanes) -> None:
    base, _ = make_pair(6, (2 * HEIGHT, 200))
    packed = make_planes(2, 2, (2 * HEIGHT, 200))[0]
    check_lookup(base[::2, 8:150], (BF16, BF16), packed[:, ::2, 1:19], random_table(2))


def merge_twin(
    base: Array, dtypes: tuple[int, int], experts: list[Planes], rule: Elementwise
) -> Array:
    vectors = np.stack([reference.task_vector_rows(planes) for planes in experts])
    return reference.narrow(reference.widen(base, dtypes[0]) + rule.apply(vectors), dtypes[1])


def check_merge(
    base: Array, dtypes: tuple[int, int], experts: list[Planes], rule: Elementwise
) -> None:
    bits, rows, columns = (np.concatenate([e[part] for e in experts]) for part in range(3))
    starts = np.cumsum([0, *(len(e[0]) for e in experts)])
    selected = -1 if rule.select is None else rule.select
    weights = np.array(rule.weights, np.float32)
    if rule.select is not None:
        weights[selected] = 1.0
    numbers = (
        weights,
        np.array(rule.divisors, np.float32),
        np.float32(rule.divisor),
        np.float32(rule.scale),
        selected,
        rule.elect,
    )
    out = np.empty(base.shape, STORAGE[dtypes[1]])
    lookup.merge_rows(base, dtypes, (bits, rows, columns), starts, numbers, out)
    np.testing.assert_array_equal(out, merge_twin(base, dtypes, experts, rule))


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 1, 3), (0, 1, 2)])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("width", [1, 9, 65, 1023, 1025, 5000])
def test_fused_merge_equals_its_twin(
    width: int,
    rule: Elementwise,
    counts: tuple[int, ...],
    make_pair: Pair,
    make_planes: MakePlanes,
) -> None:
    base, _ = make_pair(width, (HEIGHT, width))
    experts = [make_planes(7 + k, n, (HEIGHT, width)) for k, n in enumerate(counts)]
    check_merge(base, (BF16, BF16), experts, rule)


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
def test_fused_merge_of_every_pair_of_types(
    dtypes: tuple[int, int], make_pair: Pair, make_planes: MakePlanes
) -> None:
    base, _ = make_pair(4, (HEIGHT, 1100), dtypes)
    experts = [make_planes(k, 1, (HEIGHT, 1100)) for k in range(3)]
    check_merge(base, dtypes, experts, RULES[3])


def test_fused_merge_where_votes_cancel_out_and_scales_are_zero(make_planes: MakePlanes) -> None:
    base = np.full((HEIGHT, 100), 0x8000, np.uint16)
    one = make_planes(1, 1, (HEIGHT, 100))
    other = make_planes(2, 1, (HEIGHT, 100))[0], one[1], one[2]
    nothing = other[0], np.zeros_like(one[1]), one[2]
    for rule in RULES:
        check_merge(base, (BF16, BF16), [one, other, nothing], rule)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_fused_merge_of_any_number_of_experts(
    count: int, make_pair: Pair, make_planes: MakePlanes
) -> None:
    base, _ = make_pair(1, (HEIGHT, 77))
    experts = [make_planes(k, 1, (HEIGHT, 77)) for k in range(count)]
    weights = tuple(1.0 / (k + 1) for k in range(count))
    for select in (None, 0, count - 1):
        rule = Elementwise(weights=weights, select=select, elect=True, scale=0.4)
        check_merge(base, (BF16, BF16), experts, rule)
