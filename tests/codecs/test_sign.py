from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onebitfmt.codecs import sign
from onebitfmt.codecs.sign import Fidelity, Plane, SignOptions
from onebitfmt.errors import FormatError
from onebitfmt.format.manifest import SCALE_TENSORS
from onebitfmt.parallel import Workers

Array = NDArray[Any]
Pair = Callable[..., tuple[torch.Tensor, torch.Tensor]]
ToBits = Callable[[torch.Tensor], Array]
ToTorch = Callable[[Array, str], torch.Tensor]
TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
SCALES = ("matrix", "row", "column", "rank1")
DTYPE_PAIRS = tuple(product(TORCH, repeat=2))
BITDELTA = SignOptions(scale="matrix", balanced=False)
MIN_NORMAL_HALF = 2.0**-14
# Four squares are added in float32 before float64 takes over.
SUM_ERROR = 3 * 2.0**-24


def stack3(bits: Array) -> Array:
    return bits.reshape(-1, *bits.shape[-2:])


def encode(
    base: Array,
    expert: Array,
    workers: Workers,
    options: SignOptions = SignOptions(),  # noqa: B008
    dtypes: tuple[str, str] = ("F32", "F32"),
) -> tuple[tuple[Plane, ...], Fidelity]:
    coded = sign.encode(stack3(base), stack3(expert), dtypes, options, workers)
    assert coded is not None
    return coded


def unpacked(plane: Plane) -> Array:
    """True for plus, [S, R, C]."""
    bits = np.unpackbits(plane.bits, axis=-1, count=plane.columns.shape[1], bitorder="little")
    return bits.astype(bool)


def decoded(planes: tuple[Plane, ...]) -> Array:
    """The task vector as the specification puts it together, float32 [S, R, C]."""
    terms = []
    for plane in planes:
        size = plane.rows[:, :, None] * plane.columns[:, None, :]
        assert size.dtype == np.float32
        terms.append(np.where(unpacked(plane), size, -size))
    total: Array = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def stored_bytes(planes: tuple[Plane, ...], shape: tuple[int, ...], kind: str) -> list[bytes]:
    parts = []
    for plane in planes:
        parts.append(plane.bits.tobytes())
        scales = sign.stored_scales(plane, shape, kind)
        parts += [scales[part].dtype.str.encode() + scales[part].tobytes() for part in scales]
    return parts


def as_half_or_single(values: Array) -> Array:
    """Scales as the writer stores them: F16 if all are zero or normal there, else F32."""
    fits = (values == 0) | ((values >= MIN_NORMAL_HALF) & (values <= 65504))
    return values.astype("<f2" if fits.all() else "<f4")


def exact_mean(values: torch.Tensor) -> float:
    return math.fsum(values.double().flatten().tolist()) / values.numel()


# --- BitDelta ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 64), (9, 130), (2, 5000)])
def test_bitdelta(
    shape: tuple[int, int],
    dtypes: tuple[str, str],
    make_pair: Pair,
    to_bits: ToBits,
    workers: Workers,
) -> None:
    base, expert = make_pair(1, shape, dtypes)
    delta = expert.float() - base.float()
    planes, fidelity = encode(to_bits(base), to_bits(expert), workers, BITDELTA, dtypes)
    minus = (delta < 0).numpy()
    wanted = np.packbits(~minus, axis=-1, bitorder="little")
    np.testing.assert_array_equal(planes[0].bits[0], wanted)
    scales = sign.stored_scales(planes[0], shape, "matrix")
    mean = as_half_or_single(np.array([[exact_mean(delta.abs())]]))
    assert list(scales) == ["matrix"]
    assert scales["matrix"].dtype == mean.dtype
    assert scales["matrix"].tolist() == mean.tolist()
    assert fidelity.zeros == int((delta == 0).sum())
    found = sign.kernel_planes(planes, 0, 0, *shape)
    rebuilt = base.float() + torch.where(delta < 0, -1.0, 1.0) * mean.item()
    wanted = to_bits(rebuilt.to(expert.dtype))
    np.testing.assert_array_equal(sign.rebuild(to_bits(base), dtypes, found), wanted)


