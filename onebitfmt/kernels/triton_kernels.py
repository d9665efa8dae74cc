"""Triton kernels over packed signs; `gpu` launches them. Importing this needs triton.

Floats come as integers of their bit patterns, and BF16 is rounded by integer arithmetic: so the
bits are the same on a GPU and in Triton's interpreter, which cuts where it should round. Products
and sums stay apart (kernels are launched without fusing them), as on the CPU. `DTYPE`, `BASE` and
`OUT` are 0 for BF16, 1 for F16, 2 for F32. A program works on `BYTES` bytes of a row's signs, eight
columns each; program axis 0 is the row, axis 1 the part of the row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import triton
import triton.language as tl
from triton.language import constexpr, tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def _jit(function: Function) -> Function:
    return cast(Function, triton.jit(function))


def interpreted() -> bool:
    """Whether kernels run in Python, on the CPU: `TRITON_INTERPRET=1` when this was imported."""
    return not isinstance(lookup_kernel, triton.JITFunction)


@_jit
def _widen(bits: tensor, DTYPE: constexpr) -> tensor:
    """float32 values of bit patterns."""
    if DTYPE == 0:
        x = (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif DTYPE == 1:
        x = bits.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        x = bits.to(tl.float32, bitcast=True)
    return x


@_jit
def _narrow(x: tensor, DTYPE: constexpr) -> tensor:
    """Bit patterns of float32 values, rounded to nearest even; NaN becomes the quiet NaN."""
    u = x.to(tl.int32, bitcast=True)
    nan = (u & 0x7FFFFFFF) > 0x7F800000
    if DTYPE == 0:
        rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
        bits = tl.where(nan, ((u >> 16) & 0x8000) | 0x7FC0, rounded).to(tl.int16)
    elif DTYPE == 1:
        half = x.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)
        bits = tl.where(nan, ((u >> 16) & 0x8000) | 0x7E00, half).to(tl.int16)
    else:
        # The sign bit is what lies outside 0x7FFFFFFF.
        bits = tl.where(nan, (u & ~0x7FFFFFFF) | 0x7FC00000, u)
    return bits


@_jit
def _place(width: tensor, BYTES: constexpr) -> tensor:
    """This program's row, its bytes in a row of signs [BYTES, 1], its columns [BYTES, 8]."""
    row = tl.program_id(0).to(tl.int64)
    byte = tl.program_id(1) * BYTES + tl.arange(0, BYTES)[:, None]
    return row, byte, byte * 8 + tl.arange(0, 8)[None, :]


@_jit
def _add_rounded(
    base: tensor,
    out: tensor,
    delta: tensor,
    at: tensor,
    inside: tensor,
    BASE: constexpr,
    OUT: constexpr,
) -> None:
    value = _widen(tl.load(base + at, mask=inside, other=0), BASE) + delta
    tl.store(out + at, _narrow(value, OUT), mask=inside)


@_jit
def _planes_sum(
    packed: tensor,
    rows: tensor,
    columns: tensor,
    place: tensor,
    span: tensor,
    shape: tensor,
    BYTES: constexpr,
) -> tensor:
    """The sum of the sign planes span[0] to span[1] at a place: float32 [BYTES, 8]."""
    row, byte, column = place
    height, width = shape
    row_bytes = (width + 7) // 8
    # -0 is the neutral start: adding the first term to it is exact, its sign of zero included.
    total = tl.full((BYTES, 8), -0.0, tl.float32)
    for p in range(span[0], span[1]):
        line = tl.cast(p, tl.int64) * height + row
        signs = tl.load(packed + line * row_bytes + byte, mask=byte < row_bytes, other=0)
        scale = tl.load(
            columns + tl.cast(p, tl.int64) * width + column, mask=column < width, other=0.0
        )
        size = tl.load(rows + line) * scale
        one = ((signs.to(tl.int32) >> (column & 7)) & 1) != 0
        total = tl.where(one, total + size, total - size)
    return total


