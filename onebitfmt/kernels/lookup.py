"""Merging one-bit task vectors on the CPU: table look-up over sign bits, and one pass over planes.

Where each of K task vectors has one plane of signs and one scale, the merged task vector takes at
most 2^K values: they are computed once and chosen by the K bits of each weight, with a tree of
selects over 64 lanes. Where scales differ by row and column, or planes are several,
`merge_rows` does the arithmetic of `elementwise` in one pass over the bits.
Blocks of rows run in parallel in the caller's thread pool.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from onebitfmt.kernels.compile import kernel
from onebitfmt.kernels.cpu import SEGMENT, narrow, read_word, task_vector_segment, widen
from onebitfmt.kernels.vector import (
    F32,
    FLOATS,
    I1,
    I64,
    INTS,
    LANES,
    instruction,
    load,
    store,
)

Array = NDArray[Any]

# A byte of pattern: 256 table entries stay in the first-level cache.
MAX_EXPERTS: Final = 8
# Several float32 rows of this length stay in the first-level cache.
_PIECE: Final = 1024
_TREE: Final = 4
_MASK = ir.VectorType(I1, LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)


def _chosen(builder: Any, count: int, table: Any, words: Any) -> Any:
    """64 floats chosen from 2^count entries at `table` by the bits of `count` words."""
    masks = []
    for k in range(count):
        word = load(builder, builder.add(words, ir.Constant(I64, 8 * k)), I64, 8)
        masks.append(builder.bitcast(word, _MASK))

    def choose(first: int, level: int) -> Any:
        # Depth first: few values wait in registers for their select.
        if level == 0:
            return _everywhere(builder, table, first)
        zero = choose(first, level - 1)
        one = choose(first + (1 << (level - 1)), level - 1)
        return builder.select(masks[level - 1], one, zero)

    return choose(0, count)


def _chooser(count: int) -> Callable[..., Any]:
    """An instruction: 64 float32 chosen from 2^count table entries by `count` words of bits."""

    def choose(_: Any, table: Any, words: Any, out: Any) -> Any:
        return types.void(types.intp, types.intp, types.intp), generate

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        store(builder, _chosen(builder, count, *args[:2]), args[2])
        return context.get_dummy_value()

    return instruction(choose)


def _adder(count: int) -> Callable[..., Any]:
    """An instruction: 64 BF16 of a base plus the chosen entries, rounded; the common case."""

    def add(_: Any, base: Any, table: Any, words: Any, out: Any) -> Any:
        return types.void(types.intp, types.intp, types.intp, types.intp), generate

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base, table, words, out = args
        shift = _all(16)
        bits = builder.zext(load(builder, base, _SHORTS, 2), INTS)
        value = builder.bitcast(builder.shl(bits, shift), FLOATS)
        value = builder.fadd(value, _chosen(builder, count, table, words))
        u = builder.bitcast(value, INTS)
        high = builder.lshr(u, shift)
        even = builder.add(builder.and_(high, _all(1)), _all(0x7FFF))
        rounded = builder.lshr(builder.add(u, even), shift)
        quiet = builder.or_(builder.and_(high, _all(0x8000)), _all(0x7FC0))
        nan = builder.fcmp_unordered("uno", value, value)
        result = builder.select(nan, quiet, rounded)
        store(builder, builder.trunc(result, _SHORTS), out, 2)
        return context.get_dummy_value()

    return instruction(add)


def _all(value: int) -> Any:
    return ir.Constant(INTS, [value] * LANES)


def _everywhere(builder: Any, table: Any, entry: int) -> Any:
    """A table entry in each of 64 lanes."""
    return _spread(builder, load(builder, builder.add(table, ir.Constant(I64, 4 * entry)), F32))


def _spread(builder: Any, value: Any) -> Any:
    """A float in each of 64 lanes."""
    first = builder.insert_element(
        ir.Constant(FLOATS, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
    )
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(FLOATS, ir.Undefined), lanes)


_choose_1, _choose_2, _choose_3, _choose_4 = (_chooser(k) for k in range(1, _TREE + 1))
_add_1, _add_2, _add_3, _add_4 = (_adder(k) for k in range(1, _TREE + 1))


@instruction
def _blend(_: Any, target: Any, values: Any, mask: Any) -> Any:
    """target[i] = values[i] where bit i of the mask is one; 64 float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        old, new = load(builder, args[0]), load(builder, args[1])
        mask = builder.bitcast(args[2], _MASK)
        store(builder, builder.select(mask, new, old), args[0])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.uint64), generate


