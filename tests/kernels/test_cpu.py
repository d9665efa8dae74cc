"""The compiled kernels agree with their numpy twins bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onebitfmt.kernels import cpu, reference
from onebitfmt.kernels.reference import BF16, F16, F32

Array = NDArray[Any]
Planes = tuple[Array, Array, Array]
Pair = Callable[..., tuple[Array, Array]]
MakePlanes = Callable[..., Planes]

WIDTHS = (1, 7, 8, 9, 13, 63, 64, 65, 2047, 2048, 2049, 5000)
DTYPE_PAIRS = tuple(product((BF16, F16, F32), repeat=2))
STORAGE = {BF16: np.uint16, F16: np.uint16, F32: np.uint32}
HEIGHT = 3
NOTHING = np.empty(0, np.float32)


def run_sign_pass(
    pair: tuple[Array, Array],
    dtypes: tuple[int, int],
    planes: Planes,
    weights: Array = NOTHING,
    first_row: int = 0,
    balanced: bool = True,
) -> tuple[Array, Array, Array]:
    height, width = pair[0].shape
    bits = np.full((height, -(-width // 8)), 0xAA, np.uint8)
    sums, column_sums = np.full((height, 3), np.nan), np.zeros(width)
    cpu.sign_pass(*pair, dtypes, planes, weights, first_row, balanced, bits, sums, column_sums)
    return bits, sums, column_sums


def check_sign_pass(
    pair: tuple[Array, Array],
    dtypes: tuple[int, int],
    planes: Planes,
    weights: Array = NOTHING,
    first_row: int = 0,
    balanced: bool = True,
) -> None:
    found = run_sign_pass(pair, dtypes, planes, weights, first_row, balanced)
    base, expert = pair
    wanted = reference.sign_pass(base, expert, dtypes, planes, weights, first_row, balanced)
    assert_same(found, wanted)


def assert_same(found: tuple[Array, ...], wanted: tuple[Array, ...]) -> None:
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("width", WIDTHS)
def test_sign_pass_equals_its_twin(
    width: int, count: int, balanced: bool, make_pair: Pair, make_planes: MakePlanes
) -> None:
    pair = make_pair(width, (HEIGHT, width))
    planes = make_planes(count, count, (HEIGHT, width))
    check_sign_pass(pair, (BF16, BF16), planes, first_row=5, balanced=balanced)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("width", [65, 2049])
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
def test_sign_pass_of_every_pair_of_types(
    dtypes: tuple[int, int], width: int, count: int, make_pair: Pair, make_planes: MakePlanes
) -> None:
    pair = make_pair(width, (HEIGHT, width), dtypes)
    planes = make_planes(count, count, (HEIGHT, width))
    check_sign_pass(pair, dtypes, planes)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("width", WIDTHS)
def test_weighted_sums(width: int, count: int, make_pair: Pair, make_planes: MakePlanes) -> None:
    pair = make_pair(width, (HEIGHT, width))
    weights = np.random.default_rng(width).uniform(0.0, 2.0, width).astype(np.float32)
    check_sign_pass(pair, (BF16, BF16), make_planes(1, count, (HEIGHT, width)), weights)


@pytest.mark.parametrize("width", [13, 2049])
def test_what_is_not_asked_for_is_left_out(
    width: int, make_pair: Pair, make_planes: MakePlanes
) -> None:
    pair, planes = make_pair(3, (HEIGHT, width)), make_planes(0, 0, (HEIGHT, width))
    sums = np.empty((HEIGHT, 3))
    no_bits, no_columns = np.empty((0, 0), np.uint8), np.empty(0)
    cpu.sign_pass(*pair, (BF16, BF16), planes, NOTHING, 0, True, no_bits, sums, no_columns)
    wanted = reference.sign_pass(*pair, (BF16, BF16), planes, NOTHING, 0, True)[1]
    np.testing.assert_array_equal(sums[:, :2], wanted[:, :2])
    assert not sums[:, 2].any()
    assert wanted[:, 2].any()


@pytest.mark.parametrize("width", [9, 65, 2049])
def test_blocks_of_rows_join_to_the_whole_matrix(width: int, make_pair: Pair) -> None:
    base, expert = make_pair(8, (7, width))
    expert[::2] = base[::2]
    planes = (
        np.empty((0, 7, -(-width // 8)), np.uint8),
        np.empty((0, 7), np.float32),
        np.empty((0, width), np.float32),
    )
    bits, sums = np.empty((7, -(-width // 8)), np.uint8), np.empty((7, 3))
    columns = np.zeros(width)
    for rows in (slice(0, 3), slice(3, 7)):
        cpu.sign_pass(
            base[rows], expert[rows], (BF16, BF16),
            (planes[0][:, rows], planes[1][:, rows], planes[2]),
            NOTHING, rows.start, True, bits[rows], sums[rows], columns,
        )  # fmt: skip
    wanted = reference.sign_pass(base, expert, (BF16, BF16), planes, NOTHING, 0, True)
    assert_same((bits, sums, columns), wanted)


def test_residual_that_is_exactly_zero_counts_as_zero() -> None:
    base = np.zeros((2, 70), np.uint32)
    signs = np.random.default_rng(1).random((2, 70)) < 0.5
    expert = np.where(signs, np.float32(0.5), np.float32(-0.5)).view(np.uint32)
    planes = (
        np.packbits(signs, axis=1, bitorder="little")[None],
        np.full((1, 2), 0.5, np.float32),
        np.ones((1, 70), np.float32),
    )
    bits, sums, columns = run_sign_pass((base, expert), (F32, F32), planes, balanced=False)
    assert sums.tolist() == [[0.0, 0.0, 70.0]] * 2
    assert not columns.any()
    assert bits.tolist() == [[0xFF] * 8 + [0x3F]] * 2


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("width", WIDTHS)
def test_rebuilding_equals_its_twin(
    width: int, count: int, make_pair: Pair, make_planes: MakePlanes
) -> None:
    base, _ = make_pair(width, (HEIGHT, width))
    planes = make_planes(count, count, (HEIGHT, width))
    out = np.empty_like(base)
    cpu.rebuild_rows(base, (BF16, BF16), planes, out)
    np.testing.assert_array_equal(out, reference.rebuild_rows(base, (BF16, BF16), planes))
    vector = np.empty((HEIGHT, width), np.float32)
    cpu.task_vector_rows(planes, vector)
    wanted = reference.task_vector_rows(planes)
    np.testing.assert_array_equal(vector.view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize("size", [1e-42, 1e-7, 0.002, 6e4, 3e38])
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
def test_rebuilding_of_every_pair_of_types(
    dtypes: tuple[int, int], size: float, make_pair: Pair, make_planes: MakePlanes
) -> None:
    base, _ = make_pair(4, (HEIGHT, 2049), dtypes)
    planes = make_planes(2, 2, (HEIGHT, 2049), size)
    out = np.empty(base.shape, STORAGE[dtypes[1]])
    with np.errstate(over="ignore"):
        planes[2][:] = np.minimum(planes[2], 1.1)
        wanted = reference.rebuild_rows(base, dtypes, planes)
    cpu.rebuild_rows(base, dtypes, planes, out)
    np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_widening_all_patterns_of_16_bits(dtype: int) -> None:
    source = np.arange(1 << 16, dtype=np.uint16)
    out = np.empty(source.size, np.float32)
    cpu.widen(source, dtype, out)
    wanted = reference.widen(source, dtype)
    nan = np.isnan(wanted)
    np.testing.assert_array_equal(out[~nan].view(np.uint32), wanted[~nan].view(np.uint32))
    np.testing.assert_array_equal(np.isnan(out), nan)
    np.testing.assert_array_equal(np.signbit(out), np.signbit(wanted))


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_narrowing_random_patterns(dtype: int) -> None:
    rng = np.random.default_rng(dtype)
    source = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    out = np.empty(source.size, STORAGE[dtype])
    cpu.narrow(source, dtype, out)
    np.testing.assert_array_equal(out, reference.narrow(source, dtype))


def test_widening_float32_copies_it() -> None:
    source = np.random.default_rng(2).integers(0, 1 << 32, 1000, dtype=np.uint32)
    out = np.empty(source.size, np.float32)
    cpu.widen(source, F32, out)
    np.testing.assert_array_equal(out.view(np.uint32), source)
