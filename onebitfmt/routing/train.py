"""Train a router on prompts with labels: a convex fit, or a small network; then calibrate it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onebitfmt.errors import UsageError
from onebitfmt.routing.evaluation import Evaluation, evaluate
from onebitfmt.routing.examples import Example, split, without_duplicates
from onebitfmt.routing.features import Featurizer
from onebitfmt.routing.minimise import golden_section, minimise
from onebitfmt.routing.names import MAX_EXPERTS, is_expert_name
from onebitfmt.routing.network import (
    Layer,
    flatten,
    initial,
    log_softmax,
    logits,
    loss,
    unflatten,
)
from onebitfmt.routing.router import Router

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of classifier: units between its layers (none: softmax regression), weight decay."""

    units: tuple[int, ...]
    decay: float


KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {"softmax": Kind(units=(), decay=1e-3), "mlp": Kind(units=(32,), decay=1e-3)}
)

_TEMPERATURES: Final = (0.02, 50.0)
# Features that hardly vary are not blown up to the size of the others.
_SCALE_FLOOR: Final = 0.1


def train_router(
    examples: Sequence[Example],
    featurizer: Featurizer,
    *,
    kind: str = "softmax",
    seed: int = 0,
    held_out: float = 0.2,
) -> Router:
    """A router for the labels of the examples, trained on the share that is not held out.

    Copies of an example are dropped first. The held-out share, stratified by label, sets the
    temperature and gives the metrics. Equal input gives equal weights. Raises `UsageError`.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown kind {kind!r}; the kinds are {', '.join(KINDS)}")
    own = without_duplicates(examples)
    training, kept = split(own, held_out, seed)
    labels = tuple(sorted({example.label for example in own}))
    _check_labels(labels)
    layers = _fit(_features(featurizer, training), _classes(training, labels), len(labels),
                  KINDS[kind], seed)  # fmt: skip
    features, classes = _features(featurizer, kept), _classes(kept, labels)
    temperature = calibrate(logits(layers, features), classes)
    router = Router(
        labels=labels, spec=featurizer.spec, layers=layers, temperature=temperature, metrics={}
    )
    marks = evaluate(labels, router.probabilities(features), classes)
    metrics = _metrics(marks) | {
        "kind": kind,
        "seed": seed,
        "train": len(training),
        "duplicates": len(examples) - len(own),
    }
    return Router(
        labels=labels, spec=featurizer.spec, layers=layers, temperature=temperature,
        metrics=metrics,
    )  # fmt: skip


def evaluate_router(
    router: Router, featurizer: Featurizer, examples: Sequence[Example]
) -> Evaluation:
    """Mark a router on examples. Raises `UsageError` where one has a label it does not know."""
    unknown = sorted({e.label for e in examples} - set(router.labels))
    if unknown:
        known = ", ".join(router.labels)
        raise UsageError(f"label {unknown[0]!r} is not one of the router's: {known}")
    told = router.route([e.prompt for e in examples], featurizer)
    rows = [[d.probabilities.get(label, 0.0) for label in router.labels] for d in told]
    return evaluate(router.labels, np.array(rows), _classes(examples, router.labels))


def calibrate(scores: Array, classes: Array) -> float:
    """The temperature that makes scores [n, K] most likely given the classes [n].

    The right class counts (n + 1)/(n + K) and each other 1/(n + K), by Laplace's rule of
    succession, so that n right answers never become certainty.
    """
    count, width = scores.shape
    wanted = np.full(scores.shape, 1 / (count + width))
    wanted[np.arange(count), classes] = (count + 1) / (count + width)

    def nll(logarithm: float) -> float:
        return -float((wanted * log_softmax(scores / np.exp(logarithm))).sum(axis=1).mean())

    low, high = np.log(_TEMPERATURES)
    # Rounded as it is stored, so that the metrics are those of the stored router.
    return float(np.float32(np.exp(golden_section(nll, float(low), float(high)))))


def _check_labels(labels: Sequence[str]) -> None:
    if len(labels) > MAX_EXPERTS:
        raise UsageError(f"{len(labels)} labels; a router has at most {MAX_EXPERTS}")
    for label in labels:
        if not is_expert_name(label):
            raise UsageError(
                f"{label!r} is not a name of an expert: letters, digits, '.', '_', '-'"
            )


def _features(featurizer: Featurizer, examples: Sequence[Example]) -> Array:
    features = featurizer([example.prompt for example in examples])
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise UsageError(
            f"the features of {examples[row].prompt[:40]!r} are not finite; the base model "
            "overflows in its dtype: use other features"
        )
    return features


def _classes(examples: Sequence[Example], labels: Sequence[str]) -> Array:
    number = {label: i for i, label in enumerate(labels)}
    return np.array([number[example.label] for example in examples])


def _fit(features: Array, classes: Array, count: int, kind: Kind, seed: int) -> tuple[Layer, ...]:
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = features.std(axis=0, dtype=np.float64)
    # Buckets and dimensions that never vary say nothing; without them the fit is faster.
    used = np.flatnonzero(deviation > 0)
    scale = np.maximum(deviation[used], _SCALE_FLOOR * deviation[used].mean() if used.size else 1)
    inputs = (features[:, used] - mean[used]) / scale
    sizes = (used.size, *kind.units, count)

    def objective(vector: Array) -> tuple[float, Array]:
        value, gradient = loss(unflatten(vector, sizes), inputs, classes, kind.decay)
        return value, flatten(gradient)

    layers = unflatten(minimise(objective, flatten(initial(sizes, seed))), sizes)
    weight, bias = layers[0]
    # The standardisation becomes part of the first layer.
    whole = np.zeros((weight.shape[0], features.shape[1]))
    whole[:, used] = weight / scale
    first = (whole, bias - whole @ mean)
    return tuple((w.astype(np.float32), b.astype(np.float32)) for w, b in [first, *layers[1:]])


def _metrics(marks: Evaluation) -> dict[str, Any]:
    """Marks as values of strict JSON, which has no fractions: these are decimal strings."""
    return {
        "held_out": marks.examples,
        "accuracy": f"{marks.accuracy:.6f}",
        "confusion": [list(row) for row in marks.confusion],
        "nll": f"{marks.nll:.6f}",
        "calibration_error": f"{marks.calibration_error:.6f}",
    }
