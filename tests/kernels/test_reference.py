"""The numpy twins against torch and plain Python integers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onebitfmt.kernels import reference
from onebitfmt.kernels.reference import BF16, F16, F32

Array = NDArray[Any]
Planes = tuple[Array, Array, Array]
TORCH = {BF16: torch.bfloat16, F16: torch.float16, F32: torch.float32}
QUIET = {BF16: (0x7FC0, 0xFFC0), F16: (0x7E00, 0xFE00), F32: (0x7FC00000, 0xFFC00000)}


def to_torch(bits: Array, dtype: int) -> torch.Tensor:
    signed = bits.view(np.int32 if dtype == F32 else np.int16)
    return torch.from_numpy(signed.copy()).view(TORCH[dtype])


def from_torch(tensor: torch.Tensor) -> Array:
    single = tensor.dtype == torch.float32
    values: Array = tensor.numpy() if single else tensor.view(torch.int16).numpy()
    bits: Array = values.view(np.uint32 if single else np.uint16)
    return bits


def spread(bits: Array) -> Array:
    """Each float32 pattern with its neighbours, of either sign."""
    near = np.concatenate([bits - np.uint32(1), bits, bits + np.uint32(1)])
    values: Array = np.concatenate([near, near ^ np.uint32(1 << 31)]).view(np.float32)
    return values


def halfway_to_next(dtype: int) -> Array:
    """float32 patterns halfway between a non-negative finite value of the type and the next."""
    finite = np.arange(0x7F80 if dtype == BF16 else 0x7C00, dtype=np.uint16)
    if dtype == BF16:
        ties: Array = (finite.astype(np.uint32) << 16) | np.uint32(0x8000)
        return ties
    values = finite.view(np.float16).astype(np.float64)
    middle = (values + np.append(values[1:], 65536.0)) / 2
    middles: Array = middle.astype(np.float32)
    return middles.view(np.uint32)


CASES = {
    "ties of bfloat16": spread(halfway_to_next(BF16)),
    "ties of half": spread(halfway_to_next(F16)),
    "random": np.random.default_rng(0).integers(0, 1 << 32, 300_000, np.uint32).view(np.float32),
    "subnormal": np.random.default_rng(1).integers(1, 1 << 23, 5000, np.uint32).view(np.float32),
    "half's subnormal": np.random.default_rng(2).uniform(-1e-4, 1e-4, 50_000).astype(np.float32),
    "edges": np.array(
        [0.0, -0.0, math.inf, -math.inf, 65504, 65519.996, 65520, 3.3895314e38, 3.4028235e38],
        np.float32,
    ),
}


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_widening_all_patterns(dtype: int) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    found, wanted = reference.widen(bits, dtype), to_torch(bits, dtype).float().numpy()
    nan = np.isnan(wanted)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found[~nan].view(np.uint32), wanted[~nan].view(np.uint32))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_narrowing(dtype: int, case: str) -> None:
    values = CASES[case]
    found, wanted = (
        reference.narrow(values, dtype),
        from_torch(torch.from_numpy(values.copy()).to(TORCH[dtype])),
    )
    number = ~np.isnan(values)
    np.testing.assert_array_equal(found[number], wanted[number])


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_narrowed_nan_is_quiet_and_keeps_its_sign(dtype: int) -> None:
    mantissas = np.array([1, 0x3FFFFF, 0x400000, 0x400001, 0x7FFFFF], np.uint32)
    nans = (mantissas | np.uint32(0x7F800000)).view(np.float32)
    assert set(reference.narrow(nans, dtype).tolist()) == {QUIET[dtype][0]}
    negative = (nans.view(np.uint32) | np.uint32(1 << 31)).view(np.float32)
    assert set(reference.narrow(negative, dtype).tolist()) == {QUIET[dtype][1]}


def signed_sizes(planes: Planes) -> list[torch.Tensor]:
    """Each plane's task vector, by way of torch."""
    terms = []
    for bits, rows, columns in zip(*planes, strict=True):
        plus = np.unpackbits(bits, axis=1, bitorder="little", count=columns.size) == 1
        size = torch.from_numpy(rows)[:, None] * torch.from_numpy(columns)[None, :]
        terms.append(torch.where(torch.from_numpy(plus), size, -size))
    return terms


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtypes", tuple(product((BF16, F16, F32), repeat=2)))
def test_rebuilding(
    dtypes: tuple[int, int],
    count: int,
    make_pair: Callable[..., tuple[Array, Array]],
    make_planes: Callable[..., Planes],
) -> None:
    base, _ = make_pair(1, (5, 203), dtypes)
    planes = make_planes(2, count, (5, 203))
    first, *others = signed_sizes(planes)
    for term in others:
        first = first + term
    np.testing.assert_array_equal(reference.task_vector_rows(planes), first.numpy())
    wanted = from_torch((to_torch(base, dtypes[0]).float() + first).to(TORCH[dtypes[1]]))
    np.testing.assert_array_equal(reference.rebuild_rows(base, dtypes, planes), wanted)


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("dtypes", [(BF16, BF16), (F16, F32), (F32, BF16)])
def test_sign_pass(
    dtypes: tuple[int, int],
    count: int,
    make_pair: Callable[..., tuple[Array, Array]],
    make_planes: Callable[..., Planes],
) -> None:
    base, expert = make_pair(3, (4, 77), dtypes)
    planes = make_planes(4, count, (4, 77))
    weights = np.linspace(0.5, 2.0, 77, dtype=np.float32)
    delta = to_torch(expert, dtypes[1]).float() - to_torch(base, dtypes[0]).float()
    for term in signed_sizes(planes):
        delta = delta - term
    d = delta.numpy()
    bits, sums, columns = reference.sign_pass(base, expert, dtypes, planes, weights, 0, False)
    np.testing.assert_array_equal(bits, np.packbits(~(d < 0), axis=1, bitorder="little"))
    size = np.abs(d).astype(np.float64)
    for i in range(4):
        # Four sizes are added in float32 before float64 takes over.
        assert sums[i, 0] == pytest.approx(math.fsum(size[i] * weights), rel=3 * 2.0**-24)
        assert sums[i, 1] == pytest.approx(math.fsum(size[i] ** 2), rel=3 * 2.0**-24)
        assert sums[i, 2] == (d[i] == 0).sum()
    np.testing.assert_allclose(columns, size.sum(axis=0), rtol=1e-13)


