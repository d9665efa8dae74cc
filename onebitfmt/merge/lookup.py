"""The fast path of merging: one-bit inputs, without making their task vectors.

Two cases, each with the result of the general path bit for bit: every expert has one plane of
signs with one scale for the matrix (`lookup_table`, `lookup_rows`), or sign planes with any scales
(`merge_rows`). A merge comes in here only if it looks at one weight at a time: trimming or masks
by place need the general path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebitfmt.codecs.floats import KERNEL_DTYPE, unsigned
from onebitfmt.errors import UsageError
from onebitfmt.kernels import lookup
from onebitfmt.kernels.elementwise import Elementwise

__all__ = ["Elementwise", "lookup_rows", "lookup_table", "merge_rows"]

Array = NDArray[Any]
Planes = tuple[Array, Array, Array]


def lookup_table(scales: Sequence[float], merge: Callable[[Array], Array]) -> Array:
    """What a merge makes of every pattern of K signs: float32 [2^K].

    Bit k of an entry's index is one where expert k's sign is +. `merge` maps task vectors float32
    [K, n], here ±scales, to the merged task vector [n]; it must look at one weight at a time.
    Raises `UsageError` for no or more than eight experts.
    """
    count = len(scales)
    _check_count(count)
    patterns = np.arange(1 << count)
    signs = (patterns[None, :] >> np.arange(count)[:, None]) & 1
    sizes = np.asarray(scales, np.float32)[:, None]
    # Negating keeps the sign of a scale of zero, as decoding does.
    table = merge(np.where(signs == 1, sizes, -sizes))
    return np.ascontiguousarray(table, np.float32)


def lookup_rows(
    base: Array,
    dtypes: tuple[str, str],
    packed: Sequence[Array],
    table: Array,
    *,
    out: Array | None = None,
) -> Array:
    """Bit patterns [R, C] of base + table[pattern], rounded once.

    `base` are bit patterns [R, C] of the first of `dtypes`, the result is of the second; `packed`
    has uint8 [R, ceil(C/8)] for each expert, in the table's order. The result is written to `out`
    if given: memory that was in use before is twice as fast as new. Raises `UsageError` if shapes
    do not fit together.
    """
    count, width = len(packed), -(-base.shape[1] // 8)
    _check_count(count)
    if table.shape != (1 << count,) or any(p.shape != (base.shape[0], width) for p in packed):
        raise UsageError(
            f"look-up of {count} experts needs a table of {1 << count} entries and sign bits "
            f"{[base.shape[0], width]}, not {list(table.shape)} and "
            f"{[list(p.shape) for p in packed]}"
        )
    signs = packed[0][None] if count == 1 else np.stack(packed)
    target = _target(base, dtypes[1], out)
    lookup.lookup_rows(base, _kernel_dtypes(dtypes), signs, table, target)
    return target


def merge_rows(
    base: Array,
    dtypes: tuple[str, str],
    planes: Sequence[Planes],
    rule: Elementwise,
    *,
    out: Array | None = None,
) -> Array:
    """Bit patterns [R, C] of base + the merged task vector, rounded once.

    `base`, `dtypes` and `out` as in `lookup_rows`; `planes` has each expert's sign planes as
    `codecs.sign.kernel_planes` gives them. Raises `UsageError` if shapes or numbers of experts do
    not fit together.
    """
    count = len(planes)
    if count == 0 or any(len(x) != count for x in (rule.weights, rule.divisors)):
        raise UsageError(f"{count} experts, but a rule for {len(rule.weights)}")
    if rule.select is not None and not 0 <= rule.select < count:
        raise UsageError(f"selected expert {rule.select} of {count}")
    height, width = base.shape
    for bits, rows, columns in planes:
        shapes = (len(bits), height, -(-width // 8)), (len(bits), height), (len(bits), width)
        if (bits.shape, rows.shape, columns.shape) != shapes:
            raise UsageError(f"sign planes {bits.shape} do not fit a matrix {base.shape}")
    starts = np.cumsum([0, *(bits.shape[0] for bits, _, _ in planes)])
    joined = (
        np.concatenate([bits for bits, _, _ in planes]),
        np.concatenate([rows for _, rows, _ in planes]),
        np.concatenate([columns for _, _, columns in planes]),
    )
    target = _target(base, dtypes[1], out)
    lookup.merge_rows(base, _kernel_dtypes(dtypes), joined, starts, _kernel_rule(rule), target)
    return target


def _target(base: Array, dtype: str, out: Array | None) -> Array:
    if out is None:
        return np.empty(base.shape, unsigned(dtype))
    if out.shape != base.shape or out.dtype != unsigned(dtype):
        raise UsageError(f"out is {out.dtype} {list(out.shape)}, not {dtype} {list(base.shape)}")
    return out


def _kernel_rule(rule: Elementwise) -> tuple[Array, Array, Any, Any, int, bool]:
    selected = -1 if rule.select is None else rule.select
    weights = np.array(rule.weights, np.float32)
    if rule.select is not None:
        weights[rule.select] = 1.0
    shares = np.array(rule.divisors, np.float32)
    return weights, shares, np.float32(rule.divisor), np.float32(rule.scale), selected, rule.elect


def _kernel_dtypes(dtypes: tuple[str, str]) -> tuple[int, int]:
    return KERNEL_DTYPE[dtypes[0]], KERNEL_DTYPE[dtypes[1]]


def _check_count(count: int) -> None:
    if not 1 <= count <= lookup.MAX_EXPERTS:
        raise UsageError(
            f"look-up takes 1 to {lookup.MAX_EXPERTS} experts, not {count}; merge without it"
        )
