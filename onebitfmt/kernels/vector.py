"""The few vector instructions that a plain numba loop does not turn into: masks of 64 lanes.

Portable LLVM vectors of fixed width; LLVM lowers them to AVX-512, AVX2, SSE or NEON. Addresses
are plain integers, loads and stores need no alignment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 64
# Partial sums of a row; lane l takes the columns j with j % 16 == l.
SUM_LANES = 16
_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_F32, _F64 = ir.FloatType(), ir.DoubleType()
_FLOATS = ir.VectorType(_F32, LANES)
_SUMS = ir.VectorType(_F64, SUM_LANES)


def _instruction(function: Callable[..., Any]) -> Callable[..., Any]:
    # What numba calls has a typing context as its first parameter; what kernels call has not.
    return cast(Callable[..., Any], intrinsic(function))


def _load(builder: Any, address: Any, kind: Any = _FLOATS, align: int = 4) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = align
    return value


def _store(builder: Any, value: Any, address: Any, align: int = 4) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = align


def _slice(builder: Any, value: Any, part: int) -> Any:
    lanes = ir.Constant(
        ir.VectorType(_I32, SUM_LANES), [part * SUM_LANES + k for k in range(SUM_LANES)]
    )
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), lanes)


@_instruction
def load_word(_: Any, address: Any) -> Any:
    """The uint64 at an address of any alignment, least significant byte first."""
    return types.uint64(types.intp), lambda c, b, s, args: _load(b, args[0], _I64, 1)


@_instruction
def store_word(_: Any, address: Any, word: Any) -> Any:
    """Store a uint64 at an address of any alignment, least significant byte first."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _store(builder, args[1], args[0], 1)
        return context.get_dummy_value()

    return types.void(types.intp, types.uint64), generate


def _sum_parts(builder: Any, values: Any, address: Any) -> None:
    """Add 64 doubles, 16 at a time and in order, to the 16 sums at an address."""
    total = _load(builder, address, _SUMS, 8)
    for value in values:
        total = builder.fadd(total, value)
    _store(builder, total, address, 8)


def _absolute(builder: Any, value: Any) -> Any:
    kind = ir.VectorType(_I32, LANES)
    bits = builder.and_(builder.bitcast(value, kind), ir.Constant(kind, [0x7FFFFFFF] * LANES))
    return builder.bitcast(bits, _FLOATS)


@_instruction
def add_absolute(_: Any, values: Any, sums: Any, squares: Any) -> Any:
    """Add |x| and x*x of 64 float32 to 16 float64 sums each."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size = _absolute(builder, _load(builder, args[0]))
        parts = [builder.fpext(_slice(builder, size, k), _SUMS) for k in range(4)]
        _sum_parts(builder, parts, args[1])
        _sum_parts(builder, [builder.fmul(x, x) for x in parts], args[2])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@_instruction
def add_weighted(_: Any, values: Any, weights: Any, sums: Any, squares: Any) -> Any:
    """Add w*|x| and x*x of 64 float32 x and w to 16 float64 sums each."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size = _absolute(builder, _load(builder, args[0]))
        weight = _load(builder, args[1])
        parts = [builder.fpext(_slice(builder, size, k), _SUMS) for k in range(4)]
        factors = [builder.fpext(_slice(builder, weight, k), _SUMS) for k in range(4)]
        products = [builder.fmul(w, x) for w, x in zip(factors, parts, strict=True)]
        _sum_parts(builder, products, args[2])
        _sum_parts(builder, [builder.fmul(x, x) for x in parts], args[3])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), generate


@_instruction
def bits_of_float(_: Any, x: Any) -> Any:
    """The bit pattern of a float32, as uint32."""
    return types.uint32(types.float32), lambda c, b, s, args: b.bitcast(args[0], _I32)


@_instruction
def float_of_bits(_: Any, x: Any) -> Any:
    """The float32 of a bit pattern."""
    return types.float32(types.uint32), lambda c, b, s, args: b.bitcast(args[0], _F32)


@_instruction
def popcount(_: Any, x: Any) -> Any:
    """The number of ones in a uint64."""
    return types.int64(types.uint64), lambda c, b, s, args: b.ctpop(args[0])


def _compare(operator: str) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = ir.Constant(_FLOATS, [0.0] * LANES)
        mask = builder.fcmp_ordered(operator, _load(builder, args[0]), zero)
        return builder.bitcast(mask, _I64)

    return types.uint64(types.intp), generate


@_instruction
def positive_mask(_: Any, address: Any) -> Any:
    """Bit i is one where the i-th of 64 float32 at `address` is greater than zero."""
    return _compare(">")


@_instruction
def zero_mask(_: Any, address: Any) -> Any:
    """Bit i is one where the i-th of 64 float32 at `address` is zero."""
    return _compare("==")


@_instruction
def add_signed(_: Any, target: Any, magnitudes: Any, mask: Any) -> Any:
    """target[i] += magnitudes[i] where bit i of the mask is one, else -=; 64 float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, size = _load(builder, args[0]), _load(builder, args[1])
        mask = builder.bitcast(args[2], ir.VectorType(_I1, LANES))
        result = builder.select(mask, builder.fadd(value, size), builder.fsub(value, size))
        _store(builder, result, args[0])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.uint64), generate
