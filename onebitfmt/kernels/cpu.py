"""The sign kernels on the CPU: encode, rebuild, and conversions of floats."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebitfmt.kernels.compile import kernel
from onebitfmt.kernels.vector import (
    SUM_LANES,
    add_signed,
    add_sums,
    bfloat_step,
    bits_of_float,
    float_of_bits,
    load_word,
    popcount,
    positive_mask,
    store_word,
    zero_mask,
)

Array = NDArray[Any]

# Columns that are worked on at once: a scratch row of float32 stays in the first-level cache.
SEGMENT = 2048


@kernel
def _half_to_float(u: Any) -> Any:
    # Integer arithmetic: LLVM's own conversion needs F16C, which not every CPU has.
    magnitude = np.uint32(u & np.uint16(0x7FFF)) << np.uint32(13)
    scaled = bits_of_float(float_of_bits(magnitude) * np.float32(2.0**112))
    special = (u & np.uint16(0x7C00)) == np.uint16(0x7C00)
    bits = (magnitude | np.uint32(0x7F800000)) if special else scaled
    return float_of_bits(bits | (np.uint32(u & np.uint16(0x8000)) << np.uint32(16)))


@kernel
def _float_to_half(x: Any) -> Any:
    u = bits_of_float(x)
    m = u & np.uint32(0x7FFFFFFF)
    sign = np.uint16((u >> np.uint32(16)) & np.uint32(0x8000))
    normal = (m + np.uint32(0xC8000FFF) + ((m >> np.uint32(13)) & np.uint32(1))) >> np.uint32(13)
    # Adding 0.5 rounds to a multiple of 2^-24, the spacing of subnormal halves.
    tiny = bits_of_float(float_of_bits(m) + np.float32(0.5)) - np.uint32(0x3F000000)
    huge = np.uint32(0x7E00) if m > np.uint32(0x7F800000) else np.uint32(0x7C00)
    r = tiny if m < np.uint32(0x38800000) else normal
    return np.uint16(huge if m >= np.uint32(0x47800000) else r) | sign


@kernel
def _float_to_bfloat(x: Any) -> Any:
    u = bits_of_float(x)
    r = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    nan = (u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    quiet = ((u >> np.uint32(16)) & np.uint32(0x8000)) | np.uint32(0x7FC0)
    return np.uint16(quiet if nan else r)


@kernel
def _widen(source: Any, dtype: Any, out: Any) -> None:
    """float32 values of bit patterns; dtype is 0 for BF16, 1 for F16, 2 for F32."""
    if dtype == 0:
        for j in range(source.size):
            out[j] = float_of_bits(np.uint32(source[j]) << np.uint32(16))
    elif dtype == 1:
        for j in range(source.size):
            out[j] = _half_to_float(np.uint16(source[j]))
    else:
        for j in range(source.size):
            out[j] = float_of_bits(np.uint32(source[j]))


@kernel
def _difference(base: Any, expert: Any, dtypes: Any, out: Any, scratch: Any) -> None:
    """out = expert - base in float32."""
    if dtypes[0] == 0 and dtypes[1] == 0:
        for j in range(base.size):
            e = float_of_bits(np.uint32(expert[j]) << np.uint32(16))
            out[j] = e - float_of_bits(np.uint32(base[j]) << np.uint32(16))
        return
    _widen(expert, dtypes[1], out)
    _widen(base, dtypes[0], scratch)
    for j in range(base.size):
        out[j] -= scratch[j]


@kernel
def widen(source: Array, dtype: int, out: Array) -> None:
    """out[i] = float32 value of the bit pattern source[i] (1-D); dtype 0 BF16, 1 F16, 2 F32."""
    _widen(source, dtype, out)


@kernel
def narrow(source: Array, dtype: int, out: Array) -> None:
    """out[i] = bit pattern of source[i] (float32, 1-D), rounded to nearest even; NaN is quiet."""
    _narrow(source, dtype, out)


@kernel
def _narrow(source: Any, dtype: Any, out: Any) -> None:
    if dtype == 0:
        for j in range(source.size):
            out[j] = _float_to_bfloat(source[j])
    elif dtype == 1:
        for j in range(source.size):
            out[j] = _float_to_half(source[j])
    else:
        for j in range(source.size):
            u = bits_of_float(source[j])
            nan = (u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            out[j] = ((u & np.uint32(0x80000000)) | np.uint32(0x7FC00000)) if nan else u


@kernel
def _zero_signs(word: Any) -> Any:
    """64 evenly spread bits for a word index: the splitmix64 finaliser."""
    z = (word + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def read_word(row: Any, byte: Any) -> Any:
    """64 sign bits of a row from a byte on; what lies behind its end is zero."""
    if byte + 8 <= row.size:
        return load_word(row.ctypes.data + byte)
    word = np.uint64(0)
    for k in range(row.size - byte):
        word |= np.uint64(row[byte + k]) << np.uint64(8 * k)
    return word


@kernel
def _write_word(row: Any, byte: Any, word: Any) -> None:
    if byte + 8 <= row.size:
        store_word(row.ctypes.data + byte, word)
        return
    for k in range(row.size - byte):
        row[byte + k] = np.uint8(word >> np.uint64(8 * k))


@kernel
def _magnitudes(row_scale: Any, columns: Any, out: Any) -> None:
    for j in range(columns.size):
        out[j] = row_scale * columns[j]


@kernel
def _signed(target: Any, bits: Any, first: Any, magnitudes: Any, width: Any) -> None:
    """Add ±magnitudes to a segment of `width` columns that begins at column `first`."""
    for j in range(0, width, 64):
        mask = read_word(bits, (first + j) >> 3)
        add_signed(target.ctypes.data + 4 * j, magnitudes.ctypes.data + 4 * j, mask)


@kernel
def _pack(masks: Any, first: Any, width: Any, word: Any, balanced: Any, bits: Any) -> Any:
    """Write the sign bits of a segment from its masks; gives the number of zeros."""
    zeros = 0
    for k in range((width + 63) >> 6):
        positive, zero = masks[k, 0], masks[k, 1]
        if zero != 0:
            if width - 64 * k < 64:
                zero &= (np.uint64(1) << np.uint64(width - 64 * k)) - np.uint64(1)
            zeros += popcount(zero)
            positive |= (zero & _zero_signs(np.uint64(word + k))) if balanced else zero
        _write_word(bits, (first >> 3) + 8 * k, positive)
    return zeros


@kernel
def _segment_delta(
    base: Any, expert: Any, dtypes: Any, planes: Any, span: Any, out: Any, scratch: Any
) -> None:
    """The task vector's segment less the sign planes found so far; zero behind its end."""
    i, first, width = span
    stop = first + width
    _difference(base[i, first:stop], expert[i, first:stop], dtypes, out, scratch)
    for p in range(planes[0].shape[0]):
        _magnitudes(-planes[1][p, i], planes[2][p, first:stop], scratch)
        _signed(out, planes[0][p, i], first, scratch, width)
    out[width : (width + 63) // 64 * 64] = np.float32(0)


@kernel
def sign_pass(
    base: Array,
    expert: Array,
    dtypes: tuple[int, int],
    planes: tuple[Array, Array, Array],
    weights: Array,
    first_row: int,
    balanced: bool,
    out_bits: Array,
    sums: Array,
    column_sums: Array,
) -> None:
    """One pass over a block of rows of a matrix: signs, and the sums that scales are made of.

    `base` and `expert` [R, C] are bit patterns of the types `dtypes` (0 BF16, 1 F16, 2 F32).
    `planes` are the sign planes found so far, whose value is subtracted first: bits uint8
    [P, R, ceil(C/8)], row scales float32 [P, R], column scales float32 [P, C].
    With d the remaining task vector, per row i: `sums`[i] = (sum_j weights_j |d_ij|, sum_j d_ij^2,
    number of zeros) in float64, all weights being 1 if `weights` is empty; and `column_sums`[j] +=
    |d_ij| unless it is empty. `out_bits` [R, ceil(C/8)] gets the signs unless it is empty, and then
    zeros are not counted. `first_row` is the block's first row within the matrix: zeros are signed
    by a hash of their place (`balanced`), or all +.
    """
    height, width = base.shape
    words = (width + 63) >> 6
    delta = np.zeros((width + SEGMENT) // SEGMENT * SEGMENT, np.float32)
    scratch = np.zeros(SEGMENT, np.float32)
    lanes = np.zeros((2, SUM_LANES), np.float64)
    masks = np.zeros((SEGMENT >> 6, 2), np.uint64)
    # Vectors of 64 lanes read past the last column.
    factors = np.zeros(weights.size + 63, np.float32)
    factors[: weights.size] = weights
    # The fused step reads addresses: a row's weights must lie side by side.
    dense = base.strides[1] == base.itemsize and expert.strides[1] == expert.itemsize
    fused = dense and planes[0].shape[0] == 0 and dtypes[0] == 0 and dtypes[1] == 0
    for i in range(height):
        lanes[:] = 0.0
        zeros = 0
        for first in range(0, width, SEGMENT):
            n = min(SEGMENT, width - first)
            d = delta[first : first + SEGMENT]
            factor = factors.ctypes.data + 4 * first if weights.size else 0
            done = 0
            if fused:
                done = n >> 6 << 6
                kept = d.ctypes.data if column_sums.size else 0
                _fused(base[i, first:], expert[i, first:], done, kept, factor, lanes, masks)
            if done < n:
                rest = (i, first + done, n - done)
                _segment_delta(base, expert, dtypes, planes, rest, d[done:], scratch)
                at = factor + 4 * done if factor else 0
                _accumulate(d[done:], at, n - done, lanes, masks[done >> 6 :])
            if out_bits.size:
                word = (first_row + i) * words + (first >> 6)
                zeros += _pack(masks, first, n, word, balanced, out_bits[i])
        total = squares = 0.0
        for k in range(SUM_LANES):
            total += lanes[0, k]
            squares += lanes[1, k]
        sums[i, 0] = total
        sums[i, 1] = squares
        sums[i, 2] = zeros
        if column_sums.size:
            for j in range(width):
                column_sums[j] += np.float64(abs(delta[j]))


@kernel
def _fused(
    base: Any, expert: Any, width: Any, delta: Any, factor: Any, lanes: Any, masks: Any
) -> None:
    """The common case, BF16 without earlier planes, in one go; width is a multiple of 64."""
    b, e = base.ctypes.data, expert.ctypes.data
    sums, m = lanes.ctypes.data, masks.ctypes.data
    for j in range(0, width, 64):
        at = factor + 4 * j if factor else 0
        kept = delta + 4 * j if delta else 0
        bfloat_step(b + 2 * j, e + 2 * j, kept, at, sums, m + (j >> 2))


@kernel
def _accumulate(d: Any, factor: Any, width: Any, lanes: Any, masks: Any) -> None:
    """Sums and masks of a segment; what lies behind its end is zero and adds nothing."""
    for j in range(0, width, 64):
        x = d.ctypes.data + 4 * j
        add_sums(x, factor + 4 * j if factor else 0, lanes.ctypes.data)
        masks[j >> 6, 0] = positive_mask(x)
        masks[j >> 6, 1] = zero_mask(x)


@kernel
def rebuild_rows(
    base: Array, dtypes: tuple[int, int], planes: tuple[Array, Array, Array], out: Array
) -> None:
    """out = base + sum of sign planes, in float32, rounded once (spec section 6.1).

    `base` [R, C] and `out` [R, C] are bit patterns of the types `dtypes`; `planes` as in
    `sign_pass`.
    """
    height, width = base.shape
    d = np.zeros(SEGMENT, np.float32)
    scratch = np.zeros(SEGMENT, np.float32)
    for i in range(height):
        for first in range(0, width, SEGMENT):
            n = min(SEGMENT, width - first)
            task_vector_segment(planes, i, first, n, d, scratch)
            _widen(base[i, first : first + n], dtypes[0], scratch)
            for j in range(n):
                d[j] += scratch[j]
            _narrow(d[:n], dtypes[1], out[i, first : first + n])


@kernel
def task_vector_segment(planes: Any, i: Any, first: Any, n: Any, out: Any, scratch: Any) -> None:
    """out[:n] = the sum of sign planes in columns first..first+n of row i, in stated order."""
    # -0 is the neutral start: adding the first term to it is exact, its sign of zero included.
    out[:n] = np.float32(-0.0)
    for p in range(planes[0].shape[0]):
        _magnitudes(planes[1][p, i], planes[2][p, first : first + n], scratch)
        _signed(out, planes[0][p, i], first, scratch, n)


@kernel
def task_vector_rows(planes: tuple[Array, Array, Array], out: Array) -> None:
    """out [R, C] float32 = sum of sign planes (spec section 6.1); `planes` as in `sign_pass`."""
    height, width = out.shape
    d = np.zeros(SEGMENT, np.float32)
    scratch = np.zeros(SEGMENT, np.float32)
    for i in range(height):
        for first in range(0, width, SEGMENT):
            n = min(SEGMENT, width - first)
            task_vector_segment(planes, i, first, n, d, scratch)
            out[i, first : first + n] = d[:n]
