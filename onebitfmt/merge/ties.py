"""TIES-Merging (Yadav 2023): trim, elect a sign for each element, average those that agree.

The implementations in use differ in the trimming and in what happens when the votes cancel out:

| preset   | trimmed    | kept                                   | votes cancel out          |
|----------|------------|----------------------------------------|---------------------------|
| official | the model  | from the (D - int(D k))-th smallest on | sign of most of the model |
| mergelm  | the model  | from the int(D (1 - k))-th smallest on | sign of most of the model |
| paper    | a tensor   | as official                            | plus                      |
| onebit   | a tensor   | as official; one-bit inputs whole      | plus                      |
| mergekit | a tensor   | exactly max(1, int(D k)), largest      | plus                      |

`official` is the authors' code, `mergelm` that of MergeLM, `paper` that of the group behind
1bit-Merging: with one scale a matrix all one-bit magnitudes are equal, and all are kept as ties.
With finer scales that is not so; `onebit` therefore exempts what is stored as one bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class TiesPreset:
    """One reading of TIES; the table above says what the fields mean.

    `position` gives, for D elements and a density, which smallest magnitude is the threshold;
    below 1 all are kept. `count` gives, where it is set, how many are kept exactly.
    """

    whole_model: bool = False
    position: Callable[[int, float], int]
    count: Callable[[int, float], int] | None = None
    exempt_onebit: bool = False
    majority: bool = False


def _official(elements: int, density: float) -> int:
    return elements - int(elements * density)


def _mergelm(elements: int, density: float) -> int:
    # MergeLM is given the share to drop: 1 - 0.7 must count as 0.3.
    return int(elements * round(1.0 - density, 12))


def _mergekit(elements: int, density: float) -> int:
    return max(1, int(density * elements))


PRESETS: Final[Mapping[str, TiesPreset]] = MappingProxyType(
    {
        "onebit": TiesPreset(position=_official, exempt_onebit=True),
        "paper": TiesPreset(position=_official),
        "official": TiesPreset(whole_model=True, position=_official, majority=True),
        "mergelm": TiesPreset(whole_model=True, position=_mergelm, majority=True),
        "mergekit": TiesPreset(position=_official, count=_mergekit),
    }
)


def elect(
    vectors: Sequence[Array],
    weights: Sequence[np.float32],
    *,
    normalize: bool = True,
    majority: Callable[[], bool] | None = None,
) -> Array:
    """The disjoint mean of trimmed vectors (float32, one shape): of the weighted ones with the
    sign of their sum, over the sum of their weights; zeros have no vote.

    Where the sum is zero the sign is plus, or what `majority` says (True: plus), which is asked
    only if that matters. Without `normalize` the sum is not divided.
    """
    weighted: list[Array] = [v * w for v, w in zip(vectors, weights, strict=True)]
    total = weighted[0].copy()
    for vector in weighted[1:]:
        total += vector
    positive = total >= 0
    if majority is not None:
        open_votes = total == 0
        voted = np.zeros_like(open_votes)
        for vector in weighted:
            voted |= vector != 0
        open_votes &= voted
        if open_votes.any() and not majority():
            positive &= ~open_votes
    mixed: Array = np.zeros_like(total)
    divisor = np.zeros_like(total)
    for vector, weight in zip(weighted, weights, strict=True):
        agreeing = np.where(positive, vector > 0, vector < 0)
        mixed += np.where(agreeing, vector, np.float32(0))
        if normalize:
            divisor += np.where(agreeing, weight, np.float32(0))
    if normalize:
        divisor[divisor == 0] = 1
        mixed = mixed / divisor
    return mixed


def votes(vectors: Sequence[Array], weights: Sequence[np.float32]) -> int:
    """Plus less minus signs of the summed vectors: what decides the majority of the model."""
    total = vectors[0] * weights[0]
    for vector, weight in zip(vectors[1:], weights[1:], strict=True):
        total += vector * weight
    return int((total > 0).sum()) - int((total < 0).sum())
