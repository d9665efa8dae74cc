"""Trimming by magnitude, exact in bounded memory.

The k-th smallest magnitude is found without sorting and without holding all values: magnitudes of
float32 order as their bit patterns do, so one pass counts the upper 16 bits and a second one the
lower 16 bits of the values in the bucket that the first pass has found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Part = Callable[[], Array]
T = TypeVar("T")
R = TypeVar("R")

_HALF: Final = 1 << 16


class Run(Protocol):
    """Maps a function over items, results in order: the builtin `map`, or `Workers.map`."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        """function(item) for each item."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trim:
    """What to keep: magnitudes of at least `threshold`, a float32 bit pattern.

    Of those equal to it only the ones up to flat index `last`, unless that is None.
    """

    threshold: int
    last: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """The k-th smallest magnitude as a bit pattern, and how many are smaller or equal to it."""

    threshold: int
    smaller: int
    equal: int


def magnitude_bits(values: Array) -> Array:
    """|values| (float32) as uint32 bit patterns, which order as the magnitudes do."""
    bits: Array = values.reshape(-1).view(np.uint32) & np.uint32(0x7FFFFFFF)
    return bits


def rank(parts: Sequence[Part], k: int, run: Run) -> Rank:
    """The k-th smallest magnitude (from 1) of all parts together; each part is read twice.

    k lies between 1 and the number of elements.
    """
    upper = np.zeros(_HALF // 2, np.int64)
    for counts in run(_upper_counts, parts):
        upper += counts
    bucket, below = _bucket(upper, k)

    def lower_counts(part: Part) -> Array:
        bits = magnitude_bits(part())
        inside = bits[(bits >> np.uint32(16)) == np.uint32(bucket)]
        return np.bincount(inside & np.uint32(0xFFFF), minlength=_HALF)

    lower = np.zeros(_HALF, np.int64)
    for counts in run(lower_counts, parts):
        lower += counts
    low, smaller = _bucket(lower, k - below)
    return Rank(threshold=bucket << 16 | low, smaller=below + smaller, equal=int(lower[low]))


def _upper_counts(part: Part) -> Array:
    return np.bincount(magnitude_bits(part()) >> np.uint32(16), minlength=_HALF // 2)


def _bucket(counts: Array, k: int) -> tuple[int, int]:
    """The bucket that holds the k-th element, and how many lie in those before it."""
    sums = np.cumsum(counts)
    bucket = int(np.searchsorted(sums, k))
    return bucket, int(sums[bucket - 1]) if bucket else 0


def at_least(parts: Sequence[Part], k: int, run: Run) -> Trim | None:
    """Keep whatever is no smaller than the k-th smallest magnitude, ties included.

    None, which keeps all, where k is below 1.
    """
    return None if k < 1 else Trim(threshold=rank(parts, k, run).threshold)


def largest(parts: Sequence[Part], size: int, count: int, run: Run) -> Trim | None:
    """Keep exactly `count` (at least 1) of `size` elements, of equal ones those that come first.

    None where that is all of them.
    """
    if count >= size:
        return None
    found = rank(parts, size - count + 1, run)
    quota = count - (size - found.smaller - found.equal)
    if quota == found.equal:
        return Trim(threshold=found.threshold)
    first = 0
    for part in parts:
        bits = magnitude_bits(part())
        ties = np.flatnonzero(bits == np.uint32(found.threshold))
        if ties.size >= quota:
            return Trim(threshold=found.threshold, last=first + int(ties[quota - 1]))
        quota -= ties.size
        first += bits.size
    raise AssertionError  # the counts say that the tie is there


def trim(values: Array, cut: Trim, first: int) -> Array:
    """`values` (flat float32) with what is not kept set to zero; the first has index `first`."""
    bits = magnitude_bits(values)
    kept = bits >= np.uint32(cut.threshold)
    if cut.last is not None and cut.last < first + bits.size - 1:
        ties = np.flatnonzero(bits == np.uint32(cut.threshold))
        kept[ties[ties > cut.last - first]] = False
    return np.where(kept, values, np.float32(0))