@pytest.mark.parametrize("kind", ["row", "column"])
@pytest.mark.parametrize("change", [1e-5, 1e-3])
def test_row_and_column_scales_are_means(
    change: float, kind: str, make_pair: Pair, to_bits: ToBits, workers: Workers
) -> None:
    base, expert = make_pair(2, (11, 70), ("BF16", "F32"), change)
    size = (expert - base.float()).abs()
    lines = list(size) if kind == "row" else list(size.T)
    wanted = as_half_or_single(np.array([exact_mean(line) for line in lines]))
    dtypes = ("BF16", "F32")
    options = SignOptions(scale=kind)
    planes, _ = encode(to_bits(base), to_bits(expert), workers, options, dtypes)
    found = sign.stored_scales(planes[0], (11, 70), kind)[kind]
    assert found.dtype == wanted.dtype
    assert found.shape == ((11, 1) if kind == "row" else (1, 70))
    error = 0.0 if found.dtype == np.float16 else 2.0**-23 + SUM_ERROR
    np.testing.assert_allclose(found.reshape(-1), wanted, rtol=error, atol=0)


# --- how good ------------------------------------------------------------------------------------


def kinds_of_change() -> dict[str, Array]:
    rng = np.random.default_rng(11)
    shape = (96, 160)
    normal = rng.normal(0, 1e-3, shape)
    rows, columns = rng.lognormal(0, 0.5, (96, 1)), rng.lognormal(0, 0.5, (1, 160))
    lora = rng.normal(0, 1, (96, 4)) @ rng.normal(0, 1e-3, (4, 160))
    few_rows = np.where(rng.random((96, 1)) < 0.1, normal, 0.0)
    few_columns = np.where(rng.random((1, 160)) < 0.1, normal, 0.0)
    return {
        "normal": normal,
        "rows differ": normal * rows,
        "columns differ": normal * columns,
        "rows and columns differ": normal * rows * columns,
        "low rank": lora,
        "most rows equal the base": few_rows,
        "most columns equal the base": few_columns,
        "heavy tails": rng.standard_t(5, shape) * 1e-3,
        "one size": np.sign(normal) * 1e-3,
        "sparse": np.where(rng.random(shape) < 0.1, normal, 0.0),
    }


CHANGES = kinds_of_change()


def squared_error(delta: Array, planes: tuple[Plane, ...]) -> float:
    wanted = delta.astype(np.float64) - decoded(planes).reshape(delta.shape).astype(np.float64)
    return math.fsum((wanted**2).ravel().tolist())


def encode_change(
    delta: Array, workers: Workers, kind: str, count: int = 1
) -> tuple[tuple[Plane, ...], Fidelity]:
    zeros = np.zeros(delta.shape, np.uint32)
    options = SignOptions(scale=kind, planes=count)
    return encode(zeros, delta.astype(np.float32).view(np.uint32), workers, options)


@pytest.mark.parametrize("name", CHANGES)
def test_rank1_is_within_a_hundredth_of_the_best(name: str, workers: Workers) -> None:
    delta = CHANGES[name].astype(np.float32)
    singular = np.linalg.svd(np.abs(delta.astype(np.float64)), compute_uv=False)
    energy = float((singular**2).sum())
    error = squared_error(delta, encode_change(delta, workers, "rank1")[0])
    best = float((singular[1:] ** 2).sum())
    assert best - 1e-6 * energy <= error <= 1.01 * best + 1e-6 * energy


def lone_column() -> Array:
    """One even row, and a hundred rows that changed in their first column alone."""
    delta = np.zeros((101, 10))
    delta[0] = 10.0
    delta[1:, 0] = 2.0
    return delta


@pytest.mark.parametrize("kind", ["matrix", "row", "column"])
@pytest.mark.parametrize("name", [*CHANGES, "lone column"])
def test_rank1_is_never_worse(name: str, kind: str, workers: Workers) -> None:
    delta = (CHANGES[name] if name in CHANGES else lone_column()).astype(np.float32)
    energy = float((delta.astype(np.float64) ** 2).sum())
    rank1, other = (
        squared_error(delta, encode_change(delta, workers, scale)[0]) for scale in ("rank1", kind)
    )
    assert rank1 <= other + 1e-5 * energy


