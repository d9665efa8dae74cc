"""The fast path gives what the general path gives, and refuses what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onebitfmt.codecs import floats, sign
from onebitfmt.errors import UsageError
from onebitfmt.merge.lookup import Elementwise, lookup_rows, lookup_table, merge_rows

Array = NDArray[Any]
Planes = tuple[Array, Array, Array]

TIES = Elementwise(weights=(1.0, 1.0, 1.0), select=0, elect=True, scale=0.4)
SHAPE = (20, 45)


def make_expert(seed: int, scale: float | None, planes: int = 1) -> Planes:
    """Sign planes with one scale, or with random row and column scales."""
    rng = np.random.default_rng(seed)
    bits = rng.random((planes, *SHAPE)) < 0.5
    rows, columns = np.full((planes, SHAPE[0]), scale or 0.0), np.ones((planes, SHAPE[1]))
    if scale is None:
        rows, columns = rng.uniform(0, 0.002, rows.shape), rng.uniform(0.5, 1.5, columns.shape)
    packed = np.packbits(bits, axis=2, bitorder="little")
    return packed, rows.astype(np.float32), columns.astype(np.float32)


def make_base(dtype: str) -> Array:
    values = np.random.default_rng(9).normal(0, 0.02, SHAPE).astype(np.float32)
    return floats.from_float32(values, dtype)


def general(base: Array, dtypes: tuple[str, str], experts: list[Planes], rule: Any) -> Array:
    vectors = np.stack([sign.task_vector(planes) for planes in experts])
    return floats.from_float32(floats.to_float32(base, dtypes[0]) + rule(vectors), dtypes[1])


def median_merge(vectors: Array) -> Array:
    """A merge that no kernel knows: the middle value."""
    return np.sort(vectors, axis=0)[vectors.shape[0] // 2]


@pytest.mark.parametrize("dtypes", [("BF16", "BF16"), ("F32", "BF16"), ("F16", "F32")])
@pytest.mark.parametrize("scales", [(1e-3,), (1e-3, 7e-4), (1e-3, 7e-4, 1e-3), (0.0, 5e-8, 0.3)])
@pytest.mark.parametrize("merge", [median_merge, lambda v: v.sum(axis=0) * np.float32(0.3)])
def test_look_up_equals_the_general_path(
    merge: Any, scales: tuple[float, ...], dtypes: tuple[str, str]
) -> None:
    experts = [make_expert(k, scale) for k, scale in enumerate(scales)]
    base = make_base(dtypes[0])
    found = lookup_rows(base, dtypes, [e[0][0] for e in experts], lookup_table(scales, merge))
    np.testing.assert_array_equal(found, general(base, dtypes, experts, merge))


@pytest.mark.parametrize("scales", [(1e-3, 7e-4, 1e-3), (None, None, None), (None, 1e-3, 0.0)])
@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("dtypes", [("BF16", "BF16"), ("F32", "F16")])
def test_fused_merge_equals_the_general_path(
    dtypes: tuple[str, str], planes: int, scales: tuple[float | None, ...]
) -> None:
    experts = [make_expert(k, scale, planes) for k, scale in enumerate(scales)]
    base = make_base(dtypes[0])
    found = merge_rows(base, dtypes, experts, TIES)
    np.testing.assert_array_equal(found, general(base, dtypes, experts, TIES.apply))


def test_both_fast_paths_agree() -> None:
    scales = (1e-3, 7e-4, 2e-3)
    experts = [make_expert(k, scale) for k, scale in enumerate(scales)]
    base, dtypes = make_base("BF16"), ("BF16", "BF16")
    table = lookup_table(scales, TIES.apply)
    found = lookup_rows(base, dtypes, [e[0][0] for e in experts], table)
    np.testing.assert_array_equal(found, merge_rows(base, dtypes, experts, TIES))


def test_the_table_is_ordered_by_pattern() -> None:
    table = lookup_table((1.0, 10.0, 100.0), lambda v: v.sum(axis=0))
    assert table.dtype == np.float32
    assert table.tolist() == [-111, -109, -91, -89, 89, 91, 109, 111]


def test_a_scale_of_zero_keeps_its_sign() -> None:
    table = lookup_table((0.0,), lambda v: v[0])
    assert np.signbit(table).tolist() == [True, False]


def test_results_go_to_memory_that_is_given() -> None:
    base, dtypes = make_base("BF16"), ("BF16", "F32")
    out = np.empty(SHAPE, np.uint32)
    experts = [make_expert(0, 1e-3)]
    assert lookup_rows(base, dtypes, [experts[0][0][0]], np.ones(2, np.float32), out=out) is out
    rule = Elementwise(weights=(1.0,))
    assert merge_rows(base, dtypes, experts, rule, out=out) is out
    np.testing.assert_array_equal(out, merge_rows(base, dtypes, experts, rule))


@pytest.mark.parametrize("out", [np.empty(SHAPE, np.uint32), np.empty((20, 44), np.uint16)])
def test_memory_that_does_not_fit_is_refused(out: Array) -> None:
    with pytest.raises(UsageError, match="out is"):
        merge_rows(
            make_base("BF16"), ("BF16", "BF16"), [make_expert(0, None)],
            Elementwise(weights=(1.0,)), out=out,
        )  # fmt: skip


@pytest.mark.parametrize("count", [0, 9])
def test_no_or_too_many_experts_are_refused(count: int) -> None:
    with pytest.raises(UsageError, match="1 to 8 experts"):
        lookup_table([1.0] * count, lambda v: v.sum(axis=0))
    packed = [np.zeros((20, 6), np.uint8)] * count
    with pytest.raises(UsageError, match="1 to 8 experts"):
        lookup_rows(make_base("BF16"), ("BF16", "BF16"), packed, np.zeros(1 << count, np.float32))


@pytest.mark.parametrize(("shape", "entries"), [((20, 5), 2), ((19, 6), 2), ((20, 6), 4)])
def test_signs_and_tables_that_do_not_fit_are_refused(shape: tuple[int, int], entries: int) -> None:
    with pytest.raises(UsageError, match="needs a table of 2 entries"):
        lookup_rows(
            make_base("BF16"), ("BF16", "BF16"), [np.zeros(shape, np.uint8)],
            np.zeros(entries, np.float32),
        )  # fmt: skip


def test_rules_and_planes_that_do_not_fit_are_refused() -> None:
    base, dtypes, expert = make_base("BF16"), ("BF16", "BF16"), make_expert(0, None)
    with pytest.raises(UsageError, match="2 experts, but a rule for 3"):
        merge_rows(base, dtypes, [expert, expert], TIES)
    with pytest.raises(UsageError, match="0 experts"):
        merge_rows(base, dtypes, [], TIES)
    with pytest.raises(UsageError, match="selected expert 1 of 1"):
        merge_rows(base, dtypes, [expert], Elementwise(weights=(1.0,), select=1))
    with pytest.raises(UsageError, match="do not fit a matrix"):
        merge_rows(base[1:], dtypes, [expert], Elementwise(weights=(1.0,)))
