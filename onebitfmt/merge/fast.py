"""Blocks of a merge in which every input is one-bit: straight from packed signs to merged bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebitfmt.checkpoint import Tensor
from onebitfmt.codecs.sign import Plane, kernel_planes
from onebitfmt.format.dtypes import matrices
from onebitfmt.merge.lookup import Elementwise, lookup_rows, lookup_table, merge_rows
from onebitfmt.merge.plan import Step

Array = NDArray[Any]

# A table for more experts would not pay.
_MAX_LOOKUP = 8


def block(
    step: Step,
    planes: Sequence[Sequence[Plane]],
    rule: Elementwise,
    origin: Callable[[slice | None], Tensor],
    i: int,
) -> Array:
    """The merged bits of a block of a tensor, flat; `planes` has those of each expert of `rule`.

    The same bits as the general path gives.
    """
    rows = step.row_blocks()[i]
    assert rows is not None  # one-bit tensors are matrices
    value = origin(rows)
    _, height, width = matrices(step.shape)
    dtypes = (value.dtype, step.dtype)
    if len(step.shape) == 2:
        merged = _matrix(value.bits, dtypes, planes, rule, (0, rows.start))
        return merged.reshape(-1)
    stack = value.bits.reshape(-1, height, width)
    first = rows.start * (matrices(step.shape)[0] // step.shape[0])
    parts = [_matrix(m, dtypes, planes, rule, (first + s, 0)) for s, m in enumerate(stack)]
    return np.concatenate([part.reshape(-1) for part in parts])


def _matrix(
    base: Array,
    dtypes: tuple[str, str],
    planes: Sequence[Sequence[Plane]],
    rule: Elementwise,
    place: tuple[int, int],
) -> Array:
    """Rows of a matrix; `place` is the matrix within the stack and the first row."""
    s, first = place
    stop, width = first + base.shape[0], base.shape[1]
    found = [kernel_planes(of_one, s, first, stop, width) for of_one in planes]
    scales = [_one_scale(rows, columns) for _, rows, columns in found]
    known = [scale for scale in scales if scale is not None]
    if len(known) == len(planes) <= _MAX_LOOKUP:
        table = lookup_table(known, rule.apply)
        return lookup_rows(base, dtypes, [bits[0] for bits, _, _ in found], table)
    return merge_rows(base, dtypes, found, rule)


def _one_scale(rows: Array, columns: Array) -> float | None:
    """The one scale of a block of a single plane, if it has only one."""
    if rows.shape[0] != 1 or rows.size == 0 or columns.size == 0:
        return None
    # A scale for the matrix is a broadcast value: nothing needs to be compared then.
    if rows.strides[1] == 0 and columns.strides[1] == 0:
        return float(rows[0, 0] * columns[0, 0])
    return None