@_jit
def lookup_kernel(
    base: tensor, out: tensor, height: tensor, width: tensor, packed: tensor, table: tensor,
    COUNT: constexpr, BASE: constexpr, OUT: constexpr, BYTES: constexpr,
) -> None:  # fmt: skip
    """out = base + table[pattern], rounded once; packed [COUNT, height, ceil(width/8)]."""
    row, byte, column = _place(width, BYTES)
    row_bytes = (width + 7) // 8
    pattern = tl.zeros((BYTES, 8), tl.int32)
    for k in tl.static_range(COUNT):
        line = row + tl.cast(height, tl.int64) * k
        signs = tl.load(packed + line * row_bytes + byte, mask=byte < row_bytes, other=0)
        pattern += ((signs.to(tl.int32) >> (column & 7)) & 1) << k
    delta = tl.load(table + pattern)
    _add_rounded(base, out, delta, row * width + column, column < width, BASE, OUT)


@_jit
def rebuild_kernel(
    base: tensor, out: tensor, height: tensor, width: tensor,
    packed: tensor, rows: tensor, columns: tensor, planes: tensor,
    BASE: constexpr, OUT: constexpr, BYTES: constexpr,
) -> None:  # fmt: skip
    """out = base + sum of sign planes, rounded once; packed [planes, height, ceil(width/8)]."""
    row, byte, column = _place(width, BYTES)
    total = _planes_sum(
        packed, rows, columns, (row, byte, column), (0, planes), (height, width), BYTES
    )
    _add_rounded(base, out, total, row * width + column, column < width, BASE, OUT)


@_jit
def merge_kernel(
    base: tensor, out: tensor, height: tensor, width: tensor,
    packed: tensor, rows: tensor, columns: tensor,
    starts: tensor, rule: tensor, divisor: tensor, scale: tensor,
    COUNT: constexpr, SELECT: constexpr, ELECT: constexpr,
    BASE: constexpr, OUT: constexpr, BYTES: constexpr,
) -> None:  # fmt: skip
    """out = base + merged task vector, rounded once; see `elementwise.Elementwise`.

    `starts` int32 [COUNT+1] are each expert's planes; `rule` float32 [2, COUNT] has the weights,
    then the shares; SELECT is -1 where no expert is selected. Task vectors are made twice where
    signs are elected: that costs less than to keep them.
    """
    row, byte, column = _place(width, BYTES)
    place = (row, byte, column)
    total = tl.full((BYTES, 8), -0.0, tl.float32)
    chosen = tl.zeros((BYTES, 8), tl.float32)
    for k in tl.static_range(COUNT):
        span = (tl.load(starts + k), tl.load(starts + k + 1))
        vector = _planes_sum(packed, rows, columns, place, span, (height, width), BYTES)
        if k == SELECT:
            chosen = vector
        else:
            total = total + vector * tl.load(rule + k)
    if ELECT:
        agreed = tl.zeros((BYTES, 8), tl.float32)
        count = tl.zeros((BYTES, 8), tl.float32)
        for k in tl.static_range(COUNT):
            if k != SELECT:
                span = (tl.load(starts + k), tl.load(starts + k + 1))
                vector = _planes_sum(packed, rows, columns, place, span, (height, width), BYTES)
                vector = vector * tl.load(rule + k)
                agrees = tl.where(total >= 0, vector > 0, vector < 0)
                agreed += tl.where(agrees, vector, 0.0)
                count += tl.where(agrees, tl.load(rule + COUNT + k), 0.0)
        merged = tl.div_rn(agreed, tl.where(count == 0, 1.0, count))
    else:
        merged = tl.div_rn(total, tl.zeros((BYTES, 8), tl.float32) + divisor)
    delta = merged * scale
    if SELECT >= 0:
        delta = chosen + delta
    _add_rounded(base, out, delta, row * width + column, column < width, BASE, OUT)


