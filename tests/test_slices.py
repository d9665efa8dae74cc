from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onebitfmt import slices
from onebitfmt.errors import UsageError

Array = NDArray[Any]

CUTS = (
    None,
    slice(None),
    slice(0, 3),
    slice(2, 5),
    slice(1, 100),
    slice(7, 9),
    slice(8, 16),
    slice(13, None),
    slice(-3, None),
    slice(-9, -1),
    slice(4, 4),
    slice(5, 2),
    slice(50, 60),
)
SHAPES = ((1, 1), (5, 20), (6, 8), (3, 17), (4, 3, 19), (5, 2, 3, 9), (2, 1, 1), (0, 4), (0, 2, 3))


def numbered(shape: tuple[int, ...]) -> Array:
    return np.arange(prod(shape), dtype=np.uint32).reshape(shape)


def cut(whole: Array, rows: slice | None, columns: slice | None) -> Array:
    """What a slice is, in numpy's own words; the last axis is always cut last."""
    part = whole if rows is None else whole[rows]
    return part if columns is None else part[..., columns]


@pytest.mark.parametrize("rows", CUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_index_and_shape(shape: tuple[int, ...], rows: slice | None) -> None:
    whole = numbered(shape)
    for columns in CUTS:
        wanted = cut(whole, rows, columns)
        np.testing.assert_array_equal(whole[slices.index(shape, rows, columns)], wanted)
        assert slices.sliced_shape(shape, rows, columns) == wanted.shape


@pytest.mark.parametrize("step", [2, 3, -1])
def test_shape_of_slices_with_a_step(step: int) -> None:
    whole = numbered((7, 11))
    rows, columns = slice(None, None, step), slice(9, 1, -step)
    assert slices.sliced_shape((7, 11), rows, columns) == whole[rows, columns].shape


def test_index_of_few_axes() -> None:
    assert slices.index((), slice(1, 2), slice(3, 4)) == ()
    assert slices.sliced_shape((), None, None) == ()
    assert slices.index((9,), slice(1, 5), None) == (slice(1, 5),)
    assert slices.index((9,), None, slice(2, 5)) == (slice(2, 5),)


@pytest.mark.parametrize("step", [2, -1])
@pytest.mark.parametrize("place", [0, 1])
def test_steps_are_refused_where_blocks_are_read(place: int, step: int) -> None:
    cuts = [None, slice(0, 5, 1)]
    slices.check_steps(*cuts)
    cuts.insert(place, slice(None, None, step))
    with pytest.raises(UsageError, match=f"not {step}"):
        slices.check_steps(*cuts)


@pytest.mark.parametrize("length", [0, 1, 7, 20])
@pytest.mark.parametrize("part", CUTS)
def test_bounds(part: slice | None, length: int) -> None:
    begin, end = slices.bounds(part, length)
    assert 0 <= begin <= end
    wanted = list(range(length))[part or slice(None)]
    assert list(range(begin, end)) == wanted


@pytest.mark.parametrize("rows", CUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_assembled_from_blocks(shape: tuple[int, ...], rows: slice | None) -> None:
    whole = numbered(shape)
    stack = whole.reshape(prod(shape[:-2]), *shape[-2:])
    asked: list[Array] = []

    def block(s: int, r: slice, c: slice) -> Array:
        assert c.start % 8 == 0
        assert 0 <= r.start <= r.stop <= shape[-2]
        asked.append(stack[s, r, c])
        return asked[-1]

    for columns in CUTS:
        asked.clear()
        found = slices.assemble(shape, rows, columns, block, whole.dtype)
        wanted = cut(whole, rows, columns)
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_array_equal(found, wanted)
        assert found.flags.c_contiguous
        # At most the seven columns back to a byte's first are asked for in vain.
        assert sum(part.size for part in asked) <= wanted.size + 7 * prod(wanted.shape[:-1])


@pytest.mark.parametrize("columns", [slice(0, 8), slice(0, 21), slice(8, 9), slice(16, 21)])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_columns_of_sign_planes(count: int, columns: slice) -> None:
    rng = np.random.default_rng(count)
    signs = rng.random((count, 4, 21)) < 0.5
    rows, scales = rng.random((count, 4)), rng.random((count, 21))
    bits = np.packbits(signs, axis=-1, bitorder="little")
    found = slices.kernel_columns((bits, rows, scales), columns)
    width = columns.stop - columns.start
    assert found[0].shape == (count, 4, -(-width // 8))
    plus = np.unpackbits(found[0], axis=-1, count=width, bitorder="little").astype(bool)
    np.testing.assert_array_equal(plus, signs[..., columns])
    np.testing.assert_array_equal(found[1], rows)
    np.testing.assert_array_equal(found[2], scales[:, columns])
