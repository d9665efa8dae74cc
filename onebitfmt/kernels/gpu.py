"""The kernels for devices in Triton: the functions of `torch_reference`, in one pass each.

Triton is optional: `choose` says which of the two modules serves a device. With
`TRITON_INTERPRET=1` in the environment before the first import, the kernels run in Python on
tensors of the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from onebitfmt.errors import MissingDependencyError
from onebitfmt.kernels import torch_reference
from onebitfmt.kernels.elementwise import Elementwise
from onebitfmt.kernels.torch_reference import FLOATS, Planes

kernels: ModuleType | None = None
_FAULT: ImportError | None = None
try:
    from onebitfmt.kernels import triton_kernels
except ImportError as error:
    if (error.name or "").partition(".")[0] != "triton":
        raise
    _FAULT = error
else:
    kernels = triton_kernels

# Bytes of signs, of eight columns each, that one program works on.
_BYTES: Final = 128
# The tiles of `side_path`; matrix units take no less than 16 of anything.
_TOKENS, _ROWS, _COLUMNS = 16, 64, 64


def choose(device: torch.device | str) -> ModuleType:
    """The module whose functions serve a device: this one on CUDA, else `torch_reference`.

    On CUDA without triton it is `torch_reference`, too: the same results, many times slower.
    """
    usable = torch.device(device).type == "cuda" and kernels is not None
    return sys.modules[__name__] if usable else torch_reference


def unpack_add(
    base: Tensor,
    packed: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """base + sum of sign planes, rounded once: as `torch_reference.unpack_add`.

    Raises `MissingDependencyError` without triton, `UsageError` for what does not fit together.
    """
    torch_reference.check_planes(base, packed, rows, columns)
    target = torch_reference.result_for(base, dtype, out)
    count = packed.shape[0]
    return _launch("rebuild_kernel", base, target, (packed, rows, columns, count), {})


def lookup_add(
    base: Tensor,
    packed: Tensor,
    table: Tensor,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """base + table[pattern], rounded once: as `torch_reference.lookup_add`.

    Raises `MissingDependencyError` without triton, `UsageError` for what does not fit together.
    """
    torch_reference.check_table(base, packed, table)
    target = torch_reference.result_for(base, dtype, out)
    return _launch("lookup_kernel", base, target, (packed, table), {"COUNT": packed.shape[0]})


def merge_add(
    base: Tensor,
    planes: Sequence[Planes],
    rule: Elementwise,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """base + merged task vector, rounded once: as `torch_reference.merge_add`.

    Raises `MissingDependencyError` without triton, `UsageError` for what does not fit together.
    """
    torch_reference.check_rule(base, planes, rule)
    if not rule.others:
        return unpack_add(base, *planes[0], dtype=dtype, out=out)
    target = torch_reference.result_for(base, dtype, out)
    starts = [0]
    for packed, _, _ in planes:
        starts.append(starts[-1] + packed.shape[0])
    arguments = (
        *(torch.cat([p[part] for p in planes]) for part in range(3)),
        torch.tensor(starts, dtype=torch.int32, device=base.device),
        torch.tensor([rule.weights, rule.divisors], dtype=torch.float32, device=base.device),
        rule.divisor,
        rule.scale,
    )
    selected = -1 if rule.select is None else rule.select
    constants = {"COUNT": len(planes), "SELECT": selected, "ELECT": rule.elect}
    return _launch("merge_kernel", base, target, arguments, constants)


def side_path(
    x: Tensor,
    weight: Tensor,
    packed: Tensor,
    rows: Tensor,
    columns: Tensor,
    expert: Tensor | None = None,
) -> Tensor:
    """x Wᵀ + x Dᵀ without making the task vectors D: as `torch_reference.side_path`.

    Rows of x are gathered by expert into blocks, so that a block reads the weight once and the
    signs of one expert. For 16-bit types, signs times column scales are rounded to that type.
    Raises `MissingDependencyError` without triton, `UsageError` for what does not fit together.
    """
    torch_reference.check_side(x, weight, packed, rows, columns, expert)
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    count, (height, width) = flat.shape[0], weight.shape
    if expert is None:
        # The task vectors of all experts add up as so many planes of one.
        packed, rows, columns = (a.flatten(0, 1)[None] for a in (packed, rows, columns))
        expert = torch.zeros(count, dtype=torch.int64, device=x.device)
    order, experts = _gather(expert.reshape(-1), packed.shape[0])
    out = torch.empty(count, height, dtype=x.dtype, device=x.device)
    grid = experts.shape[0], -(-height // _ROWS)
    arguments = (
        _bits(flat), _bits(weight.contiguous()), _bits(out), count, height, width,
        packed.contiguous(), rows.contiguous(), columns.contiguous(), packed.shape[1],
        order, experts,
    )  # fmt: skip
    # The interpreter's matrix product takes the bit patterns of BF16 for integers.
    exact = x.dtype == torch.float32 or _interpreted()
    tiles = {"TOKENS": _TOKENS, "ROWS": _ROWS, "COLUMNS": _COLUMNS}
    _run("side_kernel", grid, x, arguments, {"EXACT": exact, "DTYPE": FLOATS[x.dtype], **tiles})
    return out.reshape(*x.shape[:-1], height)


def _gather(expert: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Rows in blocks of one expert each: their numbers int32 [blocks * _TOKENS], filled up with
    the number of rows; and the blocks' experts int32 [blocks], -1 for none.

    All on the device, and of a size that shapes decide: nothing waits for the device.
    """
    count, device = expert.shape[0], expert.device
    groups = torch.arange(-1, experts, device=device)
    sizes = (expert[:, None] == groups).sum(0)
    blocks = (sizes + _TOKENS - 1) // _TOKENS
    ends = blocks.cumsum(0)
    most = min(count, count // _TOKENS + experts + 1)
    # A place is the group's first block, and then the rank within the group.
    by_expert = torch.argsort(expert, stable=True)
    group = expert[by_expert] + 1
    rank = torch.arange(count, device=device) - (sizes.cumsum(0) - sizes)[group]
    place = ((ends - blocks)[group] * _TOKENS) + rank
    order = torch.full((most * _TOKENS,), count, dtype=torch.int32, device=device)
    order[place] = by_expert.to(torch.int32)
    owners = torch.searchsorted(ends, torch.arange(most, device=device), right=True) - 1
    return order, torch.where(owners < experts, owners, -1).to(torch.int32)


def _launch(
    name: str, base: Tensor, out: Tensor, arguments: tuple[Any, ...], constants: dict[str, Any]
) -> Tensor:
    """Run a kernel over the bytes of a matrix's signs; its result is `out`."""
    height, width = base.shape
    target = (
        out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    )
    dense = tuple(a.contiguous() if isinstance(a, Tensor) else a for a in arguments)
    constants = {"BASE": FLOATS[base.dtype], "OUT": FLOATS[out.dtype], **constants}
    grid = height, -(-width // (8 * _BYTES))
    matrix = _bits(base.contiguous()), _bits(target), height, width
    _run(name, grid, base, (*matrix, *dense), {**constants, "BYTES": _BYTES})
    return out if target is out else out.copy_(target)


def _run(
    name: str,
    grid: tuple[int, int],
    like: Tensor,
    arguments: tuple[Any, ...],
    constants: dict[str, Any],
) -> None:
    if kernels is None:
        raise MissingDependencyError("triton", "gpu") from _FAULT
    if 0 in grid:
        return
    # Triton launches on the current device, which need not be the tensors'. The CPU keeps
    # products and sums apart, and so must the kernels, to give the same bits.
    device = like.device.index if like.is_cuda else -1
    with torch.cuda.device(device):
        getattr(kernels, name)[grid](*arguments, **constants, enable_fp_fusion=False)


def _interpreted() -> bool:
    return kernels is not None and bool(kernels.interpreted())


def _bits(tensor: Tensor) -> Tensor:
    """The bit patterns of a contiguous float tensor, as signed integers of its size."""
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)