@_jit
def side_kernel(
    x: tensor, weight: tensor, out: tensor, count: tensor, height: tensor, width: tensor,
    packed: tensor, rows: tensor, columns: tensor, planes: tensor, order: tensor, experts: tensor,
    EXACT: constexpr, DTYPE: constexpr,
    TOKENS: constexpr, ROWS: constexpr, COLUMNS: constexpr,
) -> None:  # fmt: skip
    """out = x Wᵀ + the side path of one expert for a block of TOKENS rows of x.

    Program axis 0 is the block: its rows are order[TOKENS*block ...] (`count` where there is none),
    its expert is experts[block], -1 for none; axis 1 is the block of ROWS output columns. With
    EXACT, products are of float32; else they are of the type of x, and so are the scaled signs.
    """
    block = tl.program_id(0)
    token = tl.load(order + block * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    total = _product(
        x, weight, token, row, count, height, width, EXACT, DTYPE, TOKENS, ROWS, COLUMNS
    )
    expert = tl.load(experts + block)
    if expert >= 0:
        for p in range(planes):
            plane = tl.cast(expert * planes + p, tl.int64)
            part = _signed_product(
                x, packed + plane * height * ((width + 7) // 8), columns + plane * width,
                token, row, count, height, width, EXACT, DTYPE, TOKENS, ROWS, COLUMNS,
            )  # fmt: skip
            scale = tl.load(rows + plane * height + row, mask=row < height, other=0.0)
            total += part * scale[None, :]
    inside = (token[:, None] < count) & (row[None, :] < height)
    tl.store(out + token[:, None] * height + row[None, :], _narrow(total, DTYPE), mask=inside)


@_jit
def _tile(
    source: tensor, line: tensor, column: tensor, lines: tensor, width: tensor,
    EXACT: constexpr, DTYPE: constexpr,
) -> tensor:  # fmt: skip
    """A tile of a matrix of `lines` rows, zero outside, as the product takes it."""
    inside = (line[:, None] < lines) & (column[None, :] < width)
    at = line[:, None] * width + column[None, :]
    return _factor(_widen(tl.load(source + at, mask=inside, other=0), DTYPE), EXACT, DTYPE)


@_jit
def _factor(value: tensor, EXACT: constexpr, DTYPE: constexpr) -> tensor:
    """float32 values as the matrix product takes them."""
    if EXACT:
        factor = value
    elif DTYPE == 0:
        factor = value.to(tl.bfloat16)
    else:
        factor = value.to(tl.float16)
    return factor


@_jit
def _product(
    x: tensor, weight: tensor, token: tensor, row: tensor,
    count: tensor, height: tensor, width: tensor,
    EXACT: constexpr, DTYPE: constexpr,
    TOKENS: constexpr, ROWS: constexpr, COLUMNS: constexpr,
) -> tensor:  # fmt: skip
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for first in range(0, width, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        a = _tile(x, token, column, count, width, EXACT, DTYPE)
        b = _tile(weight, row, column, height, width, EXACT, DTYPE)
        total = tl.dot(a, tl.trans(b), total, input_precision="ieee")
    return total


@_jit
def _signed_product(
    x: tensor, packed: tensor, columns: tensor, token: tensor, row: tensor,
    count: tensor, height: tensor, width: tensor,
    EXACT: constexpr, DTYPE: constexpr,
    TOKENS: constexpr, ROWS: constexpr, COLUMNS: constexpr,
) -> tensor:  # fmt: skip
    """x times one plane's signs and column scales."""
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    row_bytes = (width + 7) // 8
    for first in range(0, width, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        a = _tile(x, token, column, count, width, EXACT, DTYPE)
        inside = (row[:, None] < height) & (column[None, :] < width)
        at = row[:, None] * row_bytes + (column // 8)[None, :]
        signs = tl.load(packed + at, mask=inside, other=0).to(tl.int32)
        scale = tl.load(columns + column, mask=column < width, other=0.0)[None, :]
        b = tl.where(((signs >> (column & 7)[None, :]) & 1) != 0, scale, -scale)
        b = _factor(b, EXACT, DTYPE)
        total = tl.dot(a, tl.trans(b), total, input_precision="ieee")
    return total
