"""The kernels for devices equal the CPU's bit for bit.

The tests take the module that the environment names: `test_gpu` runs them again on `gpu`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from onebitfmt.errors import UsageError
from onebitfmt.kernels import reference, torch_reference
from onebitfmt.kernels.elementwise import Elementwise

Array = NDArray[Any]
Planes = tuple[Array, Array, Array]
MakePlanes = Callable[..., Planes]

NAME = os.environ.get("ONEBITFMT_TEST_KERNELS", "torch_reference")
KERNELS = import_module(f"onebitfmt.kernels.{NAME}")
DEVICE = os.environ.get("ONEBITFMT_TEST_DEVICE", "cpu")

TYPES = (torch.bfloat16, torch.float16, torch.float32)
TYPE_PAIRS = tuple(product(TYPES, repeat=2))
WIDTHS = (1, 8, 13, 1030)
HEIGHT = 3
RULES = (
    Elementwise(weights=(1.0, 0.7, 0.3)),
    Elementwise(weights=(1.0, 0.7, 0.3), divisor=2.0, scale=0.3, select=1),
    Elementwise(weights=(1.0, 0.7, 0.3), elect=True, scale=1.1),
    Elementwise(weights=(1.0, 1.0, 1.0), elect=True, select=0, scale=0.4),
    Elementwise(weights=(1.0, 0.7, 0.3), elect=True, shares=(1.0, 0.7, 0.3), select=2),
)


def make_base(width: int, dtype: torch.dtype = torch.bfloat16, height: int = HEIGHT) -> Tensor:
    values = np.random.default_rng(width).normal(0, 0.02, (height, width))
    values[:, ::5] = -0.0
    return torch.from_numpy(values).to(dtype).to(DEVICE)


def on_device(*arrays: Array) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(a).to(DEVICE) for a in arrays)


def bits(tensor: Tensor) -> Array:
    size = tensor.element_size()
    whole = tensor.contiguous().view(torch.int32 if size == 4 else torch.int16)
    return whole.cpu().numpy().view(np.uint32 if size == 4 else np.uint16)


def add(base: Tensor, vector: Array, dtype: torch.dtype) -> Array:
    """Bit patterns of base + vector, by the numpy twins of the CPU kernels."""
    value = reference.widen(bits(base), TYPES.index(base.dtype)) + vector
    return reference.narrow(value, TYPES.index(dtype))


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("width", WIDTHS)
def test_unpack_add(width: int, count: int, make_planes: MakePlanes) -> None:
    base, planes = make_base(width), make_planes(count, count, (HEIGHT, width))
    found = KERNELS.unpack_add(base, *on_device(*planes))
    assert found.dtype == base.dtype
    wanted = add(base, reference.task_vector_rows(planes), base.dtype)
    np.testing.assert_array_equal(bits(found), wanted)


@pytest.mark.parametrize("size", [1e-42, 0.002, 6e4])
@pytest.mark.parametrize("dtypes", TYPE_PAIRS)
def test_unpack_add_of_every_pair_of_types(
    dtypes: tuple[torch.dtype, torch.dtype], size: float, make_planes: MakePlanes
) -> None:
    base, planes = make_base(100, dtypes[0]), make_planes(2, 2, (HEIGHT, 100), size)
    found = KERNELS.unpack_add(base, *on_device(*planes), dtype=dtypes[1])
    assert found.dtype == dtypes[1]
    wanted = add(base, reference.task_vector_rows(planes), dtypes[1])
    np.testing.assert_array_equal(bits(found), wanted)


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("width", WIDTHS)
def test_lookup_add(width: int, count: int, make_planes: MakePlanes) -> None:
    base = make_base(width)
    packed = make_planes(count, count, (HEIGHT, width))[0]
    table = np.random.default_rng(count).normal(0, 0.003, 1 << count).astype(np.float32)
    found = KERNELS.lookup_add(base, *on_device(packed, table))
    signs = np.unpackbits(packed, axis=2, bitorder="little")[:, :, :width]
    pattern = sum(signs[k].astype(np.int64) << k for k in range(count))
    np.testing.assert_array_equal(bits(found), add(base, table[pattern], base.dtype))


@pytest.mark.parametrize("dtypes", TYPE_PAIRS)
def test_lookup_add_of_every_pair_of_types(
    dtypes: tuple[torch.dtype, torch.dtype], make_planes: MakePlanes
) -> None:
    base, packed = make_base(100, dtypes[0]), make_planes(1, 1, (HEIGHT, 100))[0]
    table = np.array([-0.001, 0.002], np.float32)
    found = KERNELS.lookup_add(base, *on_device(packed, table), dtype=dtypes[1])
    signs = np.unpackbits(packed[0], axis=1, bitorder="little")[:, :100]
    np.testing.assert_array_equal(bits(found), add(base, table[signs], dtypes[1]))


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 0, 3)])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("width", [13, 1030])
def test_merge_add(
    width: int, rule: Elementwise, counts: tuple[int, ...], make_planes: MakePlanes
) -> None:
    base = make_base(width)
    experts = [make_planes(7 + k, n, (HEIGHT, width)) for k, n in enumerate(counts)]
    found = KERNELS.merge_add(base, [on_device(*e) for e in experts], rule)
    vectors = np.stack([reference.task_vector_rows(e) for e in experts])
    np.testing.assert_array_equal(bits(found), add(base, rule.apply(vectors), base.dtype))


def test_merge_add_where_votes_cancel_out(make_planes: MakePlanes) -> None:
    base, one = make_base(100), make_planes(1, 1, (HEIGHT, 100))
    experts = [one, (make_planes(2, 1, (HEIGHT, 100))[0], one[1], one[2])]
    for select in (None, 0):
        rule = Elementwise(weights=(1.0, 1.0), elect=True, select=select)
        found = KERNELS.merge_add(base, [on_device(*e) for e in experts], rule)
        vectors = np.stack([reference.task_vector_rows(e) for e in experts])
        np.testing.assert_array_equal(bits(found), add(base, rule.apply(vectors), base.dtype))


def test_merge_add_of_a_selected_expert_alone(make_planes: MakePlanes) -> None:
    base, planes = make_base(20), make_planes(1, 1, (HEIGHT, 20))
    rule = Elementwise(weights=(1.0,), select=0, elect=True)
    found = KERNELS.merge_add(base, [on_device(*planes)], rule)
    assert torch.equal(found, KERNELS.unpack_add(base, *on_device(*planes)))


def test_results_go_to_memory_that_is_given(make_planes: MakePlanes) -> None:
    base, planes = make_base(40, height=6), on_device(*make_planes(1, 1, (6, 40)))
    wanted = KERNELS.unpack_add(base, *planes)
    apart = torch.empty(12, 40, dtype=base.dtype, device=DEVICE)[::2]
    assert KERNELS.unpack_add(base, *planes, out=apart) is apart
    assert torch.equal(apart, wanted)
    assert KERNELS.unpack_add(base, *planes, out=base) is base
    assert torch.equal(base, wanted)


def test_inputs_that_lie_apart_in_memory(make_planes: MakePlanes) -> None:
    wide, planes = make_base(80, height=6), on_device(*make_planes(1, 2, (6, 40)))
    wanted = KERNELS.unpack_add(wide[:, ::2].contiguous(), *planes)
    spread = torch.stack([planes[0], planes[0]], dim=-1)[..., 0]
    assert torch.equal(KERNELS.unpack_add(wide[:, ::2], spread, *planes[1:]), wanted)


def test_blocks_of_rows_join_to_the_whole(
    make_planes: MakePlanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, planes = make_base(40, height=7), on_device(*make_planes(1, 2, (7, 40)))
    rule = Elementwise(weights=(1.0, 1.0), elect=True)
    whole = KERNELS.merge_add(base, [planes, planes], rule)
    monkeypatch.setattr(torch_reference, "_BLOCK", 80)
    assert torch.equal(KERNELS.merge_add(base, [planes, planes], rule), whole)


# --- the side path -------------------------------------------------------------------------------

SIDE_SHAPES = ((1, 5, 7, 2, 1), (20, 70, 130, 3, 2))


def make_side(
    shape: tuple[int, ...], dtype: torch.dtype, make_planes: MakePlanes
) -> tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor]:
    tokens, height, width, experts, planes = shape
    torch.manual_seed(tokens)
    x = torch.randn(tokens, width).to(dtype).to(DEVICE)
    weight = (torch.randn(height, width) * 0.02).to(dtype).to(DEVICE)
    made = [make_planes(k, planes, (height, width)) for k in range(experts)]
    stacked = on_device(*(np.stack([e[part] for e in made]) for part in range(3)))
    return x, weight, stacked, torch.randint(-1, experts, (tokens,)).to(DEVICE)


def dense_side(x: Tensor, weight: Tensor, planes: tuple[Tensor, ...], shares: Tensor) -> Tensor:
    """The side path in float64 with task vectors made in full; shares [tokens, experts] of each."""
    total = x.double() @ weight.double().T
    for e in range(shares.shape[1]):
        one = tuple(p[e].cpu().numpy() for p in planes)
        delta = torch.from_numpy(reference.task_vector_rows((one[0], one[1], one[2])))
        total += shares[:, e : e + 1].double() * (x.double() @ delta.to(DEVICE).double().T)
    return total


@pytest.mark.parametrize("shape", SIDE_SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_side_path(dtype: torch.dtype, shape: tuple[int, ...], make_planes: MakePlanes) -> None:
    x, weight, planes, expert = make_side(shape, dtype, make_planes)
    places = torch.arange(shape[3], device=DEVICE)
    error = {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float32: 2**-20}[dtype]
    for chosen in (expert, None):
        found = KERNELS.side_path(x, weight, *planes, chosen)
        shares = expert[:, None] == places if chosen is not None else torch.ones_like(places)[None]
        wanted = dense_side(x, weight, planes, shares.expand(shape[0], -1))
        assert (found.dtype, found.shape) == (dtype, wanted.shape)
        torch.testing.assert_close(found.double(), wanted, rtol=error, atol=error)


def test_side_path_of_a_batch_of_sequences(make_planes: MakePlanes) -> None:
    x, weight, planes, expert = make_side((6, 20, 30, 2, 1), torch.float32, make_planes)
    found = KERNELS.side_path(x.reshape(2, 3, 30), weight, *planes, expert.reshape(2, 3))
    assert found.shape == (2, 3, 20)
    assert torch.equal(found.reshape(6, 20), KERNELS.side_path(x, weight, *planes, expert))


def test_a_row_does_not_depend_on_its_neighbours(make_planes: MakePlanes) -> None:
    x, weight, planes, expert = make_side((40, 64, 64, 2, 1), torch.float32, make_planes)
    whole = KERNELS.side_path(x, weight, *planes, expert)
    spoiled = x.clone()
    spoiled[::2] = torch.nan
    found = KERNELS.side_path(spoiled, weight, *planes, expert)
    torch.testing.assert_close(found[1::2], whole[1::2], rtol=1e-6, atol=1e-6)
    assert found[::2].isnan().all()


def test_side_path_of_no_rows(make_planes: MakePlanes) -> None:
    x, weight, planes, expert = make_side((1, 5, 7, 2, 1), torch.float32, make_planes)
    assert KERNELS.side_path(x[:0], weight, *planes, expert[:0]).shape == (0, 5)


# --- what does not fit ---------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(make_planes: MakePlanes) -> None:
    base, planes = make_base(40), on_device(*make_planes(1, 2, (HEIGHT, 40)))
    table = torch.zeros(4, device=DEVICE)
    rule = Elementwise(weights=(1.0,))
    with pytest.raises(UsageError, match="do not fit a matrix"):
        KERNELS.unpack_add(base[1:], *planes)
    with pytest.raises(UsageError, match="float32"):
        KERNELS.unpack_add(base, planes[0], planes[1].double(), planes[2])
    with pytest.raises(UsageError, match="out is"):
        KERNELS.unpack_add(base, *planes, out=base[1:])
    with pytest.raises(UsageError, match="out is"):
        KERNELS.unpack_add(base, *planes, dtype=torch.float32, out=base)
    with pytest.raises(UsageError, match="do not fit a matrix"):
        KERNELS.lookup_add(base, planes[0], table[:2])
    with pytest.raises(UsageError, match="2 experts, but a rule for 1"):
        KERNELS.merge_add(base, [planes, planes], rule)
    with pytest.raises(UsageError, match="selected expert 1 of 1"):
        KERNELS.merge_add(base, [planes], Elementwise(weights=(1.0,), select=1))


def test_side_paths_that_do_not_fit_are_refused(make_planes: MakePlanes) -> None:
    x, weight, planes, expert = make_side((4, 5, 7, 2, 1), torch.float32, make_planes)
    with pytest.raises(UsageError, match=r"do not fit \[5, 7\]"):
        KERNELS.side_path(x[:, 1:], weight, *planes, expert)
    with pytest.raises(UsageError, match="x has rows"):
        KERNELS.side_path(x, weight, *planes, expert[1:])


def test_types_that_are_no_weights_are_refused(make_planes: MakePlanes) -> None:
    base, planes = make_base(40).double(), on_device(*make_planes(1, 1, (HEIGHT, 40)))
    with pytest.raises(UsageError, match=r"torch\.float64"):
        KERNELS.unpack_add(base, *planes)
    with pytest.raises(UsageError, match=r"torch\.float64"):
        KERNELS.side_path(base, base, *(p[None] for p in planes))
