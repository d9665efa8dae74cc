"""Slices of the first and last axes of a tensor, and how a stack of matrices is cut by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebitfmt.errors import UsageError
from onebitfmt.format.dtypes import matrices

Array = NDArray[Any]


def index(shape: tuple[int, ...], rows: slice | None, columns: slice | None) -> tuple[slice, ...]:
    """The numpy index of a slice of the first axis (`rows`) and the last (`columns`)."""
    whole = [slice(None)] * len(shape)
    if shape and columns is not None:
        whole[-1] = columns
    if shape and rows is not None:
        whole[0] = rows
    return tuple(whole)


def sliced_shape(
    shape: tuple[int, ...], rows: slice | None, columns: slice | None
) -> tuple[int, ...]:
    """The shape of such a slice."""
    cuts = index(shape, rows, columns)
    return tuple(len(range(*s.indices(n))) for s, n in zip(cuts, shape, strict=True))


def kernel_columns(
    planes: tuple[Array, Array, Array], columns: slice
) -> tuple[Array, Array, Array]:
    """The columns of sign planes that a slice covers; it begins at a multiple of 8."""
    bits, rows, scales = planes
    return bits[..., columns.start // 8 : -(-columns.stop // 8)], rows, scales[:, columns]


def assemble(
    shape: tuple[int, ...],
    rows: slice | None,
    columns: slice | None,
    block: Callable[[int, slice, slice], Array],
    dtype: np.dtype[Any],
) -> Array:
    """A slice of a stack of matrices from block(matrix, rows, columns).

    Blocks are asked for at columns that begin at a multiple of 8, where bytes of signs begin.
    """
    stack, height, width = matrices(shape)
    top, bottom = bounds(rows, shape[0])
    left, right = bounds(columns, width)
    first = left // 8 * 8
    inner = slice(left - first, right - first)
    if len(shape) == 2:
        part = block(0, slice(top, bottom), slice(first, right))
        return np.ascontiguousarray(part[:, inner])
    per_row = stack // shape[0] if shape[0] else 0
    out = np.empty(((bottom - top) * per_row, height, right - left), dtype)
    for k in range(out.shape[0]):
        out[k] = block(top * per_row + k, slice(0, height), slice(first, right))[:, inner]
    return out.reshape(bottom - top, *shape[1:-1], right - left)


def check_steps(*cuts: slice | None) -> None:
    """Raises `UsageError` for a slice that leaves something out or goes backwards."""
    for cut in cuts:
        if cut is not None and cut.step not in (None, 1):
            raise UsageError(f"slices have step 1, not {cut.step}")


def bounds(cut: slice | None, length: int) -> tuple[int, int]:
    """Begin and end of a slice of step 1."""
    begin, end, _ = (cut or slice(None)).indices(length)
    return begin, max(begin, end)
