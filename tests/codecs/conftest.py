"""Pairs of tensors as bit patterns and as torch sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onebitfmt.parallel import Workers

Array = NDArray[Any]
TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(2) as pool:
        yield pool


@pytest.fixture
def to_bits() -> Callable[[torch.Tensor], Array]:
    def convert(tensor: torch.Tensor) -> Array:
        """The bit patterns of a tensor, in its layout and memory."""
        if tensor.dtype == torch.float32:
            return tensor.numpy().view(np.uint32)
        return tensor.view(torch.int16).numpy().view(np.uint16)

    return convert


@pytest.fixture
def to_torch() -> Callable[[Array, str], torch.Tensor]:
    def convert(bits: Array, dtype: str) -> torch.Tensor:
        signed = np.ascontiguousarray(bits).view(np.int32 if dtype == "F32" else np.int16)
        return torch.from_numpy(signed.copy()).view(TORCH[dtype])

    return convert


@pytest.fixture
def make_pair() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    def make(
        seed: int,
        shape: tuple[int, ...],
        dtypes: tuple[str, str] = ("BF16", "BF16"),
        change: float = 1e-3,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A base, and an expert that shares a tenth of its weights."""
        dice = torch.Generator().manual_seed(seed)
        base = (torch.randn(shape, generator=dice) * 0.02).to(torch.bfloat16).to(TORCH[dtypes[0]])
        delta = torch.randn(shape, generator=dice) * change
        delta[torch.rand(shape, generator=dice) < 0.1] = 0.0
        return base, (base.float() + delta).to(TORCH[dtypes[1]])

    return make
