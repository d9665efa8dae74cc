"""The closed table of features: how prompts become vectors that a router can tell apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import BaseMismatchError, UsageError
from onebitfmt.routing.embedding import embedding_spec, open_embedding
from onebitfmt.routing.hidden import make_hidden, open_hidden
from onebitfmt.routing.identity import tokenizer_fingerprint
from onebitfmt.routing.ngrams import CharacterNGrams, ngram_spec
from onebitfmt.routing.spec import FeatureSpec

Array = NDArray[Any]


class Featurizer(Protocol):
    """Gives features of prompts, as its specification says."""

    @property
    def spec(self) -> FeatureSpec:
        """What the features are."""

    def __call__(self, prompts: Sequence[str]) -> Array:
        """Features of prompts: float32 [n, spec.dimension]."""


def _make_embedding(base: Checkpoint) -> Featurizer:
    return open_embedding(embedding_spec(base), base)


# How each kind that reads the base model is made anew.
_MAKERS: Final[Mapping[str, Callable[[Checkpoint], Featurizer]]] = MappingProxyType(
    {"hidden": make_hidden, "embedding": _make_embedding}
)

FEATURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "hidden": "mean last hidden state of the base model (needs transformers)",
        "embedding": "mean token embedding of the base model",
        "ngrams": "hashed character n-grams (needs no model)",
    }
)


def needs_base(kind: str) -> bool:
    """True for features that read the base model. Raises `UsageError` for an unknown kind."""
    if kind not in FEATURES:
        raise UsageError(f"unknown features {kind!r}; the features are {', '.join(FEATURES)}")
    return kind in _MAKERS


def make_featurizer(kind: str, base: Checkpoint | None = None) -> Featurizer:
    """Features of a kind, to train a router on.

    `base` is needed by all kinds but `ngrams`. Raises `UsageError`, `CheckpointError`,
    `MissingDependencyError`.
    """
    if not needs_base(kind):
        return CharacterNGrams(spec=ngram_spec())
    return _MAKERS[kind](_needed(kind, base))


def open_featurizer(
    spec: FeatureSpec,
    base: Checkpoint | None = None,
    *,
    network: Any = None,
    fingerprint: str | None = None,
) -> Featurizer:
    """The features that a router was trained on, for routing.

    `network` is a transformers model that holds the base's weights already, and `fingerprint` the
    base's where the caller knows it; both save time only. Raises `UsageError` where a base is
    needed and none given, and `BaseMismatchError` for another base or tokenizer.
    """
    if not needs_base(spec.kind):
        return CharacterNGrams(spec=spec)
    given = _needed(spec.kind, base)
    _check_tokenizer(spec, given)
    if spec.kind == "embedding":
        return open_embedding(spec, given)
    return open_hidden(spec, given, network=network, fingerprint=fingerprint)


def _needed(kind: str, base: Checkpoint | None) -> Checkpoint:
    if base is None:
        raise UsageError(f"features {kind!r} are taken from the base model; pass it with --base")
    return base


def _check_tokenizer(spec: FeatureSpec, base: Checkpoint) -> None:
    found = tokenizer_fingerprint(base)
    if found != spec.tokenizer:
        raise BaseMismatchError(
            f"the router was trained with the tokenizer of SHA-256 {str(spec.tokenizer)[:12]}, "
            f"but that of {base} has {found[:12]}; pass the right base, or train the router again "
            f"[{BaseMismatchError.id}]"
        )
