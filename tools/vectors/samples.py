"""Tensors and terms that cases are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vectors.drafts import SCALE_PARTS, Term, scale_shape
from vectors.numbers import Tensor, floats, noise, tensor


def ramp(dtype: str, shape: Sequence[int], seed: int = 1) -> Tensor:
    """Numbers such as weights have, of both signs."""
    values = ((n - 500) / 997 for n in noise(math.prod(shape), 1001, seed))
    return floats(dtype, shape, values)


def nudged(base: Tensor, steps: Sequence[int]) -> Tensor:
    """A tensor a few units in the last place away from another of the same kind."""
    return tensor(base.dtype, base.shape, [b + s for b, s in zip(base.bits(), steps, strict=True)])


def sign(kind: str, shape: Sequence[int], seed: int = 1, scale: str = "F16") -> Term:
    """A term with pseudo-random signs and scales."""
    plus = [bool(n) for n in noise(math.prod(shape), 2, seed)]
    sizes = [math.prod(scale_shape(part, shape)) for part in SCALE_PARTS[kind]]
    scales = [(scale, [(1 + n) / 512 for n in noise(size, 99, seed + 7)]) for size in sizes]
    return Term(kind=kind, plus=plus, scales=scales)
