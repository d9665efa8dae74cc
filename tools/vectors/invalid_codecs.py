"""Invalid cases of stored tensors and of the base."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from vectors.coding import blob_of, packed
from vectors.drafts import Draft
from vectors.faults import (
    HEX,
    B,
    Invalid,
    Table,
    W,
    bad,
    drop,
    one_matrix,
    plain,
    put,
    ten_bytes,
    ten_words,
)
from vectors.frames import blocks, frame, framed, raw, u32, zstd
from vectors.numbers import Tensor, floats
from vectors.samples import ramp
from vectors.sealing import Fault
from vectors.valid_bundles import same_and_tied
from vectors.valid_exact import exact_empty


def part(name: str, index: int, **changes: Any) -> Callable[[Draft], None]:
    """Changes fields of a stored tensor before it is sealed."""

    def change(draft: Draft) -> None:
        for key, value in changes.items():
            setattr(draft.tensors[name].parts[index], key, value)

    return change


def blob(data: bytes, **changes: Any) -> Fault:
    """Replaces the blob of tensor x."""
    return Fault(draft=part("x", 0, data=data, shape=[len(data)], **changes))


def chunk(*pieces: bytes) -> Fault:
    """Replaces the only chunk of tensor x; its table is right."""
    return blob(blob_of([b"".join(pieces)]))


def plane(data: bytes) -> Fault:
    """Replaces the only plane of tensor x."""
    return chunk(b"\1\1\0\1", data)


def sign_cases() -> Iterator[Invalid]:
    """Faults of sign terms."""
    for name, data in (("row-0", b"\1\x80\1\0"), ("row-1", b"\1\0\1\2")):
        fault = Fault(draft=part("x", 0, data=data))
        yield bad("SIGN-PAD", f"pad-{name}", "an unused bit is set", fault, one_matrix)
    for name, word in (
        ("nan", 0x7FC00000),
        ("infinite", 0x7F800000),
        ("negative", 0xBF800000),
        ("minus-zero", 0x80000000),
    ):
        fault = Fault(draft=part("x", 1, data=u32(word) + u32(0)))
        yield bad("SIGN-SCALE", f"scale-{name}", f"a scale that is {name}", fault, one_matrix)
    half = Fault(draft=part("up.weight", 1, data=b"\0\x7c"))
    yield bad("SIGN-SCALE", "scale-half", "an infinite F16 scale", half)

    def product(draft: Draft) -> None:
        draft.tensors["x"].parts[1].data = u32(0) + u32(0x7F000000)
        draft.tensors["x"].parts[2].data = u32(0) * 8 + u32(0x40000000)

    fault = Fault(draft=product)
    yield bad("SIGN-SCALE", "scale-product", "row times column overflows", fault, one_matrix)
    for name, index, changes, about in (
        ("bytes", 0, {"shape": [2, 3], "data": bytes(6)}, "a byte too many in each row"),
        ("rows", 0, {"shape": [1, 2], "data": bytes(2)}, "a row too few"),
        ("flat", 0, {"shape": [4]}, "signs of one axis"),
        ("bits", 0, {"dtype": "I8"}, "signs of dtype I8"),
        ("row", 1, {"shape": [2]}, "a row scale of one axis"),
        ("column", 2, {"shape": [9, 1]}, "a column scale that stands upright"),
        ("count", 1, {"shape": [1, 1], "data": u32(0)}, "a scale too few"),
        ("bf16", 1, {"dtype": "BF16", "data": bytes(4)}, "a scale of dtype BF16"),
    ):
        fault = Fault(draft=part("x", index, **changes))
        yield bad("SIGN-SHAPE", f"shape-{name}", about, fault, one_matrix)


def coding_cases() -> Iterator[Invalid]:
    """Faults of exact coding down to the modes."""
    ten = raw(bytes(10))
    for name, fault, about, start in (
        ("short", blob(b"\0\0\0"), "a blob shorter than its table", ten_bytes),
        ("sum", blob(b"\0" + u32(2)), "lengths that exceed the blob", ten_bytes),
        ("less", blob(b"\0\0" + u32(1)), "lengths that do not reach the table", ten_bytes),
        ("none", blob(b""), "no blob for ten elements", ten_bytes),
        ("dtype", Fault(draft=part("x", 0, dtype="I8")), "a blob of dtype I8", ten_bytes),
        (
            "axes",
            Fault(draft=part("x", 0, shape=[1, 5], data=b"\0" + u32(1))),
            "two axes",
            ten_bytes,
        ),
        (
            "empty",
            Fault(draft=part("new", 0, shape=[4], data=u32(0))),
            "a blob for nothing",
            exact_empty,
        ),
    ):
        yield bad("EXACT-TABLE", f"table-{name}", about, fault, start)
    for name, fault, about in (
        ("type", chunk(b"\2"), "an unknown chunk type"),
        ("zero", chunk(b"\0\0"), "bytes after an all-zero chunk"),
        ("nothing", chunk(b""), "a chunk of no bytes"),
        ("mode", chunk(b"\1"), "a chunk that ends before its mode"),
        ("split", chunk(b"\1\1\0"), "a chunk that ends inside SPLIT"),
        ("pack", chunk(b"\1\2"), "a chunk that ends before k"),
        ("escapes", chunk(b"\1\2\1", raw(b"\1\0")), "a chunk that ends before the escapes"),
        ("left-over", chunk(b"\1\1\0\1", ten, b"\0"), "a byte left over"),
    ):
        yield bad("EXACT-CHUNK", f"chunk-{name}", about, fault, ten_bytes)
    yield bad("EXACT-MODE", "mode-3", "mode 3", chunk(b"\1\3"), ten_bytes)
    for low, planes in ((8, 1), (0, 0), (1, 0), (0, 2), (7, 2)):
        fault = chunk(bytes([1, 1, low, planes]), packed([0] * 10, low), ten * planes)
        about = f"{low} low bits and {planes} planes for 8 bits"
        yield bad("EXACT-SPLIT", f"split-{low}-{planes}", about, fault, ten_bytes)
    for k in (0, 3, 8):
        fault = chunk(bytes([1, 2, k]), ten)
        yield bad("EXACT-PACK", f"pack-{k}", f"k is {k}", fault, ten_bytes)
    for k, plane_bytes in ((1, b"\0\4"), (2, b"\0\0\x10")):
        fault = chunk(bytes([1, 2, k]), raw(plane_bytes))
        about = "an unused bit of the plane is set"
        yield bad("EXACT-PACK", f"pack-bits-{k}", about, fault, ten_bytes)
    fault = chunk(b"\1\1\3\1", b"\0\0\0\x40", ten)
    yield bad("EXACT-PACK", "pack-low", "an unused bit behind the low bits", fault, ten_bytes)
    fault = Fault(manifest=put("tensors", "x", "coding", "content", HEX))
    yield bad("EXACT-CONTENT", "content-digest", "content of something else", fault, ten_bytes)
    fault = chunk(b"\1\1\0\1", raw(b"\1" * 10))
    yield bad("EXACT-CONTENT", "content-bytes", "other symbols", fault, ten_bytes)
    for name, where, start in (("exact", B, plain), ("terms", W, plain)):
        fault = Fault(manifest=put(*where, "coding", "digest", HEX))
        about = "a digest of something else"
        yield bad("TENSOR-DIGEST", f"tensor-digest-{name}", about, fault, start)


def plane_cases() -> Iterator[Invalid]:
    """Faults of planes and frames."""
    ten = bytes(10)
    for name, data, about in (
        ("word", b"\x0a\0\0", "a plane that ends inside its length"),
        ("raw-short", raw(ten)[:-1], "a raw plane that ends too early"),
        ("raw-less", raw(ten[:9]), "a raw plane of nine bytes for ten symbols"),
        ("raw-more", raw(bytes(11)), "a raw plane of eleven bytes for ten symbols"),
        ("frame-short", zstd(ten)[:-1], "a frame that ends beyond the chunk"),
        ("frame-huge", u32(0x7FFFFFFF), "a frame of 2^31-1 bytes"),
    ):
        yield bad("EXACT-PLANE", f"plane-{name}", about, plane(data), ten_bytes)
    cut = chunk(b"\1\1\3\1", bytes(3))
    yield bad("EXACT-PLANE", "plane-low", "a chunk that ends inside the low bits", cut, ten_bytes)
    single_block = struct.pack("<IBB", 0xFD2FB528, 0, 0) + blocks(ten)
    skippable = struct.pack("<II", 0x184D2A50, 10) + ten
    bad_checksum = struct.pack("<IB", 0xFD2FB528, 0b1010_0100) + u32(10) + blocks(ten) + u32(1)
    reserved = (
        struct.pack("<IB", 0xFD2FB528, 0b1010_0000) + u32(10) + (10 << 3 | 7).to_bytes(3, "little")
    )
    for name, data, about in (
        ("nothing", b"", "a frame of no bytes"),
        ("magic", b"\0" + frame(ten)[1:], "a wrong magic number"),
        ("garbage", frame(ten)[:9] + b"\xff" * 4, "no valid block"),
        ("reserved", reserved + ten, "a block of the reserved type"),
        ("truncated", frame(ten)[:-1], "a frame without its end"),
        ("no-size", single_block, "a frame that does not state its content size"),
        ("size-less", frame(ten[:9]), "content of nine bytes for ten symbols"),
        ("size-lies", frame(ten, size=10)[:9] + blocks(bytes(9)), "a content size that is wrong"),
        (
            "bomb",
            frame(ten)[:9] + (1 | 1 << 1 | 2**17 << 3).to_bytes(3, "little") + b"\0",
            "a block far larger than the content size",
        ),
        ("trailing", frame(ten) + b"\0", "a byte after the frame"),
        ("second", frame(ten) + frame(ten), "a second frame"),
        ("skippable-after", frame(ten) + skippable, "a skippable frame after the frame"),
        ("skippable", skippable, "a skippable frame"),
        ("dictionary", frame(ten, dictionary=b"\1"), "a frame that names a dictionary"),
        ("checksum", bad_checksum, "a wrong content checksum"),
    ):
        yield bad("EXACT-FRAME", f"frame-{name}", about, plane(framed(data)), ten_bytes)


def range_cases() -> Iterator[Invalid]:
    """Values and symbols that are too large."""
    ten = bytes(10)
    high, one = raw(b"\0" * 9 + b"\x20"), raw(b"\1\0")
    for name, fault, about, start in (
        ("high", chunk(b"\1\1\3\1", bytes(4), high), "a symbol of 2^8", ten_bytes),
        ("escape", chunk(b"\1\2\1", one, b"\0\1", raw(b"\xff")), "an escape to 2^8", ten_bytes),
        (
            "escape-split",
            chunk(b"\1\2\1", one, b"\4\1", b"\0", raw(b"\x10")),
            "an escaped value of 2^8",
            ten_bytes,
        ),
        (
            "escape-wide",
            chunk(b"\1\2\1", one, b"\0\10", raw(b"\xff") * 8),
            "an escape to 2^64",
            ten_words,
        ),
        (
            "high-wide",
            chunk(b"\1\1\1\10", bytes(2), raw(ten) * 7, raw(b"\x80" * 10)),
            "a symbol of 2^64",
            ten_words,
        ),
    ):
        yield bad("EXACT-RANGE", f"range-{name}", about, fault, start)


def base_cases() -> Iterator[Invalid]:
    """Bases that are not the one the bundle was made against."""
    values = [4.0, 1.0, 2.0, 3.0]
    wrong = {
        "digest": floats("BF16", [4], [*values[:3], 3.5]),
        "shape": floats("BF16", [1, 4], values),
        "dtype": Tensor(dtype="F16", shape=(4,), data=floats("BF16", [4], values).data),
    }
    for name, value in wrong.items():
        fault = Fault(base=put("up.bias", value))
        yield bad("BASE-TENSOR", f"base-{name}", f"a base tensor of another {name}", fault)
    fault = Fault(base=put("embed", ramp("BF16", [3, 4], 2)))
    yield bad("BASE-TENSOR", "base-same", "another base tensor for `same`", fault, same_and_tied)
    for name, fault, about in (
        ("missing", Fault(base=drop("up.weight")), "no base tensor"),
        ("truncated", Fault(base_file=lambda data: data[:-1]), "a truncated base file"),
        ("garbage", Fault(base_file=lambda data: b"no base"), "a base that is no safetensors file"),
    ):
        yield bad("BASE-TENSOR", f"base-{name}", about, fault)


CASES: Final[tuple[Table, ...]] = (
    sign_cases,
    coding_cases,
    plane_cases,
    range_cases,
    base_cases,
)
