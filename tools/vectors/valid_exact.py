"""Valid cases of the exact coding. A case fills a draft; its docstring is what it is about."""

from __future__ import annotations

import itertools
from typing import Final

from vectors.coding import CHUNK, pack, split, zero
from vectors.drafts import Case, Draft
from vectors.frames import FROZEN_PLANES, Coder, framed, frozen, raw, windowed, zstd
from vectors.numbers import (
    DTYPES,
    FLOATS,
    INTEGERS,
    Tensor,
    convert,
    floats,
    from_float,
    noise,
    skewed,
    specials,
    tensor,
)
from vectors.samples import nudged, ramp


def exact_floats(d: Draft) -> None:
    """Every special value of every mapped float dtype, against other special values."""
    for dtype in FLOATS:
        values = specials(dtype)
        base = tensor(dtype, [len(values)], values[5:] + values[:5])
        d.exact(dtype, tensor(dtype, [len(values)], values), base)


def exact_integers(d: Draft) -> None:
    """Every dtype that is coded by plain difference, at the ends of its range."""
    for dtype in INTEGERS:
        top = 2 ** (8 * DTYPES[dtype][0] - 1)
        values = [0, 1, top - 1, top, 2 * top - 1, 5] if dtype != "BOOL" else [0, 1, 1, 0, 1, 0]
        d.exact(dtype, tensor(dtype, [2, 3], values), tensor(dtype, [2, 3], values[::-1]))


def exact_without_base(d: Draft) -> None:
    """New tensors: the prediction is the all-zero bit pattern."""
    for dtype in DTYPES:
        values = specials(dtype)[:9] if dtype in FLOATS else [0, 1, 0, 1, 1, 1, 0, 0, 1]
        d.exact(dtype, tensor(dtype, [3, 3], values))


def exact_empty(d: Draft) -> None:
    """Tensors without elements: nothing is stored."""
    d.exact("new", tensor("F32", [0], []))
    d.exact("wide", tensor("BF16", [0, 7, 0], []))
    d.exact("cut", tensor("BF16", [3, 0], []), ramp("BF16", [3, 4]))
    d.exact("grown", floats("BF16", [2], [1.0, 2.0]), tensor("BF16", [0], []))
    d.same("same", tensor("F32", [2, 0], []))


def exact_scalar(d: Draft) -> None:
    """Tensors of shape []: one element."""
    d.exact("with", floats("F32", [], [1.5]), floats("F32", [], [1.25]))
    d.exact("without", tensor("I64", [], [7]))


def exact_shapes(d: Draft) -> None:
    """Bases that are cropped, extended, and both."""
    for name, shape in (("cropped", [3, 2]), ("extended", [5, 6]), ("both", [6, 2])):
        d.exact(name, ramp("BF16", shape, 9), ramp("BF16", [4, 4], 8))
    d.exact("deep", ramp("F16", [2, 1, 3], 9), ramp("BF16", [1, 3, 2], 8))
    d.exact("bytes", tensor("U8", [5], [1, 2, 3, 4, 5]), tensor("U8", [3], [1, 2, 4]))


def exact_dtype_change(d: Draft) -> None:
    """Predictions converted between F32, F16 and BF16, specials and ties included."""
    for source, target in itertools.permutations(("F32", "F16", "BF16"), 2):
        bits = specials(source) + [from_float(v, source) for v in (1e-6, 65519, 3e-8, 2.0**-25)]
        if source == "F32":
            bits += [0x3F808000, 0x3F818000, 0x3F801000, 0x3F803000, 0x477FF000, 0x7F7FFFFF]
        base = tensor(source, [len(bits)], bits)
        d.exact(f"{source}.{target}", ramp(target, [len(bits)]), base)


def exact_narrow(d: Draft) -> None:
    """Values that fit a narrower dtype and are coded as that, against bases of every dtype."""
    for dtype, coded in (("F32", "BF16"), ("F32", "F16"), ("F16", "BF16")):
        small = [convert(b, "BF16", "F16") for b in ramp("BF16", [12], 4).bits()]
        values = [convert(bits, "F16", dtype) for bits in small]
        for source in ("F32", "F16", "BF16"):
            base = ramp(source, [12], 6)
            d.exact(f"{dtype}.{coded}.{source}", tensor(dtype, [12], values), base, coded=coded)
        d.exact(f"{dtype}.{coded}.new", tensor(dtype, [12], values), coded=coded)