@pytest.mark.parametrize("name", ["normal", "rows and columns differ", "low rank", "heavy tails"])
@pytest.mark.parametrize("kind", SCALES)
def test_each_further_plane_lowers_the_error(kind: str, name: str, workers: Workers) -> None:
    delta = CHANGES[name].astype(np.float32)
    errors = [
        squared_error(delta, encode_change(delta, workers, kind, count)[0])
        for count in range(1, sign.MAX_PLANES + 1)
    ]
    assert all(b < 0.95 * a for a, b in pairwise(errors))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("dtypes", [("BF16", "BF16"), ("F16", "F32")])
def test_fidelity_is_what_the_planes_do(
    dtypes: tuple[str, str],
    kind: str,
    count: int,
    make_pair: Pair,
    to_bits: ToBits,
    workers: Workers,
) -> None:
    base, expert = make_pair(7, (3, 40, 99), dtypes)
    delta = (expert.float() - base.float()).numpy()
    planes, fidelity = encode(
        to_bits(base), to_bits(expert), workers, SignOptions(scale=kind, planes=count), dtypes
    )
    energy = math.fsum((delta.astype(np.float64) ** 2).ravel().tolist())
    assert fidelity.elements == delta.size
    assert fidelity.zeros == int((delta == 0).sum())
    assert fidelity.energy == pytest.approx(energy, rel=SUM_ERROR)
    assert fidelity.error == pytest.approx(squared_error(delta, planes), abs=1e-6 * energy)


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
def test_absorbed_weights_are_those_that_rounding_leaves_alone(
    dtypes: tuple[str, str], make_pair: Pair, to_bits: ToBits, workers: Workers
) -> None:
    base, expert = make_pair(8, (2, 31, 65), dtypes, 5e-5)
    planes, fidelity = encode(to_bits(base), to_bits(expert), workers, dtypes=dtypes)
    moved = (base.float() + torch.from_numpy(decoded(planes))).to(expert.dtype)
    assert fidelity.sampled == base.numel()
    assert fidelity.absorbed == int((moved == base.to(expert.dtype)).sum())


def test_absorbed_weights_of_a_large_tensor_come_from_spread_rows(
    make_pair: Pair, to_bits: ToBits, workers: Workers
) -> None:
    base, expert = make_pair(9, (4, 512, 512), change=5e-5)
    dtypes = ("BF16", "BF16")
    planes, fidelity = encode(to_bits(base), to_bits(expert), workers, dtypes=dtypes)
    same = (base.float() + torch.from_numpy(decoded(planes))).to(expert.dtype) == base
    assert fidelity.sampled == 1 << 16
    whole = float(same.float().mean())
    assert 0.05 < whole < 0.95
    assert fidelity.absorbed / fidelity.sampled == pytest.approx(whole, abs=0.01)


def test_absorbed_weights_of_many_small_matrices_are_sampled_too(workers: Workers) -> None:
    same = np.zeros((2048, 1, 128), np.uint16)
    _, fidelity = encode(same, same, workers, dtypes=("BF16", "BF16"))
    assert fidelity.sampled == fidelity.absorbed == 1 << 16


# --- zeros ---------------------------------------------------------------------------------------


def splitmix64(index: int) -> int:
    full = (1 << 64) - 1
    z = ((index + 1) * 0x9E3779B97F4A7C15) & full
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & full
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & full
    return z ^ (z >> 31)


