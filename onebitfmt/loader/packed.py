"""Bit patterns as torch tensors, and sign planes that stay packed on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from onebitfmt.bundle import Bundle
from onebitfmt.checkpoint import Tensor
from onebitfmt.codecs.sign import kernel_planes
from onebitfmt.errors import UsageError
from onebitfmt.format.dtypes import matrices

Array = NDArray[Any]

TORCH_DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U64": torch.uint64,
        "U32": torch.uint32,
        "U16": torch.uint16,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)

DTYPE_NAMES: Final = MappingProxyType({t: name for name, t in TORCH_DTYPES.items()})


def to_torch(tensor: Tensor) -> torch.Tensor:
    """The same bits as a torch tensor on the CPU; memory is shared where the array is writable."""
    bits = tensor.bits
    if not bits.flags.c_contiguous or not bits.flags.writeable:
        bits = np.array(bits, order="C")
    # torch lacks most operations on unsigned types; a signed view of the same width always works.
    signed = torch.from_numpy(bits.reshape(-1).view(f"<i{bits.itemsize}"))
    return signed.view(TORCH_DTYPES[tensor.dtype]).reshape(bits.shape)


def to_bits(tensor: torch.Tensor) -> Array:
    """A tensor's bit patterns on the CPU, little-endian unsigned integers, in its shape."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    width = flat.element_size()
    return flat.view(torch.uint8).numpy().view(f"<u{width}").reshape(tuple(tensor.shape))


def torch_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A float type from its name in torch, such as `bfloat16`. Raises `UsageError`."""
    if dtype is None:
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UsageError(f"unknown dtype {dtype!r}; use float32, bfloat16 or float16")
    return found


def torch_device(device: str | torch.device) -> torch.device:
    """A device that this torch can use. Raises `UsageError`."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ValueError) as e:
        problem = str(e).partition("\n")[0]
        raise UsageError(f"device {device!s} cannot be used here: {problem}") from None
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedMatrix:
    """The sign planes of one matrix on a device, as the device kernels take them.

    `bits` is uint8 [P, R, ceil(C/8)]; `rows` float32 [P, R] and `columns` float32 [P, C] are the
    factors of the scales.
    """

    bits: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held on the device."""
        return sum(t.numel() * t.element_size() for t in (self.bits, self.rows, self.columns))


def packed_matrices(bundle: Bundle, name: str, device: torch.device) -> tuple[PackedMatrix, ...]:
    """The planes of a one-bit tensor, a matrix of its stack each, brought to a device still packed.

    Raises `FormatError` where the stored bytes are damaged; the tensor must be one-bit.
    """
    planes = bundle.planes(name)
    stack, height, width = matrices(bundle.entry(name).shape)
    found = []
    for s in range(stack):
        bits, rows, columns = kernel_planes(planes, s, 0, height, width)
        found.append(
            PackedMatrix(
                bits=_on(bits, device), rows=_on(rows, device), columns=_on(columns, device)
            )
        )
    return tuple(found)


def _on(values: Array, device: torch.device) -> torch.Tensor:
    # A copy also on the CPU: the mapping's pages may be let go of at any time.
    return torch.from_numpy(np.array(values, order="C")).to(device)