def exact_modes(d: Draft) -> None:
    """Zero, split with and without packed low bits, pack with and without escapes."""
    base = ramp("BF16", [60], 3)
    bits = tensor("I16", [60], noise(60, 700))
    d.exact("zero.chunk", base, base, modes=[[]])
    d.exact("zero.group", base, base, modes=[[zero]])
    d.exact("split.0", bits, modes=[[split()]])
    d.exact("split.spare", bits, modes=[[split(0, 2)]])
    for low in range(1, 8):
        d.exact(f"split.{low}", bits, modes=[[split(low)]])
    d.exact("split.low", tensor("U8", [9], [0, 1, 2, 3, 0, 1, 2, 3, 2]), modes=[[split(3)]])
    for k in (1, 2, 4):
        few = [-(n // 2) - 1 if n % 2 else n // 2 for n in noise(60, 2**k - 1, k)]
        d.exact(f"pack.{k}.plain", tensor("I16", [60], [n % 2**16 for n in few]), modes=[[pack(k)]])
        d.exact(f"pack.{k}.escapes", bits, modes=[[pack(k, raw, 3)]])


def exact_wide(d: Draft) -> None:
    """64-bit symbols in seven packed bits and eight planes, the largest escape included."""
    values = [*noise(9, 2**31), 2**63, 2**63 - 1, 2**64 - 1, 0]
    d.exact("split", tensor("U64", [13], values), modes=[[split(7, 8)]])
    d.exact("pack", tensor("U64", [13], values), modes=[[pack(4, raw, 1)]])
    d.exact("bytes", tensor("U8", [4], [0, 127, 128, 255]), modes=[[split(7, 1)]])


def exact_frames(d: Draft) -> None:
    """zstd frames: raw and RLE blocks, a window descriptor, Huffman, sequences, a checksum."""
    d.exact("raw", tensor("U8", [300], noise(300, 256)), modes=[[split(0, 0, [zstd])]])
    d.exact("rle", tensor("U8", [300], [9] * 300), modes=[[split(0, 0, [zstd])]])
    window: Coder = lambda plane: framed(windowed(plane))  # noqa: E731
    d.exact("window", tensor("U8", [30], noise(30, 256)), modes=[[split(0, 0, [window])]])
    for name, values in FROZEN_PLANES.items():
        stored = tensor("U8", [len(values)], [n >> 1 ^ -(n & 1) & 255 for n in values])
        d.exact(name, stored, modes=[[split(0, 0, [frozen(name)])]])
    both = tensor("U16", [40], noise(40, 5000))
    d.exact("both", both, modes=[[split(3, 0, [raw, zstd])]])
    d.exact("packed", both, modes=[[pack(2, zstd, 2, [zstd, raw])]])


def exact_groups(d: Draft) -> None:
    """Groups by the exponent of the prediction: small ones merged, the rest joins the last."""
    plans = {
        "three": ((1e-3, 60), (0.75, 1300), (1.5, 900), (3.0, 2100), (100.0, 2048), (1e3, 10)),
        "edge": ((0.75, 2047), (1.5, 3), (3.0, 2047)),
    }
    for name, sizes in plans.items():
        values = [value for value, count in sizes for _ in range(count)]
        order = sorted(range(len(values)), key=noise(len(values), 2**31).__getitem__)
        base = floats("BF16", [len(values)], [values[i] * (1 - 2 * (i % 2)) for i in order])
        steps = [n * (values[i] != 3.0) for i, n in zip(order, skewed(len(order)), strict=True)]
        modes = [[pack(4), zero, split(2)]] if name == "three" else [[pack(2)]]
        d.exact(name, nudged(base, steps), base, modes=modes)


def exact_chunks(d: Draft) -> None:
    """A tensor of two chunks: 2^20 elements, nearly all zero, and five more."""
    values = bytearray(CHUNK + 5)
    values[77], values[CHUNK - 1] = 1, 200
    values[CHUNK:] = b"\1\2\3\4\5"
    whole = Tensor(dtype="U8", shape=(CHUNK + 5,), data=bytes(values))
    d.exact("x", whole, modes=[[pack(1, zstd)], [split()]])


CASES: Final[tuple[Case, ...]] = (
    exact_floats,
    exact_integers,
    exact_without_base,
    exact_empty,
    exact_scalar,
    exact_shapes,
    exact_dtype_change,
    exact_narrow,
    exact_modes,
    exact_wide,
    exact_frames,
    exact_groups,
    exact_chunks,
)
