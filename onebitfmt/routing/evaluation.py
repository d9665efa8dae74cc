"""How well a router tells prompts apart: confusion, likelihood, calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_BINS: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The marks of a router on prompts whose experts are known.

    `confusion[i][j]` counts prompts of label i that were routed to label j. `nll` is the mean
    negative log-likelihood in nats, `calibration_error` the expected difference of confidence and
    accuracy over ten bins of confidence (Guo et al. 2017, arXiv 1706.04599).
    """

    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    nll: float
    calibration_error: float

    @property
    def examples(self) -> int:
        """The number of prompts."""
        return sum(map(sum, self.confusion))

    @property
    def accuracy(self) -> float:
        """The share of prompts that were routed to their own expert."""
        right = sum(row[i] for i, row in enumerate(self.confusion))
        return right / max(1, self.examples)

    @property
    def recall(self) -> Mapping[str, float]:
        """The accuracy on the prompts of each label; labels without prompts are left out."""
        return {
            label: row[i] / sum(row)
            for i, (label, row) in enumerate(zip(self.labels, self.confusion, strict=True))
            if any(row)
        }


def evaluate(labels: tuple[str, ...], probabilities: Array, classes: Array) -> Evaluation:
    """Mark probabilities [n, K] against the right classes [n]."""
    count = len(labels)
    told = probabilities.astype(np.float64)
    chosen = told.argmax(axis=1)
    confusion = np.bincount(classes * count + chosen, minlength=count * count)
    likelihood = np.maximum(told[np.arange(len(classes)), classes], np.finfo(np.float32).tiny)
    return Evaluation(
        labels=labels,
        confusion=tuple(tuple(map(int, row)) for row in confusion.reshape(count, count)),
        nll=-float(np.log(likelihood).mean()),
        calibration_error=_calibration_error(told.max(axis=1), chosen == classes),
    )


def _calibration_error(confidence: Array, right: Array) -> float:
    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    error = 0.0
    for i in range(_BINS):
        inside = bins == i
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return float(error)
