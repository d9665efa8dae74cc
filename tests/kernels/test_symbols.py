"""The kernels of the exact coding agree with their twins and with plain Python."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onebitfmt.kernels import reference, symbols

Array = NDArray[Any]

# The field that symbols are grouped by, of BF16, F16, F32, F64 and integers.
KEYS = {
    "BF16": (np.uint16, (7, 255), True),
    "F16": (np.uint16, (10, 31), True),
    "F32": (np.uint32, (23, 255), True),
    "F64": (np.uint64, (52, 2047), True),
    "U8": (np.uint8, (0, 0), False),
    "U16": (np.uint16, (0, 0), False),
    "U32": (np.uint32, (0, 0), False),
    "U64": (np.uint64, (0, 0), False),
}


def random_bits(seed: int, kind: Any, count: int) -> Array:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, np.iinfo(kind).max, count, dtype=kind, endpoint=True)
    bits[:4] = [0, np.iinfo(kind).max, np.iinfo(kind).max >> 1, (np.iinfo(kind).max >> 1) + 1]
    return bits


@pytest.mark.parametrize("name", KEYS)
def test_symbols_equal_their_twin_and_are_undone(name: str) -> None:
    kind, key, is_float = KEYS[name]
    values, prediction = random_bits(1, kind, 3000), random_bits(2, kind, 3000)
    prediction[100:200] = values[100:200]
    prediction[200:204] = prediction[3::-1]
    counts = symbols.count_keys(prediction, *key)
    np.testing.assert_array_equal(counts, reference.count_keys(prediction, *key))
    starts = np.cumsum(counts) - counts
    coded, back = np.empty_like(values), np.empty_like(values)
    symbols.to_symbols(values, prediction, key, is_float, starts, coded)
    wanted = reference.to_symbols(values, prediction, key, is_float)
    np.testing.assert_array_equal(coded, wanted)
    symbols.from_symbols(coded, prediction, key, is_float, starts, back)
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("width", range(1, 8))
def test_bits_packed_and_unpacked(width: int, kind: Any) -> None:
    for size in (1, 2, 7, 8, 9, 1001):
        values = np.random.default_rng(size).integers(0, 1 << width, size).astype(kind)
        packed = np.full(-(-size * width // 8), 0xFF, np.uint8)
        symbols.pack_bits(values, width, packed)
        number = sum(v << (i * width) for i, v in enumerate(values.tolist()))
        assert packed.tobytes() == number.to_bytes(packed.size, "little")
        back = np.empty_like(values)
        symbols.unpack_bits(packed, width, back)
        np.testing.assert_array_equal(back, values)


def heap_huffman_bits(counts: list[int]) -> int:
    heap = list(counts)
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        weight = heapq.heappop(heap) + heapq.heappop(heap)
        total += weight
        heapq.heappush(heap, weight)
    return total


FIBONACCI = [1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987]


@pytest.mark.parametrize(
    "counts",
    [
        [1],
        [5],
        [1, 1],
        [1] * 256,
        [2, 2, 2, 3, 3],
        FIBONACCI,
        *(np.random.default_rng(n).integers(1, 5000, n).tolist() for n in (2, 3, 7, 100, 256)),
        *(np.random.default_rng(n).geometric(0.2, n).tolist() for n in (17, 255)),
    ],
    ids=lambda counts: f"{len(counts)}",
)
def test_huffman_bits(counts: list[int]) -> None:
    found = symbols.huffman_bits(np.array(sorted(counts), np.int64))
    assert found == heap_huffman_bits(counts)
