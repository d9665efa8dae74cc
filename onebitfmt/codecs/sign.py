"""The sign term: one sign per weight and a scale, in one or several residual planes (spec 6.1).

For signs S and sizes |d| the scale that minimises the squared error is a mean of |d|: over the
matrix (the paper, arXiv 2502.10743), over each row or column, or, for `rank1`, the row and column
factors of |d| found by one step of alternating least squares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onebitfmt.codecs.floats import KERNEL_DTYPE, unsigned
from onebitfmt.errors import FormatError
from onebitfmt.format.dtypes import matrices
from onebitfmt.format.manifest import SCALE_TENSORS
from onebitfmt.kernels import cpu
from onebitfmt.parallel import Workers

Array = NDArray[Any]

MAX_PLANES: Final = 4
_MIN_BLOCK, _MAX_BLOCK = 1 << 18, 1 << 22
_F16_NORMAL: Final = 2.0**-14
_F16_MAX: Final = 65504.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SignOptions:
    """How to encode: scale kind, number of planes, and `balanced` or all-plus signs of zeros."""

    scale: str = "rank1"
    planes: int = 1
    balanced: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Fidelity:
    """What one-bit coding did to a tensor; `energy` and `error` are sums of squares."""

    elements: int
    zeros: int
    energy: float
    error: float
    sampled: int
    absorbed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Plane:
    """A sign plane of a stack of S matrices.

    `bits` is uint8 [S, R, ceil(C/8)]; `rows` float32 [S, R] and `columns` float32 [S, C] are the
    factors of the scale. A scale of kind `matrix` is a row scale whose rows are all equal.
    """

    bits: Array
    rows: Array
    columns: Array


# --- encoding ------------------------------------------------------------------------------------


def encode(
    base: Array,
    expert: Array,
    dtypes: tuple[str, str],
    options: SignOptions,
    workers: Workers,
) -> tuple[tuple[Plane, ...], Fidelity] | None:
    """Sign planes of the task vector expert - base, or None where it is not finite.

    A difference above 1e19, whose square overflows, counts as not finite, too.

    Both arrays are bit patterns [S, R, C] of the types `dtypes` (base, expert). The result depends
    on nothing else: not on the number of threads, nor on how the arrays lie in memory.
    """
    stack, height, width = expert.shape
    planes = tuple(_empty_plane(stack, height, width) for _ in range(options.planes))
    energy = error = 0.0
    zeros = 0
    for s in range(stack):
        encoder = _MatrixEncoder(
            base=base[s], expert=expert[s], dtypes=dtypes, options=options, workers=workers
        )
        for p, plane in enumerate(planes):
            totals = encoder.add_plane(plane, s, planes[:p])
            if not isfinite(totals.energy):
                return None
            if p == 0:
                energy += totals.energy
                zeros += totals.zeros
        error += totals.error
    sampled, absorbed = _count_absorbed(base, dtypes, planes)
    return planes, Fidelity(
        elements=expert.size,
        zeros=zeros,
        energy=energy,
        error=max(error, 0.0),
        sampled=sampled,
        absorbed=absorbed,
    )


def _empty_plane(stack: int, height: int, width: int) -> Plane:
    return Plane(
        bits=np.empty((stack, height, -(-width // 8)), np.uint8),
        rows=np.ones((stack, height), np.float32),
        columns=np.ones((stack, width), np.float32),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Totals:
    energy: float
    error: float
    zeros: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _MatrixEncoder:
    base: Array
    expert: Array
    dtypes: tuple[str, str]
    options: SignOptions
    workers: Workers

    def add_plane(self, plane: Plane, s: int, before: Sequence[Plane]) -> _Totals:
        """Fill matrix s of a plane from what the planes before it leave over."""
        height, width = self.expert.shape
        kind = self.options.scale
        found = kernel_planes(before, s, 0, height, width)
        with np.errstate(invalid="ignore", over="ignore"):
            sums, column_sums = self._pass(found, None, plane.bits[s], kind in ("column", "rank1"))
            energy = float(_ordered_sum(sums[:, 1]))
            if not isfinite(energy) or not isfinite(float(_ordered_sum(sums[:, 0]))):
                return _Totals(energy=float("inf"), error=0.0, zeros=0)
        zeros, row_sums = int(sums[:, 2].sum()), sums[:, 0]
        if kind == "matrix":
            plane.rows[s] = _stored(np.array([_ordered_sum(sums[:, 0]) / self.expert.size]))
        elif kind == "row":
            plane.rows[s] = _stored(sums[:, 0] / width)
        else:
            scale = _ordered_sum(column_sums) / self.expert.size
            # rank1 splits the size evenly between its factors: both stay within F16's range.
            share = 1.0 if kind == "column" or scale == 0.0 else scale**-0.5
            plane.columns[s] = _stored(column_sums / height * share)
        if kind == "rank1":
            sums, _ = self._pass(found, plane.columns[s], None, False)
            norm = float(_ordered_sum(plane.columns[s].astype(np.float64) ** 2))
            plane.rows[s] = _stored(sums[:, 0] / norm if norm > 0.0 else sums[:, 0])
        change = _error_change(plane, s, sums[:, 0], column_sums, kind)
        if kind == "rank1" and change > -_ordered_sum(row_sums**2) / width:
            # One step from the columns' means can end above the row scales alone: use those.
            plane.columns[s] = 1.0
            plane.rows[s] = _stored(row_sums / width)
            change = _error_change(plane, s, row_sums, column_sums, kind)
        error = energy + change
        return _Totals(energy=energy, error=error, zeros=zeros)

    def _pass(
        self,
        found: tuple[Array, Array, Array],
        weights: Array | None,
        bits: Array | None,
        with_columns: bool,
    ) -> tuple[Array, Array]:
        """One pass of `cpu.sign_pass` over the matrix, in blocks whose size the shape decides."""
        height, width = self.expert.shape
        sums = np.empty((height, 3))
        dtypes = (KERNEL_DTYPE[self.dtypes[0]], KERNEL_DTYPE[self.dtypes[1]])
        factors = np.empty(0, np.float32) if weights is None else weights
        none = np.empty((0, 0), np.uint8)

        def run(rows: slice) -> Array:
            column_sums = np.zeros(width if with_columns else 0)
            cpu.sign_pass(
                self.base[rows], self.expert[rows], dtypes,
                (found[0][:, rows], found[1][:, rows], found[2]),
                factors, rows.start, self.options.balanced,
                none if bits is None else bits[rows], sums[rows], column_sums,
            )  # fmt: skip
            return column_sums

        total = np.zeros(width if with_columns else 0)
        blocks = list(_row_blocks(height, width))
        for part in map(run, blocks) if len(blocks) == 1 else self.workers.map(run, blocks):
            total += part
        return sums, total


def _row_blocks(height: int, width: int) -> Iterator[slice]:
    # A few blocks a matrix keep every thread busy; small ones would be lost in task switches.
    elements = min(max(height * width // 4, _MIN_BLOCK), _MAX_BLOCK)
    step = max(1, -(-elements // max(width, 1)))
    for first in range(0, height, step):
        yield slice(first, min(height, first + step))


def _ordered_sum(values: Array) -> float:
    """The sum in index order: numpy's own order is not promised."""
    return float(np.add.accumulate(values)[-1]) if values.size else 0.0


