"""The kernels for devices in plain torch: any device, and the measure of what `gpu` must give.

No data leaves the device. Results equal the CPU kernels' bit for bit, but for NaN in the base,
which stays some NaN; `side_path` adds up in the order of the device's matrix product. Work goes in
blocks of rows, since a float32 and an index for each weight take many times the room of its bit.
Packed signs are uint8, eight columns a byte, least significant bit first; floats are BF16, F16
or F32 tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from onebitfmt.errors import UsageError
from onebitfmt.kernels.elementwise import Elementwise

Planes = tuple[Tensor, Tensor, Tensor]

# The types of weights, and how the other kernels name them.
FLOATS: Final = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
_BLOCK: Final = 1 << 22


def unpack(packed: Tensor, columns: int) -> Tensor:
    """Sign bits bool [..., columns] of uint8 [..., ceil(columns/8)]."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed[..., None] >> places) & 1
    return bits.flatten(-2)[..., :columns].to(torch.bool)


def task_vector(packed: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The sum of sign planes, float32 [R, C] (spec section 6.1).

    `packed` is uint8 [P, R, ceil(C/8)], `rows` float32 [P, R], `columns` float32 [P, C].
    """
    shape = rows.shape[1], columns.shape[1]
    # -0 is the neutral start: adding the first term to it is exact, its sign of zero included.
    total = torch.full(shape, -0.0, dtype=torch.float32, device=rows.device)
    for bits, row, column in zip(packed, rows, columns, strict=True):
        size = row[:, None] * column[None, :]
        total = total + torch.where(unpack(bits, shape[1]), size, -size)
    return total


def unpack_add(
    base: Tensor,
    packed: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """base [R, C] + sum of sign planes (as in `task_vector`), rounded once.

    The result is of `dtype`, the base's own by default; it is written to `out`, if given, which
    may be the base itself. Raises `UsageError` if shapes do not fit together.
    """
    check_planes(base, packed, rows, columns)

    def delta(part: slice) -> Tensor:
        return task_vector(packed[:, part], rows[:, part], columns)

    return _add(base, delta, result_for(base, dtype, out))


def lookup_add(
    base: Tensor,
    packed: Tensor,
    table: Tensor,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """base [R, C] + table[pattern], rounded once.

    `packed` is uint8 [K, R, ceil(C/8)], K from 1 to 8; bit k of a weight's pattern is its sign bit
    in packed[k]; `table` is float32 [2^K]. `dtype`, `out` and errors as in `unpack_add`.
    """
    check_table(base, packed, table)

    def delta(part: slice) -> Tensor:
        # Patterns of whole bytes first: eight times fewer operations than by weight.
        pattern = torch.zeros_like(packed[0, part], dtype=torch.int32)[..., None]
        places = torch.arange(8, dtype=torch.uint8, device=packed.device)
        for k in range(packed.shape[0]):
            bits = (packed[k, part, :, None] >> places) & 1
            pattern = pattern | (bits.to(torch.int32) << k)
        return table[pattern.flatten(-2)[:, : base.shape[1]]]

    return _add(base, delta, result_for(base, dtype, out))


def merge_add(
    base: Tensor,
    planes: Sequence[Planes],
    rule: Elementwise,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """base [R, C] + the merged task vector of several experts, rounded once.

    `planes` has each expert's sign planes (packed, rows, columns) as in `task_vector`. `dtype`,
    `out` and errors as in `unpack_add`.
    """
    check_rule(base, planes, rule)

    def delta(part: slice) -> Tensor:
        return _merged([task_vector(p[:, part], r[:, part], c) for p, r, c in planes], rule)

    return _add(base, delta, result_for(base, dtype, out))


def side_path(
    x: Tensor,
    weight: Tensor,
    packed: Tensor,
    rows: Tensor,
    columns: Tensor,
    expert: Tensor | None = None,
) -> Tensor:
    """x Wᵀ + x Dᵀ without making the task vectors D: [..., R] of the type of `x`.

    `x` is [..., C], `weight` [R, C]. Expert e of E has P sign planes: `packed` uint8 [E, P, R,
    ceil(C/8)], `rows` float32 [E, P, R], `columns` float32 [E, P, C]. `expert` (integers [...])
    says whose task vector a row of x takes; -1 means the base alone, and other numbers are not
    looked for. Without it, the task vectors of all experts are added. Sums are float32, rounded
    once. Raises `UsageError` if shapes or types do not fit together.
    """
    check_side(x, weight, packed, rows, columns, expert)
    flat = x.reshape(-1, x.shape[-1]).to(torch.float32)
    total = flat @ weight.to(torch.float32).T
    for e in range(packed.shape[0]):
        part = _side(flat, packed[e], rows[e], columns[e])
        if expert is not None:
            # A row of another expert must not even take on this one's NaN.
            part = torch.where((expert.reshape(-1) == e)[:, None], part, 0.0)
        total = total + part
    return total.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def _side(x: Tensor, packed: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    total = torch.zeros(x.shape[0], rows.shape[1], dtype=torch.float32, device=x.device)
    for bits, row, column in zip(packed, rows, columns, strict=True):
        signs = unpack(bits, x.shape[1]).to(torch.float32) * 2 - 1
        total = total + row * ((x * column) @ signs.T)
    return total


def _merged(vectors: Sequence[Tensor], rule: Elementwise) -> Tensor:
    """`Elementwise.apply` of task vectors, in torch, operation by operation."""
    weighted = [vectors[k] * _single(rule.weights[k], vectors[k]) for k in rule.others]
    if not weighted:
        return vectors[rule.select or 0]
    total = weighted[0]
    for vector in weighted[1:]:
        total = total + vector
    if rule.elect:
        total = _elected(weighted, total, [rule.divisors[k] for k in rule.others])
    else:
        total = total / _single(rule.divisor, total)
    total = _single(rule.scale, total) * total
    return total if rule.select is None else vectors[rule.select] + total


def _elected(vectors: Sequence[Tensor], total: Tensor, shares: Sequence[float]) -> Tensor:
    agreed, count = torch.zeros_like(total), torch.zeros_like(total)
    for vector, share in zip(vectors, shares, strict=True):
        agrees = torch.where(total >= 0, vector > 0, vector < 0)
        agreed = agreed + torch.where(agrees, vector, 0.0)
        count = count + torch.where(agrees, _single(share, count), 0.0)
    return agreed / torch.where(count == 0, 1.0, count)


def _single(value: float, like: Tensor) -> Tensor:
    # A Python number would take part as float64.
    return torch.tensor(value, dtype=torch.float32, device=like.device)


def _blocks(shape: Sequence[int]) -> Iterator[slice]:
    step = max(1, _BLOCK // max(shape[1], 1))
    for first in range(0, shape[0], step):
        yield slice(first, min(first + step, shape[0]))


def _add(base: Tensor, delta: Callable[[slice], Tensor], out: Tensor) -> Tensor:
    for part in _blocks(base.shape):
        out[part] = (base[part].to(torch.float32) + delta(part)).to(out.dtype)
    return out


# --- checks that the kernels of `gpu` share ------------------------------------------------------


def result_for(base: Tensor, dtype: torch.dtype | None, out: Tensor | None) -> Tensor:
    """Where a result goes: `out`, or a new tensor of `dtype`. Raises `UsageError`."""
    wanted = dtype or (base.dtype if out is None else out.dtype)
    if not {base.dtype, wanted} <= FLOATS.keys():
        raise UsageError(f"{base.dtype} or {wanted} is none of BF16, F16 and F32")
    if out is None:
        return torch.empty(base.shape, dtype=wanted, device=base.device)
    if out.shape != base.shape or dtype not in (None, out.dtype):
        raise UsageError(f"out is {out.dtype} {list(out.shape)}, not {dtype} {list(base.shape)}")
    return out


def check_planes(base: Tensor, packed: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Raises `UsageError` unless sign planes fit a matrix and are of the right types."""
    height, width = base.shape
    count = packed.shape[0]
    shapes = (count, height, -(-width // 8)), (count, height), (count, width)
    found = tuple(packed.shape), tuple(rows.shape), tuple(columns.shape)
    if found != shapes:
        raise UsageError(f"sign planes {found} do not fit a matrix [{height}, {width}]")
    _check_types(packed, rows, columns)


def check_table(base: Tensor, packed: Tensor, table: Tensor) -> None:
    """Raises `UsageError` unless packed signs and a look-up table fit a matrix."""
    height, width = base.shape
    count = packed.shape[0]
    shapes = (count, height, -(-width // 8)), (1 << count,)
    found = tuple(packed.shape), tuple(table.shape)
    if found != shapes or not 1 <= count <= 8:
        raise UsageError(f"signs and table {found} do not fit a matrix [{height}, {width}]")
    _check_types(packed, table)


def check_rule(base: Tensor, planes: Sequence[Planes], rule: Elementwise) -> None:
    """Raises `UsageError` unless every expert's planes fit, and the rule is for as many experts."""
    for packed, rows, columns in planes:
        check_planes(base, packed, rows, columns)
    count = len(planes)
    if count == 0 or {len(rule.weights), len(rule.divisors)} != {count}:
        raise UsageError(f"{count} experts, but a rule for {len(rule.weights)}")
    if rule.select is not None and not 0 <= rule.select < count:
        raise UsageError(f"selected expert {rule.select} of {count}")


def check_side(
    x: Tensor, weight: Tensor, packed: Tensor, rows: Tensor, columns: Tensor, expert: Tensor | None
) -> None:
    """Raises `UsageError` unless the arguments of `side_path` fit together."""
    height, width = weight.shape
    count = tuple(packed.shape[:2])
    shapes = (*count, height, -(-width // 8)), (*count, height), (*count, width)
    found = tuple(packed.shape), tuple(rows.shape), tuple(columns.shape)
    if found != shapes or x.shape[-1] != width:
        raise UsageError(f"x {list(x.shape)} or planes {found} do not fit [{height}, {width}]")
    if x.dtype != weight.dtype or x.dtype not in FLOATS:
        raise UsageError(f"x is {x.dtype}, the weight {weight.dtype}: use one of BF16, F16 and F32")
    if expert is not None and expert.shape != x.shape[:-1]:
        raise UsageError(f"expert is {list(expert.shape)}; x has rows {list(x.shape[:-1])}")
    _check_types(packed, rows, columns)


def _check_types(packed: Tensor, *scales: Tensor) -> None:
    if packed.dtype != torch.uint8 or any(s.dtype != torch.float32 for s in scales):
        raise UsageError("packed signs must be uint8, scales and tables float32")
