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
I1, _I16, _I32, I64 = ir.IntType(1), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F32, _F64 = ir.FloatType(), ir.DoubleType()
FLOATS = ir.VectorType(F32, LANES)
INTS = ir.VectorType(_I32, LANES)
_SUMS = ir.VectorType(_F64, SUM_LANES)


def instruction(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that generates LLVM code callable from kernels."""
    # What numba calls has a typing context as its first parameter; what kernels call has not.
    return cast(Callable[..., Any], intrinsic(function))


def load(builder: Any, address: Any, kind: Any = FLOATS, align: int = 4) -> Any:
    """Code that loads a vector from an address."""
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = align
    return value


def store(builder: Any, value: Any, address: Any, align: int = 4) -> None:
    """Code that stores a value at an address."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = align


def _slice(builder: Any, value: Any, part: int) -> Any:
    lanes = ir.Constant(
        ir.VectorType(_I32, SUM_LANES), [part * SUM_LANES + k for k in range(SUM_LANES)]
    )
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), lanes)


@instruction
def load_word(_: Any, address: Any) -> Any:
    """The uint64 at an address of any alignment, least significant byte first."""
    return types.uint64(types.intp), lambda c, b, s, args: load(b, args[0], I64, 1)


@instruction
def store_word(_: Any, address: Any, word: Any) -> Any:
    """Store a uint64 at an address of any alignment, least significant byte first."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        store(builder, args[1], args[0], 1)
        return context.get_dummy_value()

    return types.void(types.intp, types.uint64), generate


def _add_up(builder: Any, values: Any, address: Any) -> None:
    """Add 64 floats to the 16 sums at an address: four by four in float32, then in float64."""
    a, b, c, d = (_slice(builder, values, k) for k in range(4))
    four = builder.fadd(builder.fadd(a, b), builder.fadd(c, d))
    total = builder.fadd(load(builder, address, _SUMS, 8), builder.fpext(four, _SUMS))
    store(builder, total, address, 8)


def _absolute(builder: Any, value: Any) -> Any:
    bits = builder.and_(builder.bitcast(value, INTS), ir.Constant(INTS, [0x7FFFFFFF] * LANES))
    return builder.bitcast(bits, FLOATS)


@instruction
def add_sums(_: Any, values: Any, weights: Any, sums: Any) -> Any:
    """Add w*|x| and x*x of 64 float32 to 16 float64 sums each; all w are 1 at address 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = load(builder, args[0])
        _sum_sizes(builder, value, args[1], args[2])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


def _sum_sizes(builder: Any, value: Any, weights: Any, sums: Any) -> None:
    size = _absolute(builder, value)
    squares = builder.add(sums, ir.Constant(I64, 8 * SUM_LANES))
    _add_up(builder, builder.fmul(size, size), squares)
    plain = builder.icmp_unsigned("==", weights, ir.Constant(I64, 0))
    with builder.if_else(plain) as (unweighted, weighted):
        with unweighted:
            _add_up(builder, size, sums)
        with weighted:
            _add_up(builder, builder.fmul(load(builder, weights), size), sums)


def _mask(builder: Any, operator: str, value: Any) -> Any:
    zero = ir.Constant(FLOATS, [0.0] * LANES)
    return builder.bitcast(builder.fcmp_ordered(operator, value, zero), I64)


@instruction
def bfloat_step(
    _: Any, base: Any, expert: Any, delta: Any, weights: Any, sums: Any, masks: Any
) -> Any:
    """64 weights in one go: delta = expert - base of BF16 bit patterns, `add_sums` of it, and two
    uint64 masks of it: greater than zero, and zero. At address 0, delta is not stored.
    """

    def widened(builder: Any, address: Any) -> Any:
        bits = builder.zext(load(builder, address, ir.VectorType(_I16, LANES), 1), INTS)
        return builder.bitcast(builder.shl(bits, ir.Constant(INTS, [16] * LANES)), FLOATS)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.fsub(widened(builder, args[1]), widened(builder, args[0]))
        wanted = builder.icmp_unsigned("!=", args[2], ir.Constant(I64, 0))
        with builder.if_then(wanted):
            store(builder, value, args[2])
        _sum_sizes(builder, value, args[3], args[4])
        store(builder, _mask(builder, ">", value), args[5], 8)
        zero = builder.add(args[5], ir.Constant(I64, 8))
        store(builder, _mask(builder, "==", value), zero, 8)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


@instruction
def bits_of_float(_: Any, x: Any) -> Any:
    """The bit pattern of a float32, as uint32."""
    return types.uint32(types.float32), lambda c, b, s, args: b.bitcast(args[0], _I32)


@instruction
def float_of_bits(_: Any, x: Any) -> Any:
    """The float32 of a bit pattern."""
    return types.float32(types.uint32), lambda c, b, s, args: b.bitcast(args[0], F32)


@instruction
def popcount(_: Any, x: Any) -> Any:
    """The number of ones in a uint64."""
    return types.int64(types.uint64), lambda c, b, s, args: b.ctpop(args[0])


def _compare(operator: str) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _mask(builder, operator, load(builder, args[0]))

    return types.uint64(types.intp), generate


@instruction
def positive_mask(_: Any, address: Any) -> Any:
    """Bit i is one where the i-th of 64 float32 at `address` is greater than zero."""
    return _compare(">")


@instruction
def zero_mask(_: Any, address: Any) -> Any:
    """Bit i is one where the i-th of 64 float32 at `address` is zero."""
    return _compare("==")


@instruction
def add_signed(_: Any, target: Any, magnitudes: Any, mask: Any) -> Any:
    """target[i] += magnitudes[i] where bit i of the mask is one, else -=; 64 float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, size = load(builder, args[0]), load(builder, args[1])
        mask = builder.bitcast(args[2], ir.VectorType(I1, LANES))
        result = builder.select(mask, builder.fadd(value, size), builder.fsub(value, size))
        store(builder, result, args[0])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.uint64), generate