def fits_half(values: Array) -> bool:
    """True where F16 holds every value within 2^-10, relative: zero, or in its normal range."""
    size = np.abs(values)
    return bool(np.all((size == 0) | ((size >= _F16_NORMAL) & (size <= _F16_MAX))))


def _stored(values: Array) -> Array:
    """Scales as they will be stored: rounded to F16 if that can hold them, else to F32."""
    single = values.astype(np.float32)
    # `stored_scales` sees the rounded values: both must come to the same choice at F16's limits.
    return values.astype(np.float16).astype(np.float32) if fits_half(single) else single


def stored_scales(plane: Plane, shape: tuple[int, ...], kind: str) -> dict[str, Array]:
    """The scale tensors of a plane as they are stored, F16 or F32, broadcastable to `shape`."""
    stack = shape[:-2]
    values = {
        "matrix": plane.rows[:, :1].reshape(*stack, 1, 1),
        "row": plane.rows.reshape(*stack, -1, 1),
        "column": plane.columns.reshape(*stack, 1, -1),
    }
    return {
        part: values[part].astype("<f2" if fits_half(values[part]) else "<f4")
        for part in SCALE_TENSORS[kind]
    }


def _error_change(plane: Plane, s: int, row_sums: Array, column_sums: Array, kind: str) -> float:
    """sum (|d| - m)^2 - sum d^2, from sum m|d| and sum m^2; m the scales as stored."""
    rows = plane.rows[s].astype(np.float64)
    columns = plane.columns[s].astype(np.float64)
    size = _ordered_sum(rows**2) * _ordered_sum(columns**2)
    if kind == "column":
        return size - 2.0 * _ordered_sum(columns * column_sums)
    return size - 2.0 * _ordered_sum(rows * row_sums)