def test_splitmix64_gives_its_published_numbers() -> None:
    found = [reference.splitmix64(i) for i in range(4)]
    wanted = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert found == wanted


@pytest.mark.parametrize("first_row", [0, 3])
@pytest.mark.parametrize("width", [5, 64, 130])
def test_balanced_zeros_are_signed_by_the_hash_of_their_word(width: int, first_row: int) -> None:
    zeros = np.zeros((3, width), np.uint16)
    planes = (
        np.empty((0, 3, -(-width // 8)), np.uint8),
        np.empty((0, 3), np.float32),
        np.empty((0, width), np.float32),
    )
    nothing = np.empty(0, np.float32)
    pair = (zeros, zeros)
    bits, _, _ = reference.sign_pass(*pair, (BF16, BF16), planes, nothing, first_row, True)
    words = -(-width // 64)
    for i in range(3):
        row = b"".join(
            reference.splitmix64((first_row + i) * words + k).to_bytes(8, "little")
            for k in range(words)
        )
        number = int.from_bytes(row, "little") & ((1 << width) - 1)
        assert bits[i].tobytes() == number.to_bytes(bits.shape[1], "little")


def symbol(e: int, p: int, width: int, is_float: bool) -> int:
    """Spec 6.2 in integers without bounds."""
    top, full = 1 << (width - 1), (1 << width) - 1

    def order(u: int) -> int:
        if not is_float:
            return u
        return ~u & full if u & top else u | top

    d = (order(e) - order(p)) & full
    return ((d << 1) ^ (full if d & top else 0)) & full


@pytest.mark.parametrize(
    ("kind", "key", "is_float"),
    [
        (np.uint8, (0, 0), False),
        (np.uint16, (7, 255), True),
        (np.uint16, (10, 31), True),
        (np.uint16, (0, 0), False),
        (np.uint32, (23, 255), True),
        (np.uint64, (52, 2047), True),
        (np.uint64, (0, 0), False),
    ],
)
def test_symbols(kind: Any, key: tuple[int, int], is_float: bool) -> None:
    rng = np.random.default_rng(9)
    top = np.iinfo(kind).max
    values, prediction = (rng.integers(0, top, 400, kind, endpoint=True) for _ in range(2))
    values[:3], prediction[:3] = [0, top, top >> 1], [top, 0, (top >> 1) + 1]
    width = 8 * values.itemsize
    keys = [(p >> key[0]) & key[1] for p in prediction.tolist()]
    order = sorted(range(400), key=keys.__getitem__)
    pairs = list(zip(values.tolist(), prediction.tolist(), strict=True))
    wanted = [symbol(*pairs[i], width, is_float) for i in order]
    assert reference.to_symbols(values, prediction, key, is_float).tolist() == wanted
    counts = reference.count_keys(prediction, *key)
    assert counts.tolist() == [keys.count(k) for k in range(key[1] + 1)]