@kernel
def _choose(count: Any, table: Any, words: Any, part: Any, out: Any) -> None:
    """64 table entries by `count` words; above four, a tree for each pattern of the high bits."""
    if count == 1:
        _choose_1(table, words.ctypes.data, out)
    elif count == 2:
        _choose_2(table, words.ctypes.data, out)
    elif count == 3:
        _choose_3(table, words.ctypes.data, out)
    else:
        _choose_4(table, words.ctypes.data, out)
    for high in range(1, 1 << max(count - _TREE, 0)):
        mask = np.uint64(0xFFFFFFFFFFFFFFFF)
        for k in range(_TREE, count):
            one = (high >> (k - _TREE)) & 1
            mask &= words[k] if one else ~words[k]
        _choose_4(table + 4 * (high << _TREE), words.ctypes.data, part.ctypes.data)
        _blend(out, part.ctypes.data, mask)


@kernel
def lookup_rows(
    base: Array, dtypes: tuple[int, int], packed: Array, table: Array, out: Array
) -> None:
    """out = base + table[pattern], in float32, rounded once.

    `base` and `out` [R, C] are bit patterns of the types `dtypes` (0 BF16, 1 F16, 2 F32).
    `packed` is uint8 [K, R, ceil(C/8)], K from 1 to 8: bit k of a weight's pattern is its sign bit
    in packed[k]. `table` is float32 [2^K].
    """
    count = packed.shape[0]
    height, width = base.shape
    words = np.zeros(MAX_EXPERTS, np.uint64)
    part = np.zeros(LANES, np.float32)
    d = np.zeros(SEGMENT, np.float32)
    scratch = np.zeros(SEGMENT, np.float32)
    entries = table.ctypes.data
    # The fused step reads addresses: a row's weights must lie side by side.
    dense = base.strides[1] == base.itemsize and out.strides[1] == out.itemsize
    fused = dense and count <= _TREE and dtypes[0] == 0 and dtypes[1] == 0
    for i in range(height):
        done = 0
        if fused:
            done = width >> 6 << 6
            _add_row(base[i], packed[:, i], entries, words, done, out[i])
        for first in range(done, width, SEGMENT):
            n = min(SEGMENT, width - first)
            for j in range(0, n, LANES):
                for k in range(count):
                    words[k] = read_word(packed[k, i], (first + j) >> 3)
                _choose(count, entries, words, part, d.ctypes.data + 4 * j)
            _add_rounded(base[i, first : first + n], dtypes, d, scratch, out[i, first : first + n])


@kernel
def _add_row(base: Any, packed: Any, table: Any, words: Any, width: Any, out: Any) -> None:
    """BF16 to BF16, four experts at most; width is a multiple of 64."""
    count = packed.shape[0]
    source, target, w = base.ctypes.data, out.ctypes.data, words.ctypes.data
    for j in range(0, width, LANES):
        for k in range(count):
            words[k] = read_word(packed[k], j >> 3)
        if count == 1:
            _add_1(source + 2 * j, table, w, target + 2 * j)
        elif count == 2:
            _add_2(source + 2 * j, table, w, target + 2 * j)
        elif count == 3:
            _add_3(source + 2 * j, table, w, target + 2 * j)
        else:
            _add_4(source + 2 * j, table, w, target + 2 * j)


@kernel
def _add_rounded(base: Any, dtypes: Any, d: Any, scratch: Any, out: Any) -> None:
    """out = base + d, rounded; d is used up."""
    n = base.size
    widen(base, dtypes[0], scratch)
    for j in range(n):
        d[j] = scratch[j] + d[j]
    narrow(d[:n], dtypes[1], out)