def _count_absorbed(
    base: Array, dtypes: tuple[str, str], planes: Sequence[Plane]
) -> tuple[int, int]:
    """(weights looked at, those that rounding leaves at the base's value).

    All weights of small tensors; of large ones evenly spread rows, about 2^16 weights.
    """
    stack, height, _ = base.shape
    step = max(1, base.size >> 16)
    sampled = absorbed = 0
    for s in range(stack):
        rows = slice((-s * height) % step, height, step)
        block = np.ascontiguousarray(base[s, rows])
        bits = np.stack([p.bits[s, rows] for p in planes])
        scales = np.stack([p.rows[s, rows] for p in planes])
        columns = np.stack([p.columns[s] for p in planes])
        rebuilt = rebuild(block, dtypes, (bits, scales, columns))
        unchanged = rebuild(block, dtypes, (bits[:0], scales[:0], columns[:0]))
        sampled += block.size
        absorbed += int((rebuilt == unchanged).sum())
    return sampled, absorbed


# --- decoding ------------------------------------------------------------------------------------


def kernel_planes(
    planes: Sequence[Plane], s: int, first: int, stop: int, width: int
) -> tuple[Array, Array, Array]:
    """Rows first..stop of matrix s as the kernels take them: [P, R, bytes], [P, R], [P, C]."""
    if not planes:
        height = stop - first
        return (
            np.empty((0, height, -(-width // 8)), np.uint8),
            np.empty((0, height), np.float32),
            np.empty((0, width), np.float32),
        )
    if len(planes) == 1:
        p = planes[0]
        return p.bits[s : s + 1, first:stop], p.rows[s : s + 1, first:stop], p.columns[s : s + 1]
    return (
        np.stack([p.bits[s, first:stop] for p in planes]),
        np.stack([p.rows[s, first:stop] for p in planes]),
        np.stack([p.columns[s] for p in planes]),
    )


def rebuild(base: Array, dtypes: tuple[str, str], planes: tuple[Array, Array, Array]) -> Array:
    """Bit patterns [R, C] of base + task vector, rounded once; types are (base, expert)."""
    out = np.empty(base.shape, unsigned(dtypes[1]))
    cpu.rebuild_rows(base, (KERNEL_DTYPE[dtypes[0]], KERNEL_DTYPE[dtypes[1]]), planes, out)
    return out


def task_vector(planes: tuple[Array, Array, Array]) -> Array:
    """The task vector of some rows, float32 [R, C]."""
    out = np.empty((planes[1].shape[1], planes[2].shape[1]), np.float32)
    cpu.task_vector_rows(planes, out)
    return out


def plane_from_stored(
    shape: tuple[int, ...], bits: Array, scales: Mapping[str, Array], where: str
) -> Plane:
    """A plane from its stored tensors: uint8 bits and float32 scales by kind.

    Raises `FormatError` OBD-SIGN-SCALE or OBD-SIGN-PAD.
    """
    stack, height, width = matrices(shape)
    for kind, scale in scales.items():
        if not np.all(np.isfinite(scale)) or np.any(np.signbit(scale)):
            problem = f"a {kind} scale is negative or not finite"
            raise FormatError("OBD-SIGN-SCALE", where, problem)
    ones = np.ones(1, np.float32)
    rows = scales.get("row", scales.get("matrix", ones))
    columns = scales.get("column", ones)
    plane = Plane(
        bits=bits.reshape(stack, height, -(-width // 8)),
        rows=np.broadcast_to(_per_matrix(rows, stack), (stack, height)),
        columns=np.broadcast_to(_per_matrix(columns, stack), (stack, width)),
    )
    with np.errstate(over="ignore"):
        largest = plane.rows.max(axis=1) * plane.columns.max(axis=1)
    if not np.all(np.isfinite(largest)):
        raise FormatError("OBD-SIGN-SCALE", where, "a product of scales is not finite")
    if width % 8 and (plane.bits[..., -1] >> (width % 8)).any():
        raise FormatError("OBD-SIGN-PAD", where, "padding bits are not zero")
    return plane


def _per_matrix(scale: Array, stack: int) -> Array:
    return scale.reshape(stack, -1) if scale.size > 1 else scale.reshape(1, 1)
