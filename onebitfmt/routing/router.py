"""A trained router: features of a prompt to probabilities over experts, and what follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebitfmt.errors import UsageError
from onebitfmt.routing import router_file
from onebitfmt.routing.features import Featurizer
from onebitfmt.routing.network import Layer, log_softmax, logits
from onebitfmt.routing.spec import FeatureSpec

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Which expert answers a prompt, and why.

    `expert` is None for the static merge of all experts. `probabilities` are over all experts,
    empty where the router was not asked. `weights` are the shares of the experts to use, sum 1:
    one expert alone, the best few, or none at all for the static merge.
    """

    expert: str | None
    probabilities: Mapping[str, float]
    reason: str
    weights: Mapping[str, float] = field(default_factory=dict)


def explicit(expert: str) -> Decision:
    """The decision of someone who asks for an expert by name."""
    return Decision(expert=expert, probabilities={}, reason="asked for", weights={expert: 1.0})


@dataclass(frozen=True, kw_only=True)
class Router:
    """A classifier of prompts.

    `layers` are (weight float32 [out, in], bias float32 [out]), one of them or two with tanh
    between; `temperature` divides their scores. `metrics` are values of strict JSON: integers,
    lists, and decimal numbers as strings.
    """

    labels: tuple[str, ...]
    spec: FeatureSpec
    layers: tuple[Layer, ...]
    temperature: float
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def probabilities(self, features: Array) -> Array:
        """Probabilities of the labels, float32 [n, K], of features float32 [n, d].

        Rows of features that are not finite give NaN. Raises `UsageError` for another d.
        """
        if features.ndim != 2 or features.shape[1] != self.spec.dimension:
            shape = list(features.shape)
            raise UsageError(f"the router takes {self.spec.dimension} features, not {shape}")
        with np.errstate(invalid="ignore", over="ignore"):
            scores = logits(self.layers, features) / self.temperature
            scores[~np.isfinite(scores).all(axis=1)] = np.nan
            return np.exp(log_softmax(scores)).astype(np.float32)

    def route(
        self,
        prompts: Sequence[str],
        featurizer: Featurizer,
        *,
        top: int = 1,
        min_confidence: float = 0.0,
    ) -> list[Decision]:
        """A decision for each prompt: the most probable expert, the first of equals.

        `top` experts share the weights, in proportion to their probabilities; all of them make
        soft routing. Where the best has less than `min_confidence`, the decision is the static
        merge. Raises `UsageError` for other features than those of the router or bad options.
        """
        if featurizer.spec != self.spec:
            raise UsageError(
                f"the router was trained on other features ({self.spec.kind}) than those given "
                f"({featurizer.spec.kind}); open them with open_featurizer(router.spec, base)"
            )
        if top < 1:
            raise UsageError(f"top is a number of experts, 1 or more, not {top}")
        if not 0.0 <= min_confidence <= 1.0:
            raise UsageError(f"min_confidence is a probability, not {min_confidence}")
        told = self.probabilities(featurizer(prompts))
        return [self._decide(row, top, min_confidence) for row in told]

    def _decide(self, row: Array, top: int, min_confidence: float) -> Decision:
        probabilities = dict(zip(self.labels, map(float, row), strict=True))
        if not np.isfinite(row).all():
            reason = "features are not finite: static merge of all experts"
            return Decision(expert=None, probabilities={}, reason=reason)
        # A stable sort: of equals the first label wins, on every machine.
        order = np.argsort(-row, kind="stable")
        best = self.labels[order[0]]
        confidence = probabilities[best]
        if confidence < min_confidence:
            reason = (
                f"{best} has {confidence:.3f}, below {min_confidence:.3f}: "
                "static merge of all experts"
            )
            return Decision(expert=None, probabilities=probabilities, reason=reason)
        chosen = [self.labels[i] for i in order[:top]]
        total = sum(probabilities[name] for name in chosen)
        return Decision(
            expert=best,
            probabilities=probabilities,
            reason=f"router: {best} {confidence:.3f}",
            weights={name: probabilities[name] / total for name in chosen},
        )

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the router to a safetensors file; equal routers give equal bytes.

        Raises `OutputError`, and `UsageError` for a router that could not be read again.
        """
        stored = router_file.Stored(
            labels=self.labels,
            spec=self.spec,
            layers=self.layers,
            temperature=self.temperature,
            metrics=self.metrics,
        )
        router_file.save(Path(path), stored, overwrite=overwrite)

    @staticmethod
    def load(path: str | Path) -> Router:
        """Read a router from a file, whoever wrote it. Raises `FormatError`."""
        stored = router_file.load(Path(path))
        return Router(
            labels=stored.labels,
            spec=stored.spec,
            layers=stored.layers,
            temperature=stored.temperature,
            metrics=stored.metrics,
        )