@pytest.mark.parametrize("shape", [(3, 5), (40, 64), (7, 200), (5, 2113)])
def test_balanced_zeros_are_signed_by_their_place(shape: tuple[int, int], workers: Workers) -> None:
    same = np.full(shape, 0x3C00, np.uint16)
    planes, fidelity = encode(same, same, workers, dtypes=("F16", "F16"))
    words = -(-shape[1] // 64)
    wanted = [
        [splitmix64(i * words + j // 64) >> (j % 64) & 1 for j in range(shape[1])]
        for i in range(shape[0])
    ]
    np.testing.assert_array_equal(unpacked(planes[0])[0], np.array(wanted, bool))
    assert fidelity.zeros == shape[0] * shape[1]
    assert (fidelity.energy, fidelity.error) == (0.0, 0.0)


def test_balanced_zeros_of_a_matrix_of_several_blocks(workers: Workers) -> None:
    same = np.zeros((1500, 1000), np.uint16)
    planes, _ = encode(same, same, workers, dtypes=("BF16", "BF16"))
    words = np.array([splitmix64(word) for word in range(1500 * 16)], "<u8")
    wanted = words.view(np.uint8).reshape(1500, 128)[:, :125]
    np.testing.assert_array_equal(planes[0].bits[0], wanted)


def test_about_half_of_balanced_zeros_are_plus(workers: Workers) -> None:
    same = np.zeros((300, 1000), np.uint16)
    plus = unpacked(encode(same, same, workers, dtypes=("BF16", "BF16"))[0][0])
    assert plus.mean() == pytest.approx(0.5, abs=0.005)
    np.testing.assert_allclose(plus[0].mean(axis=0), 0.5, atol=0.15)


def test_balance_changes_the_signs_of_zeros_alone(
    make_pair: Pair, to_bits: ToBits, workers: Workers
) -> None:
    base, expert = make_pair(10, (20, 90))
    dtypes = ("BF16", "BF16")
    plus, balanced = (
        unpacked(encode(to_bits(base), to_bits(expert), workers, options, dtypes)[0][0])[0]
        for options in (BITDELTA, replace(BITDELTA, balanced=True))
    )
    differs = plus != balanced
    assert differs.any()
    assert not differs[(expert != base).numpy()].any()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", SCALES)
def test_identical_tensors_have_zero_scales(kind: str, count: int, workers: Workers) -> None:
    same = np.full((2, 9, 17), 0x3F80, np.uint16)
    options = SignOptions(scale=kind, planes=count)
    planes, fidelity = encode(same, same, workers, options, ("BF16", "BF16"))
    assert (fidelity.error, fidelity.absorbed) == (0.0, same.size)
    for plane in planes:
        scales = sign.stored_scales(plane, same.shape, kind)
        assert all(scale.dtype == np.float16 for scale in scales.values())
        assert any(not scale.any() for scale in scales.values())
    assert not decoded(planes).any()


# --- scales as stored ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "stored"),
    [
        (6.0e-5, "<f4"),
        (np.nextafter(np.float32(2.0**-14), np.float32(0)), "<f4"),
        (2.0**-14, "<f2"),
        (6.2e-5, "<f2"),
        (0.5, "<f2"),
        (65504.0, "<f2"),
        (65505.0, "<f4"),
        (1e-42, "<f4"),
    ],
)
@pytest.mark.parametrize("kind", ["matrix", "row", "column"])
def test_scales_outside_the_normal_range_of_half_are_single(
    kind: str, size: float, stored: str, workers: Workers
) -> None:
    delta = np.full((4, 8), size, np.float32)
    delta[::2] *= -1
    plane = encode_change(delta, workers, kind)[0][0]
    scale = sign.stored_scales(plane, (4, 8), kind)[kind]
    assert scale.dtype == np.dtype(stored)
    np.testing.assert_array_equal(scale, np.full(scale.shape, size).astype(stored))


def test_rows_without_change_have_zero_scales_and_stay_half(workers: Workers) -> None:
    delta = np.full((4, 8), 0.25, np.float32)
    delta[2] = 0.0
    plane = encode_change(delta, workers, "row")[0][0]
    scale = sign.stored_scales(plane, (4, 8), "row")["row"]
    assert scale.dtype == np.float16
    assert scale.reshape(-1).tolist() == [0.25, 0.25, 0.0, 0.25]


def near_normal_half() -> Array:
    """A row whose mean is below the normal range of F16, but not once it is rounded to F32."""
    below = np.nextafter(np.float32(2.0**-14), np.float32(0))
    return np.array([[2.0**-14, below], [0.1, 0.1]], np.float32)


def above_half() -> Array:
    """A row whose mean is above the range of F16, but not once it is rounded to F32."""
    above = np.nextafter(np.float32(65504), np.float32(1e9))
    return np.array([[65504] * 3 + [above], [0.1] * 4], np.float32)


@pytest.mark.parametrize(
    "delta",
    [CHANGES["normal"], CHANGES["normal"] * 0.01, near_normal_half(), above_half()],
    ids=["F16", "F32", "lower edge", "upper edge"],
)
@pytest.mark.parametrize("kind", SCALES)
def test_what_is_stored_is_what_the_planes_hold(kind: str, delta: Array, workers: Workers) -> None:
    (plane,), _ = encode_change(delta, workers, kind)
    stored = sign.stored_scales(plane, delta.shape, kind)
    values = {part: scale.astype(np.float32) for part, scale in stored.items()}
    back = sign.plane_from_stored(delta.shape, plane.bits, values, "here")
    np.testing.assert_array_equal(decoded((back,)), decoded((plane,)))


def test_stored_shapes_of_a_stack(workers: Workers) -> None:
    delta = np.random.default_rng(1).normal(0, 1, (2, 3, 4, 21))
    shapes = {"matrix": (2, 3, 1, 1), "row": (2, 3, 4, 1), "column": (2, 3, 1, 21)}
    for kind in SCALES:
        (plane,), _ = encode_change(delta, workers, kind)
        stored = sign.stored_scales(plane, delta.shape, kind)
        assert {part: scale.shape for part, scale in stored.items()} == {
            part: shapes[part] for part in SCALE_TENSORS[kind]
        }
        assert plane.bits.shape == (6, 4, 3)


# --- what the result depends on ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["matrix", "rank1"])
def test_threads_do_not_matter(kind: str, make_pair: Pair, to_bits: ToBits) -> None:
    base, expert = make_pair(3, (2100, 1100))
    options = SignOptions(scale=kind, planes=2)
    results = []
    for jobs in (1, 2, 3):
        with Workers(jobs) as workers:
            planes, fidelity = encode(
                to_bits(base), to_bits(expert), workers, options, ("BF16", "BF16")
            )
        results.append((stored_bytes(planes, (2100, 1100), kind), fidelity))
    assert results[0] == results[1] == results[2]


def transposed(bits: Array) -> Array:
    turned: Array = np.ascontiguousarray(np.swapaxes(bits, 1, 2)).swapaxes(1, 2)
    return turned


def every_second(bits: Array) -> Array:
    wide: Array = np.zeros((*bits.shape[:2], 2 * bits.shape[2]), bits.dtype)
    wide[..., ::2] = bits
    return wide[..., ::2]


def inner_part(bits: Array) -> Array:
    wide: Array = np.pad(bits, ((1, 0), (2, 1), (3, 5)))
    inner: Array = wide[1:, 2:-1, 3:-5]
    return inner


def unaligned(bits: Array) -> Array:
    data = b"\0" + bits.tobytes()
    return np.frombuffer(data, bits.dtype, offset=1).reshape(bits.shape)


@pytest.mark.parametrize("layout", [transposed, every_second, inner_part, unaligned])
@pytest.mark.parametrize("dtypes", [("BF16", "BF16"), ("F32", "F16")])
def test_layout_in_memory_does_not_matter(
    dtypes: tuple[str, str],
    layout: Callable[[Array], Array],
    make_pair: Pair,
    to_bits: ToBits,
    workers: Workers,
) -> None:
    base, expert = (stack3(to_bits(tensor)) for tensor in make_pair(4, (2, 19, 77), dtypes))
    options = SignOptions(planes=2)
    moved = layout(base), layout(expert)
    assert not (moved[0].flags.c_contiguous and moved[0].flags.aligned)
    (wanted, wanted_fidelity), (found, fidelity) = (
        encode(*pair, workers, options, dtypes) for pair in ((base, expert), moved)
    )
    shape = base.shape
    assert stored_bytes(found, shape, "rank1") == stored_bytes(wanted, shape, "rank1")
    assert fidelity == wanted_fidelity


@pytest.mark.parametrize("kind", SCALES)
def test_a_stack_is_coded_matrix_by_matrix(
    kind: str, make_pair: Pair, to_bits: ToBits, workers: Workers
) -> None:
    base, expert = (stack3(to_bits(t)) for t in make_pair(5, (2, 2, 13, 50)))
    expert[1] = base[1]
    options, dtypes = SignOptions(scale=kind, planes=2), ("BF16", "BF16")
    whole, fidelity = encode(base, expert, workers, options, dtypes)
    parts = [encode(base[s], expert[s], workers, options, dtypes) for s in range(4)]
    for p in range(2):
        for field in ("bits", "rows", "columns"):
            wanted = np.concatenate([getattr(planes[p], field) for planes, _ in parts])
            np.testing.assert_array_equal(getattr(whole[p], field), wanted)
    for field in ("elements", "zeros", "energy", "error", "sampled", "absorbed"):
        wanted = sum(getattr(part, field) for _, part in parts)
        assert getattr(fidelity, field) == pytest.approx(wanted, rel=1e-12)


# --- not finite ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", ["base", "expert", "both"])
@pytest.mark.parametrize("kind", SCALES)
def test_no_planes_where_a_weight_is_not_finite(
    kind: str, place: str, value: float, make_pair: Pair, to_bits: ToBits, workers: Workers
) -> None:
    base, expert = make_pair(6, (2, 12, 33))
    for name, tensor in (("base", base), ("expert", expert)):
        if place in (name, "both"):
            tensor[1, 4, 32] = value
    pair = to_bits(base), to_bits(expert)
    options = SignOptions(scale=kind, planes=2)
    assert sign.encode(*pair, ("BF16", "BF16"), options, workers) is None


@pytest.mark.parametrize("kind", SCALES)
def test_no_planes_where_a_difference_overflows(kind: str, workers: Workers) -> None:
    base = np.full((1, 2, 9), -3e38, np.float32)
    options = SignOptions(scale=kind)
    pair = base.view(np.uint32), (-base).view(np.uint32)
    assert sign.encode(*pair, ("F32", "F32"), options, workers) is None


def test_scales_whose_products_overflow_are_not_written(workers: Workers) -> None:
    """Of huge weights that are far from rank one the factors' product leaves the range of F32."""
    delta = np.full((20, 200), 1e37, np.float32)
    delta[:, 0] = 3e38
    delta[0] = 3e38
    zeros = np.zeros((1, *delta.shape), np.uint32)
    pair = zeros, delta.view(np.uint32)[None]
    coded = sign.encode(*pair, ("F32", "F32"), SignOptions(), workers)
    if coded is not None:
        with np.errstate(over="ignore"):
            assert np.isfinite(decoded(coded[0])).all()


# --- rebuilding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
@pytest.mark.parametrize("alpha", [0.0, 0.0007977, 0.1, 1e-41])
def test_rebuilding_with_one_scale(
    alpha: float, dtypes: tuple[str, str], make_pair: Pair, to_bits: ToBits
) -> None:
    base, expert = make_pair(12, (7, 130), dtypes)
    plus = (expert.float() > base.float()).numpy()
    bits = np.packbits(plus, axis=-1, bitorder="little")
    scales = {"matrix": np.full((1, 1), alpha, np.float32)}
    plane = sign.plane_from_stored((7, 130), bits, scales, "here")
    found = sign.kernel_planes([plane], 0, 0, 7, 130)
    delta = torch.where(torch.from_numpy(plus), 1.0, -1.0) * torch.tensor(alpha)
    wanted = (base.float() + delta).to(expert.dtype)
    np.testing.assert_array_equal(sign.rebuild(to_bits(base), dtypes, found), to_bits(wanted))


@pytest.mark.parametrize("dtypes", [("BF16", "BF16"), ("F32", "F16")])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", SCALES)
def test_rebuilding_with_several_planes(
    kind: str,
    count: int,
    dtypes: tuple[str, str],
    make_pair: Pair,
    to_bits: ToBits,
    workers: Workers,
) -> None:
    base, expert = make_pair(13, (2, 15, 75), dtypes)
    options = SignOptions(scale=kind, planes=count)
    planes, _ = encode(to_bits(base), to_bits(expert), workers, options, dtypes)
    vector = torch.from_numpy(decoded(planes))
    wanted = to_bits((base.float() + vector).to(expert.dtype))
    for s, rows in product(range(2), (slice(0, 15), slice(4, 9))):
        found = sign.kernel_planes(planes, s, rows.start, rows.stop, 75)
        np.testing.assert_array_equal(sign.task_vector(found), vector[s, rows].numpy())
        rebuilt = sign.rebuild(to_bits(base)[s, rows], dtypes, found)
        np.testing.assert_array_equal(rebuilt, wanted[s, rows])


def test_without_planes_the_base_is_rebuilt() -> None:
    base = np.array([[0x8000, 0x3F80, 0xFF80]], np.uint16)
    found = sign.kernel_planes((), 0, 0, 1, 3)
    np.testing.assert_array_equal(sign.rebuild(base, ("BF16", "BF16"), found), base)


# --- stored planes -------------------------------------------------------------------------------


def stored(shape: tuple[int, ...], kind: str) -> tuple[Array, dict[str, Array]]:
    """Sign bits, all plus, and scales 0.5 of a plane."""
    *stack, height, width = shape
    ones = np.ones(shape, bool)
    shapes = {
        "matrix": (*stack, 1, 1),
        "row": (*stack, height, 1),
        "column": (*stack, 1, width),
    }
    scales = {part: np.full(shapes[part], 0.5, np.float32) for part in SCALE_TENSORS[kind]}
    return np.packbits(ones, axis=-1, bitorder="little"), scales


def refusal(shape: tuple[int, ...], bits: Array, scales: dict[str, Array]) -> str:
    with pytest.raises(FormatError, match=r"^a\.obd: w: .* \[OBD-") as error:
        sign.plane_from_stored(shape, bits, scales, "a.obd: w")
    return error.value.id


@pytest.mark.parametrize(
    "shape", [(1, 1), (5, 1), (1, 9), (3, 16), (2, 5, 9), (3, 1, 9), (2, 2, 1, 1)]
)
@pytest.mark.parametrize("kind", SCALES)
def test_stored_scales_are_spread_over_the_matrices(kind: str, shape: tuple[int, ...]) -> None:
    bits, scales = stored(shape, kind)
    rng = np.random.default_rng(3)
    scales = {part: rng.uniform(0, 1, v.shape).astype(np.float32) for part, v in scales.items()}
    size = np.ones(shape, np.float32)
    for scale in scales.values():
        size = size * scale
    plane = sign.plane_from_stored(shape, bits, scales, "here")
    np.testing.assert_array_equal(decoded((plane,)), stack3(size))


@pytest.mark.parametrize("value", [-1.0, -0.0, -1e-45, math.inf, -math.inf, math.nan, -math.nan])
@pytest.mark.parametrize("kind", SCALES)
def test_bad_scales_are_refused(kind: str, value: float) -> None:
    shape = (2, 3, 9)
    for part in SCALE_TENSORS[kind]:
        bits, scales = stored(shape, kind)
        scales[part].reshape(-1)[-1] = value
        assert refusal(shape, bits, scales) == "OBD-SIGN-SCALE"


@pytest.mark.parametrize("place", [0, 1])
def test_products_that_overflow_are_refused(place: int) -> None:
    bits, scales = stored((2, 3, 9), "rank1")
    scales["row"][place, 1] = 3e38
    scales["column"][place, 0, 4] = 1.2
    assert refusal((2, 3, 9), bits, scales) == "OBD-SIGN-SCALE"
    scales["column"][place, 0, 4] = 1.1
    sign.plane_from_stored((2, 3, 9), bits, scales, "here")


def test_large_factors_of_different_matrices_do_not_meet() -> None:
    bits, scales = stored((2, 3, 9), "rank1")
    scales["row"][0], scales["column"][0] = 3e38, 1.0
    scales["row"][1], scales["column"][1] = 1.0, 3e38
    sign.plane_from_stored((2, 3, 9), bits, scales, "here")


@pytest.mark.parametrize("width", [1, 7, 9, 15, 2049])
def test_padding_bits_are_refused(width: int) -> None:
    shape = (2, 3, width)
    for bit in {width % 8, 7}:
        bits, scales = stored(shape, "row")
        bits[1, 2, -1] |= 1 << bit
        assert refusal(shape, bits, scales) == "OBD-SIGN-PAD"


def test_all_bits_of_a_full_byte_are_signs() -> None:
    bits, scales = stored((2, 16), "matrix")
    assert (bits == 0xFF).all()
    sign.plane_from_stored((2, 16), bits, scales, "here")


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ([0.0], True),
        ([-0.0, 1.0], True),
        ([2.0**-14, 65504.0], True),
        ([-65504.0], True),
        ([2.0**-14 * 0.999], False),
        ([-6e-5], False),
        ([65504.01], False),
        ([1.0, 1e-8], False),
    ],
)
def test_what_half_can_hold(values: list[float], fits: bool) -> None:
    assert sign.fits_half(np.array(values)) is fits
