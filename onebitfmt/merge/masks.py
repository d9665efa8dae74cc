"""Random masks without a state: each element's fate is a hash of its place.

The mask of an element depends on the seed, the expert's name, the tensor's name and the element's
row-major index alone, so slices, threads and the order of tensors cannot change it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

Array = NDArray[Any]

_STEP: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def mask_key(seed: int, expert: str, tensor: str) -> int:
    """The 64-bit key of a tensor's mask: BLAKE3 of seed, expert and tensor."""
    text = "\0".join((str(seed), expert, tensor))
    return int.from_bytes(blake3(text.encode("utf-8")).digest(length=8), "little")


def keep_mask(key: int, first: int, count: int, density: float) -> Array:
    """Which of `count` elements from index `first` on are kept, each with chance `density`.

    Element i is kept where the upper 53 bits of the i-th output of splitmix64, started at `key`,
    are below density * 2^53.
    """
    z = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    # Arithmetic modulo 2^64 is meant: arrays wrap around in silence.
    z *= _STEP
    z += np.uint64(key)
    z ^= z >> np.uint64(30)
    z *= _MIX[0]
    z ^= z >> np.uint64(27)
    z *= _MIX[1]
    z ^= z >> np.uint64(31)
    z >>= np.uint64(11)
    kept: Array = z < np.uint64(int(density * 2.0**53))
    return kept
