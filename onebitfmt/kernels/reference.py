"""The kernels of `cpu` again in plain numpy: slow, short, and the measure of what is right."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Planes = tuple[Array, Array, Array]
BF16, F16, F32 = 0, 1, 2
SUM_LANES = 16


def widen(source: Array, dtype: int) -> Array:
    """float32 values of bit patterns."""
    if dtype == BF16:
        return (source.astype(np.uint32) << 16).view(np.float32)
    if dtype == F16:
        return source.view(np.float16).astype(np.float32)
    return source.view(np.float32)


def narrow(source: Array, dtype: int) -> Array:
    """Bit patterns of float32 values, rounded to nearest even; NaN becomes the quiet NaN."""
    u = source.view(np.uint32)
    if dtype == BF16:
        rounded: Array = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
        quiet, sign = 0x7FC0, (u >> 16) & 0x8000
    elif dtype == F16:
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = source.astype(np.float16).view(np.uint16).astype(np.uint32)
        quiet, sign = 0x7E00, (u >> 16) & 0x8000
    else:
        rounded, quiet, sign = u, 0x7FC00000, u & 0x80000000
    result = np.where(np.isnan(source), quiet | sign, rounded)
    return result.astype(np.uint32 if dtype == F32 else np.uint16)


def task_vector_rows(planes: Planes) -> Array:
    """The sum of sign planes, float32 [R, C]."""
    bits, rows, columns = planes
    total = np.full((rows.shape[1], columns.shape[1]), -0.0, np.float32)
    for p in range(bits.shape[0]):
        sign = np.unpackbits(bits[p], axis=1, bitorder="little")[:, : columns.shape[1]]
        magnitude = rows[p][:, None] * columns[p][None, :]
        total = np.where(sign == 1, total + magnitude, total - magnitude)
    return total


def rebuild_rows(base: Array, dtypes: tuple[int, int], planes: Planes) -> Array:
    """Bit patterns of base + sum of sign planes."""
    return narrow(widen(base, dtypes[0]) + task_vector_rows(planes), dtypes[1])


def sign_pass(
    base: Array,
    expert: Array,
    dtypes: tuple[int, int],
    planes: Planes,
    weights: Array,
    first_row: int,
    balanced: bool,
) -> tuple[Array, Array, Array]:
    """Sign bits, row sums and column sums of a block of rows; see `cpu.sign_pass`."""
    delta = widen(expert, dtypes[1]) - widen(base, dtypes[0])
    for p in range(planes[0].shape[0]):
        one = tuple(a[p : p + 1] for a in planes)
        delta = delta - task_vector_rows((one[0], one[1], one[2]))
    size = np.abs(delta)
    weighted = size * weights if weights.size else size
    zeros = (delta == 0).sum(axis=1)
    sums = np.stack([_lane_sums(weighted), _lane_sums(size * size), zeros], axis=1)
    column_sums = np.zeros(delta.shape[1])
    for i in range(delta.shape[0]):
        column_sums += size[i]
    zero_signs = _zero_signs(delta.shape, first_row) if balanced else np.ones(delta.shape, bool)
    signs = (delta > 0) | ((delta == 0) & zero_signs)
    return np.packbits(signs, axis=1, bitorder="little"), sums, column_sums


def _lane_sums(values: Array) -> Array:
    """Row sums in the stated order: of 64 columns, four that lie 16 apart in float32; the rest in
    float64, lane by lane, and then over the 16 lanes.
    """
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % 64)))
    lanes = np.zeros((values.shape[0], SUM_LANES))
    for part in padded.reshape(values.shape[0], -1, 4, SUM_LANES).transpose(1, 2, 0, 3):
        lanes += ((part[0] + part[1]) + (part[2] + part[3])).astype(np.float64)
    total = np.zeros(values.shape[0])
    for k in range(SUM_LANES):
        total += lanes[:, k]
    return total


def _zero_signs(shape: tuple[int, int], first_row: int) -> Array:
    height, width = shape
    words = (width + 63) // 64
    result = np.zeros(shape, bool)
    for i in range(height):
        for j in range(width):
            z = splitmix64((first_row + i) * words + j // 64)
            result[i, j] = (z >> (j % 64)) & 1
    return result


def splitmix64(index: int) -> int:
    """The index-th output of the splitmix64 generator seeded with zero."""
    mask = 2**64 - 1
    z = ((index + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def _ordered(u: Array, is_float: bool) -> Array:
    if not is_float:
        return u
    top = u.dtype.type(1 << (8 * u.itemsize - 1))
    return np.where(u & top, ~u, u | top)


def count_keys(prediction: Array, shift: int, mask: int) -> Array:
    """How often each exponent field occurs in the prediction."""
    keys = ((prediction.astype(np.uint64) >> np.uint64(shift)) & np.uint64(mask)).astype(np.int64)
    return np.bincount(keys, minlength=mask + 1)


def to_symbols(values: Array, prediction: Array, key: tuple[int, int], is_float: bool) -> Array:
    """Zigzagged differences, stably sorted by the prediction's exponent field."""
    d = _ordered(values, is_float) - _ordered(prediction, is_float)
    signed = d.view(d.dtype.str.replace("u", "i"))
    z = ((signed << 1) ^ (signed >> (8 * d.itemsize - 1))).view(d.dtype)
    keys = (prediction.astype(np.uint64) >> np.uint64(key[0])) & np.uint64(key[1])
    order = np.argsort(keys, kind="stable")
    return np.take(z, order)
