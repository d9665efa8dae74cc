from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from onebitfmt.bundle import Bundle
from onebitfmt.checkpoint import Checkpoint, Tensor
from onebitfmt.errors import UsageError
from onebitfmt.format.dtypes import DTYPES
from onebitfmt.loader.packed import (
    TORCH_DTYPES,
    packed_matrices,
    to_bits,
    to_torch,
    torch_device,
    torch_dtype,
)

if TYPE_CHECKING:
    from tests.loader.conftest import Family

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_every_dtype_keeps_its_bits(dtype: str) -> None:
    width = DTYPES[dtype].itemsize
    high = 2 if dtype == "BOOL" else 256
    data = np.random.default_rng(1).integers(0, high, 6 * width, dtype=np.uint8)
    bits = data.view(f"<u{width}").reshape(2, 3)
    tensor = to_torch(Tensor(dtype=dtype, bits=bits))
    assert tensor.dtype == TORCH_DTYPES[dtype]
    assert tensor.shape == (2, 3)
    assert to_bits(tensor).tobytes() == bits.tobytes()


def test_values_are_the_same_numbers() -> None:
    values = np.array([1.5, -0.0, np.inf], np.float32)
    tensor = to_torch(Tensor(dtype="F32", bits=values.view("<u4")))
    assert tensor.tolist() == [1.5, -0.0, np.inf]
    half = (values.view("<u4") >> 16).astype("<u2")
    assert to_torch(Tensor(dtype="BF16", bits=half)).tolist() == [1.5, -0.0, np.inf]


def test_scalars_and_read_only_memory() -> None:
    bits = np.frombuffer(np.float32(2.5).tobytes(), "<u4").reshape(())
    tensor = to_torch(Tensor(dtype="F32", bits=bits))
    assert tensor.shape == ()
    assert tensor.item() == 2.5
    assert to_bits(tensor).shape == ()


def test_dtypes_by_name() -> None:
    assert torch_dtype("bfloat16") is torch.bfloat16
    assert torch_dtype(torch.float16) is torch.float16
    assert torch_dtype(None) is None
    for wrong in ("int8", "bf16", "nn"):
        with pytest.raises(UsageError, match="float32, bfloat16 or float16"):
            torch_dtype(wrong)


def test_devices_by_name() -> None:
    assert torch_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="toaster"):
        torch_device("toaster")


def test_planes_come_packed(family: Family) -> None:
    bundle = Bundle.open(family.bundles["math"])
    [matrix] = packed_matrices(bundle, Q, torch.device("cpu"))
    assert matrix.bits.shape == (1, 128, 16)
    assert matrix.nbytes == 128 * 16 + 4 * (128 + 128)
    signs = np.unpackbits(matrix.bits[0].numpy(), axis=1, bitorder="little") * 2.0 - 1.0
    delta = signs * matrix.rows[0].numpy()[:, None] * matrix.columns[0].numpy()
    assert np.array_equal(delta.astype(np.float32), bundle.task_vector(Q))
    base = Checkpoint.open(family.base)
    bits = base.bits(Q).astype(np.uint32) << 16
    want = torch.from_numpy(bits.view(np.float32) + delta.astype(np.float32)).to(torch.bfloat16)
    assert torch.equal(to_torch(bundle.tensor(Q, base)), want)
