from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from numpy.typing import NDArray

from onebitfmt.codecs import exact
from onebitfmt.codecs.exact import CHUNK, Predictor
from onebitfmt.errors import FormatError
from onebitfmt.format.dtypes import DTYPES
from onebitfmt.parallel import Workers

Array = NDArray[Any]
ToTorch = Callable[[Array, str], torch.Tensor]
ToBits = Callable[[torch.Tensor], Array]
TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# (exponent bits, mantissa bits) of the types whose symbols are grouped.
FLOATS = {"F64": (11, 52), "F32": (8, 23), "F16": (5, 10), "BF16": (8, 7)}
WORDS = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


def word(dtype: str) -> Any:
    return WORDS[DTYPES[dtype].bits]


def random_bits(seed: int, dtype: str, count: int) -> Array:
    rng = np.random.default_rng(seed)
    kind = word(dtype)
    return rng.integers(0, np.iinfo(kind).max, count, kind, endpoint=True)


# --- the specification, by the letter and slowly -------------------------------------------------


class SlowDecoder:
    """Spec 6.2 for one valid chunk; `modes` tells (mode, parameter, escapes) of each group."""

    def __init__(self, data: bytes, prediction: Array, dtype: str) -> None:
        self.data, self.dtype = data, dtype
        self.width = DTYPES[dtype].bits
        self.prediction: list[int] = prediction.tolist()
        self.modes: list[tuple[int, int, int]] = []
        self.position = 0

    def take(self, size: int) -> bytes:
        self.position += size
        assert self.position <= len(self.data)
        return self.data[self.position - size : self.position]

    def plane(self, size: int) -> bytes:
        (v,) = struct.unpack("<I", self.take(4))
        content = self.take(v & 0x7FFFFFFF)
        if v >> 31:
            assert len(content) == size
            return content
        assert zstandard.frame_content_size(content) == size
        return zstandard.ZstdDecompressor().decompress(content)

    def fields(self, data: bytes, count: int, width: int) -> list[int]:
        number, mask = int.from_bytes(data, "little"), (1 << width) - 1
        assert number >> (count * width) == 0
        digits = format(number, f"0{count * width}b")
        at = len(digits)
        return [int(digits[at - (i + 1) * width : at - i * width], 2) & mask for i in range(count)]

    def split(self, count: int) -> tuple[int, list[int]]:
        shift, planes = self.take(2)
        values = [0] * count
        if shift:
            values = self.fields(self.take(-(-count * shift // 8)), count, shift)
        for k in range(planes):
            plane = self.plane(count)
            values = [v | b << (shift + 8 * k) for v, b in zip(values, plane, strict=True)]
        return shift, values

    def group(self, count: int) -> list[int]:
        mode = self.take(1)[0]
        if mode == 0:
            self.modes.append((0, 0, 0))
            return [0] * count
        if mode == 1:
            shift, values = self.split(count)
            self.modes.append((1, shift, 0))
            return values
        width = self.take(1)[0]
        top = (1 << width) - 1
        values = self.fields(self.plane(-(-count * width // 8)), count, width)
        escaped = values.count(top)
        more = iter(self.split(escaped)[1] if escaped else [])
        self.modes.append((mode, width, escaped))
        return [v + next(more) if v == top else v for v in values]

    def groups(self) -> Iterator[list[int]]:
        """Indices of the elements of each group."""
        exponent, mantissa = FLOATS.get(self.dtype, (0, 0))
        keys = [p >> mantissa & ((1 << exponent) - 1) for p in self.prediction]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        cuts, size = [0], 0
        for i, e in enumerate(order):
            size += 1
            last = i + 1 == len(order) or keys[order[i + 1]] != keys[e]
            if last and size >= 2048:
                cuts.append(i + 1)
                size = 0
        if len(cuts) > 1:
            cuts.pop()
        return (order[a:b] for a, b in pairwise([*cuts, len(order)]))

    def value(self, symbol: int, prediction: int) -> int:
        top, full = 1 << (self.width - 1), (1 << self.width) - 1
        d = symbol >> 1 ^ (full if symbol & 1 else 0)
        if self.dtype not in FLOATS:
            return (prediction + d) & full
        mapped = ~prediction & full if prediction & top else prediction | top
        mapped = (mapped + d) & full
        return mapped ^ top if mapped & top else ~mapped & full

    def decode(self) -> list[int]:
        result = list(self.prediction)
        if self.take(1) == b"\1":
            for group in self.groups():
                for i, symbol in zip(group, self.group(len(group)), strict=True):
                    result[i] = self.value(symbol, self.prediction[i])
        assert self.position == len(self.data)
        return result


def modes_of(values: Array, prediction: Array, dtype: str) -> list[tuple[int, int, int]]:
    """Codes a chunk, checks it both ways, and gives the modes of its groups."""
    data = exact.encode_chunk(values, prediction, dtype)
    slow = SlowDecoder(data, prediction, dtype)
    assert slow.decode() == values.tolist()
    np.testing.assert_array_equal(exact.decode_chunk(data, prediction, dtype, "here"), values)
    return slow.modes


# --- round trips ---------------------------------------------------------------------------------


def special(dtype: str) -> Array:
    """Zeros, ones, edges of the sign, and of floats infinities, NaN with payload, subnormals."""
    width = DTYPES[dtype].bits
    top = 1 << (width - 1)
    found = [0, 1, top - 1, top, top + 1, 2 * top - 1]
    if dtype in FLOATS:
        mantissa = FLOATS[dtype][1]
        infinity = top - (1 << mantissa)
        found += [infinity, infinity + 1, infinity + (1 << (mantissa - 1)) + 5, 3, 1 << mantissa]
        found += [u | top for u in found[-5:]]
    return np.array(found, word(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 2047, 2048, 2049, 4097])
def test_random_bits(size: int, dtype: str) -> None:
    modes_of(random_bits(1, dtype, size), random_bits(2, dtype, size), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_special_value_from_every_other(dtype: str) -> None:
    found = special(dtype)
    prediction, values = (side.reshape(-1) for side in np.meshgrid(found, found))
    modes_of(values.copy(), prediction.copy(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("changed", [0.001, 0.05, 0.5])
def test_sparse_and_dense_changes(changed: float, dtype: str) -> None:
    rng = np.random.default_rng(3)
    prediction = random_bits(4, dtype, 6000)
    near = rng.integers(0, 5, 6000).astype(word(dtype))
    modes_of(np.where(rng.random(6000) < changed, prediction ^ near, prediction), prediction, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_identical_chunks_take_one_byte(dtype: str) -> None:
    bits = np.concatenate([special(dtype), random_bits(5, dtype, 3000)])
    assert exact.encode_chunk(bits, bits.copy(), dtype) == b"\0"
    found = exact.decode_chunk(b"\0", bits, dtype, "here")
    np.testing.assert_array_equal(found, bits)
    assert not np.shares_memory(found, bits)


@pytest.mark.parametrize("dtype", ["I64", "I32", "I16", "U8"])
def test_small_integers_without_a_base(dtype: str) -> None:
    signed = np.random.default_rng(6).integers(0, 90, 5000)
    values = (signed if dtype == "U8" else signed - 45).astype(word(dtype))
    zeros = np.zeros_like(values)
    modes_of(values, zeros, dtype)
    assert len(exact.encode_chunk(values, zeros, dtype)) < 5000


def blob_of(values: Array, predictor: Predictor, workers: Workers) -> bytes:
    def encode(first: int) -> bytes:
        stop = min(first + CHUNK, values.size)
        block = predictor.block(first, stop)
        return exact.encode_chunk(values[first:stop], block, predictor.coded)

    chunks = list(workers.map(encode, range(0, values.size, CHUNK)))
    return b"".join(chunks) + exact.encode_table([len(chunk) for chunk in chunks])


def near_bits(seed: int, size: int) -> tuple[Array, Array]:
    """BF16 weights and a fine-tuned copy."""
    rng = np.random.default_rng(seed)
    base = (rng.normal(0, 0.02, size).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return base, base ^ (rng.random(size, np.float32) < 0.2).astype(np.uint16)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_blobs_of_chunks(size: int, workers: Workers) -> None:
    base, values = near_bits(7, size)
    predictor = Predictor(base=base, dtype="BF16", shape=(size,), coded="BF16")
    blob = blob_of(values, predictor, workers)
    sizes = [CHUNK] * (size // CHUNK) + ([size % CHUNK] if size % CHUNK else [])
    spans = exact.chunk_spans(blob, size, "here")
    assert len(spans) == len(sizes)
    assert struct.unpack_from(f"<{len(spans)}I", blob, len(blob) - 4 * len(spans)) == tuple(
        end - begin for begin, end in spans
    )
    first = 0
    for (begin, end), count in zip(spans, sizes, strict=True):
        prediction = base[first : first + count]
        found = exact.decode_chunk(blob[begin:end], prediction, "BF16", "here")
        np.testing.assert_array_equal(found, values[first : first + count])
        first += count


def test_threads_do_not_matter() -> None:
    base, values = near_bits(8, 5 * CHUNK // 2)
    predictor = Predictor(base=base, dtype="BF16", shape=base.shape, coded="BF16")
    blobs = []
    for jobs in (1, 2, 3):
        with Workers(jobs) as workers:
            blobs.append(blob_of(values, predictor, workers))
    assert blobs[0] == blobs[1] == blobs[2]


@pytest.mark.parametrize("offset", [0, 1, 5])
def test_predictions_read_only_and_anywhere_in_memory(offset: int) -> None:
    base, values = near_bits(9, 3000)
    data = b"\0" * offset + base.tobytes()
    moved = np.frombuffer(data, np.uint16, offset=offset)
    chunk = exact.encode_chunk(values, moved, "BF16")
    assert chunk == exact.encode_chunk(values, base, "BF16")
    np.testing.assert_array_equal(exact.decode_chunk(chunk, moved, "BF16", "here"), values)


# --- modes ---------------------------------------------------------------------------------------


def unzigzag(symbols: Array, dtype: str) -> Array:
    """Values that have these symbols against a prediction of zero; not for floats."""
    return np.array([s >> 1 ^ -(s & 1) for s in symbols.tolist()], f"i{word(dtype)().itemsize}")


def graded() -> Array:
    symbols: Array = np.random.default_rng(1).choice(3, 4000, p=[0.6, 0.3, 0.1])
    return symbols


def drawn(top: int, zeros: float) -> Array:
    rng = np.random.default_rng(top)
    values = rng.integers(1, top, 4000, endpoint=True)
    return np.where(rng.random(4000) < zeros, 0, values)


@pytest.mark.parametrize(
    ("symbols", "wanted"),
    [
        (drawn(255, 0.0), (1, 0, 0)),
        (np.random.default_rng(0).geometric(1 / 1500, 9000) % 30000, (1, 4, 0)),
        (drawn(200, 0.995), (2, 1, None)),
        (graded(), (2, 2, 0)),
        (np.where(np.arange(4000) % 800 == 0, 900, graded()), (2, 2, 5)),
        (drawn(14, 0.5), (2, 4, 0)),
        (np.where(np.arange(4000) % 800 == 0, 15, drawn(14, 0.5)), (2, 4, 5)),
    ],
    ids=[
        "split",
        "split low bits",
        "pack 1",
        "pack 2",
        "pack 2 escapes",
        "pack 4",
        "pack 4 escapes",
    ],
)
def test_modes_are_chosen_by_the_data(symbols: Array, wanted: tuple[int, int, int | None]) -> None:
    values = unzigzag(symbols, "I16").view(np.uint16)
    [(mode, parameter, escapes)] = modes_of(values, np.zeros_like(values), "I16")
    assert mode == wanted[0]
    assert (parameter > 0) == (wanted[1] > 0) if mode == 1 else parameter == wanted[1]
    assert escapes > 0 if wanted[2] is None else escapes == wanted[2]


def test_groups_without_change_are_zero() -> None:
    exponents = np.repeat(np.array([100, 101, 102, 103], np.uint16), 2100) << 7
    prediction = np.random.default_rng(1).permutation(exponents)
    changed = (prediction >> 7) == 101
    values = np.where(changed, prediction + random_bits(3, "BF16", 8400) % 64, prediction)
    modes = [mode for mode, _, _ in modes_of(values.astype(np.uint16), prediction, "BF16")]
    assert modes[0] == modes[2] == modes[3] == 0
    assert modes[1] != 0


@pytest.mark.parametrize(
    ("counts", "groups"),
    [
        ([1], 1),
        ([2047], 1),
        ([2047, 1], 1),
        ([2047, 1, 1], 1),
        ([2048, 2047], 1),
        ([2048, 2048], 2),
        ([2048, 1, 2047, 5], 2),
        ([1000, 1000, 1000, 1000, 1000, 1000], 2),
        ([5000, 10, 5000, 10], 2),
    ],
)
def test_exponents_are_grouped_until_there_are_2048(counts: list[int], groups: int) -> None:
    exponents = np.repeat(np.arange(90, 90 + len(counts), dtype=np.uint16), counts) << 7
    prediction = np.random.default_rng(2).permutation(exponents)
    values = prediction ^ (random_bits(4, "BF16", prediction.size) & np.uint16(0x7F))
    assert len(modes_of(values, prediction, "BF16")) == groups


def conditional_entropy(values: Array, prediction: Array) -> float:
    """Bits a weight of the zigzagged difference, given the exponent of a BF16 prediction."""
    sides = []
    for u in (values, prediction):
        wide = u.astype(np.int64)
        sides.append(np.where(wide >> 15, 0xFFFF - wide, wide + 0x8000))
    d = sides[0] - sides[1]
    key = (prediction >> 7).astype(np.int64) & 0xFF
    _, joint = np.unique(key * (1 << 20) + d + (1 << 18), return_counts=True)
    _, alone = np.unique(key, return_counts=True)
    bits = -float((joint * np.log2(joint)).sum() - (alone * np.log2(alone)).sum())
    return bits / values.size


@pytest.mark.parametrize("change", [1e-4, 5e-4, 2e-3])
def test_size_is_close_to_the_entropy(change: float, to_bits: ToBits) -> None:
    dice = torch.Generator().manual_seed(5)
    base = (torch.randn(CHUNK, generator=dice) * 0.02).bfloat16()
    expert = (base.float() + torch.randn(CHUNK, generator=dice) * change).bfloat16()
    values, prediction = to_bits(expert), to_bits(base)
    data = exact.encode_chunk(values, prediction, "BF16")
    entropy = conditional_entropy(values, prediction)
    assert 0.999 * entropy <= 8 * len(data) / CHUNK <= 1.04 * entropy
    np.testing.assert_array_equal(exact.decode_chunk(data, prediction, "BF16", "here"), values)


# --- prediction ----------------------------------------------------------------------------------


SHAPES = [
    ((7,), (7,)),
    ((7,), (4,)),
    ((7,), (11,)),
    ((7,), (0,)),
    ((), ()),
    ((5, 6), (3, 6)),
    ((5, 6), (9, 6)),
    ((5, 6), (5, 8)),
    ((5, 6), (8, 4)),
    ((5, 6), (2, 9)),
    ((5, 6), (0, 6)),
    ((4, 3, 5), (4, 3, 5)),
    ((4, 3, 5), (6, 2, 7)),
    ((4, 3, 5), (2, 5, 3)),
]


@pytest.mark.parametrize(
    ("source", "coded"),
    [
        ("BF16", "BF16"),
        ("F32", "BF16"),
        ("BF16", "F32"),
        ("F16", "F32"),
        ("F32", "F16"),
        ("I32",) * 2,
    ],
)
@pytest.mark.parametrize(("shape", "base_shape"), SHAPES)
def test_prediction_is_the_base_cropped_and_extended(
    shape: tuple[int, ...],
    base_shape: tuple[int, ...],
    source: str,
    coded: str,
    to_torch: ToTorch,
    to_bits: ToBits,
) -> None:
    if source in TORCH:
        dice = torch.Generator().manual_seed(1)
        values = (torch.randn(base_shape, generator=dice) * 3).to(TORCH[source])
        base, converted = to_bits(values), to_bits(values.to(TORCH[coded]))
    else:
        base = converted = random_bits(1, source, math.prod(base_shape)).reshape(base_shape)
    wanted = np.zeros(shape, word(coded))
    common = tuple(slice(min(a, b)) for a, b in zip(shape, base_shape, strict=True))
    wanted[common] = converted[common]
    predictor = Predictor(base=base, dtype=source, shape=shape, coded=coded)
    n = wanted.size
    for first in range(n):
        for stop in range(first + 1, n + 1):
            found = predictor.block(first, stop)
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted.reshape(-1)[first:stop])


@pytest.mark.parametrize("coded", DTYPES)
def test_without_a_base_zero_is_predicted(coded: str) -> None:
    predictor = Predictor(base=None, dtype=coded, shape=(3, 4), coded=coded)
    found = predictor.block(2, 9)
    assert (found.dtype, found.tolist()) == (np.dtype(word(coded)), [0] * 7)


# --- narrowing -----------------------------------------------------------------------------------


def wide(source: str, values: torch.Tensor, to_bits: ToBits) -> Array:
    return to_bits(values.to(TORCH[source]))


@pytest.mark.parametrize("size", [1, 4096, 4097, CHUNK + 3])
@pytest.mark.parametrize(
    ("source", "target"), [("F32", "BF16"), ("F32", "F16"), ("F16", "BF16"), ("F32", "F32")]
)
def test_narrowest_type_that_holds_every_value(
    source: str, target: str, size: int, to_bits: ToBits
) -> None:
    dice = torch.Generator().manual_seed(2)
    values = (torch.randn(size, generator=dice) + 3).to(TORCH[target])
    # More mantissa bits than the next narrower type has.
    values[0] = {"BF16": 1.0078125, "F16": 1.0009765625, "F32": 1.0000001}[target]
    assert exact.narrowed_dtype(wide(source, values, to_bits), source) == target


@pytest.mark.parametrize(
    ("source", "values", "target"),
    [
        ("F32", [0.0, -0.0, 1.0], "BF16"),
        ("F32", [2.0**-24, 3 * 2.0**-24, 1.0009765625], "F16"),
        ("F32", [2.0**-25, 1.0009765625], "F32"),
        ("F32", [65536.0, 1.0009765625], "F32"),
        ("F32", [3.3895314e38], "BF16"),
        ("F32", [3.4028235e38], "F32"),
        ("F32", [1e-45], "F32"),
        ("F32", [2.0**-133], "BF16"),
        ("F16", [2.0**-24, 65280.0], "BF16"),
        ("F16", [65504.0], "F16"),
        ("F32", [math.inf], "F32"),
        ("F32", [-math.inf, 1.0], "F32"),
        ("F32", [math.nan], "F32"),
        ("F16", [math.nan], "F16"),
        ("F16", [math.inf], "F16"),
        ("BF16", [1.0], "BF16"),
    ],
)
def test_edges_of_narrowing(source: str, values: list[float], target: str, to_bits: ToBits) -> None:
    bits = wide(source, torch.tensor(values, dtype=torch.float64), to_bits)
    assert exact.narrowed_dtype(bits, source) == target


@pytest.mark.parametrize("dtype", sorted(set(DTYPES) - {"F32", "F16"}))
def test_other_types_are_not_narrowed(dtype: str) -> None:
    assert exact.narrowed_dtype(np.zeros(10, word(dtype)), dtype) == dtype


@pytest.mark.parametrize("place", [4095, 4096, 9999, CHUNK - 1, CHUNK, CHUNK + 9])
@pytest.mark.parametrize("odd", [1.0000001, math.nan, math.inf])
def test_a_single_late_value_prevents_narrowing(odd: float, place: int) -> None:
    values = np.ones(CHUNK + 10, np.float32)
    values[place] = odd
    assert exact.narrowed_dtype(values.view(np.uint32), "F32") == "F32"


# --- malformed chunks ----------------------------------------------------------------------------


def raw(content: bytes) -> bytes:
    return struct.pack("<I", len(content) | 1 << 31) + content


def framed(frame: bytes) -> bytes:
    return struct.pack("<I", len(frame)) + frame


def compressed(content: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(content)


def with_dictionary(content: bytes) -> bytes:
    samples: list[bytes | bytearray | memoryview] = [
        bytes([i % 7, i % 5, 3, 1]) * 20 for i in range(500)
    ]
    words = zstandard.train_dictionary(1024, samples, dict_id=7)
    return compressed(content, dict_data=words)


FOUR = b"\5\6\7\x08"
SKIPPABLE = b"\x50\x2a\x4d\x18\2\0\0\0ab"
NO_SIZE = compressed(FOUR, write_content_size=False)
CHECKED = compressed(FOUR, write_checksum=True)


def restated(content: bytes, size: int) -> bytes:
    """A frame that states another content size than it has."""
    frame = bytearray(compressed(content))
    assert frame[4:6] == bytes([0x20, len(content)])
    frame[5] = size
    return bytes(frame)


def split(shift: int, count: int, rest: bytes = b"") -> bytes:
    return bytes([1, 1, shift, count]) + rest


def packed(width: int, rest: bytes = b"") -> bytes:
    return bytes([1, 2, width]) + rest


MALFORMED = {
    "nothing": (b"", "CHUNK"),
    "unknown type": (b"\2", "CHUNK"),
    "type 255": (b"\xff\0", "CHUNK"),
    "bytes behind zero": (b"\0\0", "CHUNK"),
    "no mode": (b"\1", "CHUNK"),
    "mode 3": (b"\1\3", "MODE"),
    "mode 255": (b"\1\xff", "MODE"),
    "bytes behind a zero group": (b"\1\0\0", "CHUNK"),
    "no shift": (b"\1\1", "CHUNK"),
    "no count": (b"\1\1\0", "CHUNK"),
    "shift 8": (split(8, 1, raw(FOUR)), "SPLIT"),
    "no planes": (split(0, 0), "SPLIT"),
    "no planes above low bits": (split(3, 0, b"\0\0"), "SPLIT"),
    "three planes of 16 bits": (split(0, 3, raw(FOUR) * 3), "SPLIT"),
    "one low bit and three planes": (split(1, 3, b"\0" + raw(FOUR) * 3), "SPLIT"),
    "255 planes": (split(7, 255), "SPLIT"),
    "no low bits": (split(3, 1), "PLANE"),
    "low bits cut": (split(3, 1, b"\0"), "PLANE"),
    "unused low bit": (split(3, 1, b"\0\x10" + raw(FOUR)), "PACK"),
    "highest unused low bit": (split(3, 1, b"\0\x80" + raw(FOUR)), "PACK"),
    "plane missing": (split(0, 1), "PLANE"),
    "second plane missing": (split(0, 2, raw(FOUR)), "PLANE"),
    "plane's size cut": (split(0, 1, raw(FOUR)[:3]), "PLANE"),
    "raw plane too short": (split(0, 1, raw(FOUR[:3])), "PLANE"),
    "raw plane too long": (split(0, 1, raw(FOUR + b"\0")), "PLANE"),
    "raw plane cut": (split(0, 1, raw(FOUR)[:-1]), "PLANE"),
    "raw plane of 2^31-1 bytes": (split(0, 1, b"\xff\xff\xff\xff" + FOUR), "PLANE"),
    "frame longer than the chunk": (split(0, 1, b"\xff\xff\xff\x7f" + FOUR), "PLANE"),
    "bytes left over": (split(0, 1, raw(FOUR) + b"\0"), "CHUNK"),
    "no frame": (split(0, 1, framed(b"")), "FRAME"),
    "frame of three bytes": (split(0, 1, framed(b"\x28\xb5\x2f")), "FRAME"),
    "magic alone": (split(0, 1, framed(b"\x28\xb5\x2f\xfd")), "FRAME"),
    "not a frame": (split(0, 1, framed(b"abcdefgh")), "FRAME"),
    "frame cut": (split(0, 1, framed(compressed(FOUR)[:-1])), "FRAME"),
    "frame of 3 bytes": (split(0, 1, framed(compressed(FOUR[:3]))), "FRAME"),
    "frame of 5 bytes": (split(0, 1, framed(compressed(FOUR + b"\0"))), "FRAME"),
    "frame of 3 bytes that states 4": (split(0, 1, framed(restated(FOUR[:3], 4))), "FRAME"),
    "frame of 5 bytes that states 4": (split(0, 1, framed(restated(FOUR + b"5", 4))), "FRAME"),
    "frame of none": (split(0, 1, framed(compressed(b""))), "FRAME"),
    "frame without content size": (split(0, 1, framed(NO_SIZE)), "FRAME"),
    "frame with a dictionary": (split(0, 1, framed(with_dictionary(FOUR))), "FRAME"),
    "byte behind the frame": (split(0, 1, framed(compressed(FOUR) + b"\0")), "FRAME"),
    "second frame": (split(0, 1, framed(compressed(FOUR) * 2)), "FRAME"),
    "empty second frame": (split(0, 1, framed(compressed(FOUR) + compressed(b""))), "FRAME"),
    "skippable frame behind": (split(0, 1, framed(compressed(FOUR) + SKIPPABLE)), "FRAME"),
    "skippable frame before": (split(0, 1, framed(SKIPPABLE + compressed(FOUR))), "FRAME"),
    "skippable frame alone": (split(0, 1, framed(SKIPPABLE)), "FRAME"),
    "wrong checksum": (split(0, 1, framed(CHECKED[:-1] + b"\0")), "FRAME"),
    "bit 16": (split(7, 2, b"\0" * 4 + raw(FOUR) + raw(b"\0\0\0\2")), "RANGE"),
    "bit 22": (split(7, 2, b"\0" * 4 + raw(FOUR) + raw(b"\0\0\0\x80")), "RANGE"),
    "no width": (b"\1\2", "CHUNK"),
    "width 0": (packed(0, raw(b"")), "PACK"),
    "width 3": (packed(3, raw(b"\0\0")), "PACK"),
    "width 8": (packed(8, raw(FOUR)), "PACK"),
    "packed plane missing": (packed(1), "PLANE"),
    "packed plane too long": (packed(1, raw(b"\0\0")), "PLANE"),
    "packed frame of wrong size": (packed(4, framed(compressed(b"\0\0\0"))), "FRAME"),
    "unused packed bit": (packed(1, raw(b"\x10")), "PACK"),
    "escapes missing": (packed(2, raw(b"\x03")), "CHUNK"),
    "escapes without an escape": (packed(2, raw(b"\x02") + b"\0\1" + raw(b"\0")), "CHUNK"),
    "too few escapes": (packed(2, raw(b"\x0f") + b"\0\1" + raw(b"\0")), "PLANE"),
    "escape of 2^16": (packed(4, raw(b"\x0f\0") + b"\0\2" + raw(b"\xf1") + raw(b"\xff")), "RANGE"),
    "largest escape": (packed(1, raw(b"\1") + b"\0\2" + raw(b"\xff") * 2), "RANGE"),
    "escape split": (packed(1, raw(b"\1") + b"\0\3"), "SPLIT"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_chunks_of_four_weights(name: str) -> None:
    data, id = MALFORMED[name]
    with pytest.raises(FormatError, match=r"^w: .* \[OBD-EXACT-") as error:
        exact.decode_chunk(data, np.zeros(4, np.uint16), "U16", "w")
    assert error.value.id == f"OBD-EXACT-{id}"


WELL_FORMED = {
    "coded zeros": (b"\1\0", [0, 0, 0, 0]),
    "raw": (split(0, 1, raw(FOUR)), [5, 6, 7, 8]),
    "frame": (split(0, 1, framed(compressed(FOUR))), [5, 6, 7, 8]),
    "frame with checksum": (split(0, 1, framed(CHECKED)), [5, 6, 7, 8]),
    "two planes": (split(0, 2, raw(FOUR) + raw(b"\0\1\0\xff")), [5, 0x106, 7, 0xFF08]),
    "low bits": (split(3, 1, b"\x8a\x0e" + raw(b"\0\1\0\2")), [2, 9, 2, 23]),
    "bit 15": (split(7, 2, b"\0" * 4 + raw(b"\0" * 4) + raw(b"\0\0\0\1")), [0, 0, 0, 0x8000]),
    "pack 1": (packed(1, raw(b"\x05") + b"\0\1" + raw(b"\0\x09")), [1, 0, 10, 0]),
    "pack 2": (packed(2, raw(b"\x86")), [2, 1, 0, 2]),
    "pack 4": (packed(4, raw(b"\x21\x0e")), [1, 2, 14, 0]),
    "highest escape": (
        packed(4, raw(b"\x0f\0") + b"\0\2" + raw(b"\xf0") + raw(b"\xff")),
        [0xFFFF, 0, 0, 0],
    ),
}


@pytest.mark.parametrize("name", WELL_FORMED)
def test_chunks_written_by_hand(name: str) -> None:
    data, symbols = WELL_FORMED[name]
    wanted = unzigzag(np.array(symbols), "U16").view(np.uint16)
    for buffer in (data, memoryview(data)):
        found = exact.decode_chunk(buffer, np.zeros(4, np.uint16), "U16", "w")
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", ["U8", "BOOL", "F8_E4M3"])
def test_eight_bits_have_their_own_limits(dtype: str) -> None:
    zeros = np.zeros(4, np.uint8)
    for data, id in (
        (split(0, 2, raw(FOUR) * 2), "OBD-EXACT-SPLIT"),
        (split(7, 1, b"\0" * 4 + raw(b"\0\2\0\0")), "OBD-EXACT-RANGE"),
        (packed(4, raw(b"\x0f\0") + b"\0\1" + raw(b"\xf1")), "OBD-EXACT-RANGE"),
    ):
        with pytest.raises(FormatError) as error:
            exact.decode_chunk(data, zeros, dtype, "w")
        assert error.value.id == id
    data = split(7, 1, b"\0" * 4 + raw(b"\0\1\0\0"))
    assert exact.decode_chunk(data, zeros, dtype, "w").tolist() == [0, 64, 0, 0]


@pytest.mark.parametrize(
    ("blob", "elements"),
    [
        (b"", 1),
        (b"\0\0\0", 1),
        (b"\0", 0),
        (b"\0" + struct.pack("<I", 0), 5),
        (b"\0" + struct.pack("<I", 2), 5),
        (b"\0" + struct.pack("<I", 2**32 - 1), 5),
        (b"\0\0" + struct.pack("<I", 1), 5),
        (b"\0" + struct.pack("<I", 1), CHUNK + 1),
        (b"\0\0" + struct.pack("<2I", 1, 2), CHUNK + 1),
        (struct.pack("<I", 4), 2**50),
    ],
)
def test_tables_that_do_not_fit_their_blob(blob: bytes, elements: int) -> None:
    with pytest.raises(FormatError, match=r"^w: .* \[OBD-EXACT-TABLE\]$"):
        exact.chunk_spans(blob, elements, "w")


def test_spans_follow_the_table() -> None:
    blob = b"abcdefgh" + struct.pack("<3I", 3, 0, 5)
    assert exact.chunk_spans(blob, 2 * CHUNK + 1, "w") == [(0, 3), (3, 3), (3, 8)]


def fuzzed_cases() -> dict[str, tuple[Array, Array, str]]:
    rng = np.random.default_rng(20)
    base, near = near_bits(21, 4200)
    escapes = np.where(rng.random(900) < 0.1, rng.integers(3, 900, 900), rng.integers(0, 2, 900))
    wide_bits = random_bits(22, "F32", 150)
    mixed = np.where(rng.random(4200) < 0.5, near, base ^ rng.integers(0, 200, 4200, np.uint16))
    return {
        "sparse": (near, base, "BF16"),
        "mixed": (mixed.astype(np.uint16), base, "BF16"),
        "escapes": (escapes.astype(np.uint16), np.zeros(900, np.uint16), "I16"),
        "wide": (wide_bits ^ rng.integers(0, 1 << 21, 150, np.uint32), wide_bits, "F32"),
        "small": (random_bits(23, "U8", 300), np.zeros(300, np.uint8), "U8"),
    }


FUZZED = fuzzed_cases()


@pytest.mark.parametrize("case", FUZZED)
def test_chunks_cut_anywhere_are_refused(case: str) -> None:
    values, prediction, dtype = FUZZED[case]
    data = exact.encode_chunk(values, prediction, dtype)
    for length in range(len(data)):
        with pytest.raises(FormatError, match=r"\[OBD-EXACT-(CHUNK|PLANE)\]$"):
            exact.decode_chunk(data[:length], prediction, dtype, "w")


def outcome(data: bytes, prediction: Array, dtype: str) -> str:
    """The id of the refusal, or nothing; any other exception fails the test that called."""
    try:
        found = exact.decode_chunk(data, prediction, dtype, "w")
    except FormatError as error:
        return error.id
    assert (found.shape, found.dtype) == (prediction.shape, prediction.dtype)
    return ""


@pytest.mark.parametrize("case", FUZZED)
def test_chunks_with_a_byte_changed_decode_or_are_refused(case: str) -> None:
    values, prediction, dtype = FUZZED[case]
    data = exact.encode_chunk(values, prediction, dtype)
    dice = random.Random(case)
    seen = set()
    for at in range(len(data)):
        for byte in (data[at] ^ 1 << dice.randrange(8), dice.randrange(256)):
            seen.add(outcome(data[:at] + bytes([byte]) + data[at + 1 :], prediction, dtype))
    assert "OBD-EXACT-CHUNK" in seen
    assert "OBD-EXACT-MODE" in seen


@pytest.mark.parametrize("case", FUZZED)
def test_chunks_with_pieces_moved_decode_or_are_refused(case: str) -> None:
    values, prediction, dtype = FUZZED[case]
    data = exact.encode_chunk(values, prediction, dtype)
    dice = random.Random(case)
    for _ in range(400):
        a, b = sorted(dice.choices(range(len(data) + 1), k=2))
        noise = dice.randbytes(dice.randrange(6))
        outcome(dice.choice([data[:a] + noise + data[b:], data[:b] + data[a:]]), prediction, dtype)
    for length in range(60):
        outcome(b"\1" + dice.randbytes(length), prediction, dtype)
