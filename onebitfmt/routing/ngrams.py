"""Features without a model: hashed character n-grams.

Each n-gram of the prompt falls into one of `dimension` buckets; a feature is the square root of a
bucket's count, and the features of a prompt have length 1. The hash is fixed here, so the features
are the same on every machine and with every version of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onebitfmt.routing.spec import FeatureSpec

Array = NDArray[Any]

DIMENSION: Final = 4096
SIZES: Final = (1, 2, 3)
MAX_CHARACTERS: Final = 1 << 14

# FNV-1a's prime and the finaliser of splitmix64: arithmetic modulo 2**64, the same everywhere.
_PRIME: Final = np.uint64(0x100000001B3)
_MIX: Final = np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True, kw_only=True, slots=True)
class CharacterNGrams:
    """Counts of hashed character n-grams; prompts are cut after 16,384 characters."""

    spec: FeatureSpec

    def __call__(self, prompts: Sequence[str]) -> Array:
        """Features of prompts: float32 [n, dimension]."""
        features = np.zeros((len(prompts), self.spec.dimension), np.float32)
        for row, prompt in zip(features, prompts, strict=True):
            counts = np.bincount(self._buckets(prompt), minlength=self.spec.dimension)
            # Square roots tame frequent n-grams; the square of their length is then the total.
            row[:] = np.sqrt(counts / max(1, counts.sum()))
        return features

    def _buckets(self, prompt: str) -> Array:
        # Marks at both ends make the first and the last character n-grams of their own.
        text = f"\x02{prompt[:MAX_CHARACTERS]}\x03"
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
        found = [_hashes(codes, size) for size in self.spec.sizes if size <= codes.size]
        hashes = np.concatenate([np.empty(0, np.uint64), *found])
        buckets: Array = (hashes % np.uint64(self.spec.dimension)).astype(np.int64)
        return buckets


def ngram_spec(dimension: int = DIMENSION, sizes: tuple[int, ...] = SIZES) -> FeatureSpec:
    """The specification of n-gram features."""
    return FeatureSpec(kind="ngrams", dimension=dimension, sizes=sizes)


def _hashes(codes: Array, size: int) -> Array:
    """The hash of every run of `size` code points: uint64 [len - size + 1]."""
    count = codes.size - size + 1
    value: Array = np.full(count, size, np.uint64)
    for i in range(size):
        value = (value ^ codes[i : i + count]) * _PRIME
    value = (value ^ (value >> np.uint64(32))) * _MIX
    value ^= value >> np.uint64(29)
    return value