@instruction
def _signed_product(_: Any, row: Any, columns: Any, weight: Any, mask: Any, out: Any) -> Any:
    """out[i] = ±(row * columns[i]) * weight, + where bit i of the mask is one; 64 float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        row, columns, weight, mask, out = args
        size = builder.fmul(_spread(builder, row), load(builder, columns))
        mask = builder.bitcast(mask, _MASK)
        value = builder.select(mask, size, builder.fneg(size))
        store(builder, builder.fmul(value, _spread(builder, weight)), out)
        return context.get_dummy_value()

    return types.void(types.float32, types.intp, types.float32, types.uint64, types.intp), generate


@kernel
def merge_rows(
    base: Array,
    dtypes: tuple[int, int],
    planes: tuple[Array, Array, Array],
    starts: Array,
    rule: tuple[Array, Array, float, float, int, bool],
    out: Array,
) -> None:
    """out = base + merged task vector, in float32, rounded once; see `elementwise.Elementwise`.

    `base` and `out` as in `lookup_rows`. `planes` are the sign planes of all experts, one after
    the other: bits uint8 [P, R, ceil(C/8)], row scales float32 [P, R], column scales float32
    [P, C], C contiguous; those of expert k are starts[k] to starts[k+1] (int64 [K+1]). `rule` is
    (weights float32 [K], shares float32 [K], divisor and scale as numpy float32, the selected
    expert or -1, whether signs are elected); the selected expert's weight must be 1.
    """
    height, width = base.shape
    count = starts.size - 1
    weights = rule[0]
    vectors = np.zeros((count, _PIECE), np.float32)
    total = np.zeros(_PIECE, np.float32)
    sums = np.zeros((2, _PIECE), np.float32)
    scratch = np.zeros(SEGMENT, np.float32)
    # Vectors of 64 lanes read past the last column.
    columns = np.zeros((planes[2].shape[0], width + LANES), np.float32)
    columns[:, :width] = planes[2]
    for i in range(height):
        for first in range(0, width, _PIECE):
            n = min(_PIECE, width - first)
            for k in range(count):
                a, b = starts[k], starts[k + 1]
                v = vectors[k]
                if b == a + 1:
                    scales = columns.ctypes.data + 4 * (a * columns.shape[1] + first)
                    _weighted(planes[0][a, i], planes[1][a, i], scales, weights[k], (first, n), v)
                else:
                    own = (planes[0][a:b], planes[1][a:b], planes[2][a:b])
                    task_vector_segment(own, i, first, n, v, scratch)
                    _scale(v, weights[k], n)
            _merge(vectors, rule, n, total, sums)
            line = out[i, first : first + n]
            _add_rounded(base[i, first : first + n], dtypes, total, scratch, line)


@kernel
def _weighted(bits: Any, row: Any, scales: Any, weight: Any, span: Any, out: Any) -> None:
    """One plane's part of a row, times a weight; `span` is (first column, number)."""
    first, n = span
    for j in range(0, n, LANES):
        mask = read_word(bits, (first + j) >> 3)
        _signed_product(row, scales + 4 * j, weight, mask, out.ctypes.data + 4 * j)


@kernel
def _scale(v: Any, factor: Any, n: Any) -> None:
    for j in range(n):
        v[j] *= factor


@kernel
def _accumulate(total: Any, v: Any, n: Any) -> None:
    for j in range(n):
        total[j] += v[j]


@kernel
def _merge(vectors: Any, rule: Any, n: Any, total: Any, sums: Any) -> None:
    """The merged task vector of n weights into `total`, from weighted vectors [K, n]."""
    _, shares, divisor, scale, selected, elect = rule
    merged = 0
    for k in range(shares.size):
        if k == selected:
            continue
        if merged == 0:
            total[:n] = vectors[k, :n]
        else:
            _accumulate(total, vectors[k], n)
        merged += 1
    if merged == 0:
        total[:n] = vectors[selected, :n]
        return
    if elect:
        sums[:, :n] = np.float32(0)
        for k in range(shares.size):
            if k != selected:
                _agree(total, vectors[k], shares[k], n, sums[0], sums[1])
        _finish(sums[0], sums[1], scale, n, total)
    else:
        sums[1, :n] = divisor
        _finish(total, sums[1], scale, n, total)
    if selected >= 0:
        _accumulate(total, vectors[selected], n)


@kernel
def _agree(total: Any, v: Any, share: Any, n: Any, agreed: Any, count: Any) -> None:
    """Add a vector where it has the sign of the total, and its share to what divides."""
    zero = np.float32(0)
    for j in range(n):
        x = v[j]
        agrees = x > zero if total[j] >= zero else x < zero
        agreed[j] += x if agrees else zero
        count[j] += share if agrees else zero


@kernel
def _finish(values: Any, count: Any, scale: Any, n: Any, out: Any) -> None:
    """out = scale * (values / count); a count of zero divides by one."""
    for j in range(n):
        c = count[j]
        out[j] = values[j] / (np.float32(1) if c == np.float32(0) else c) * scale
