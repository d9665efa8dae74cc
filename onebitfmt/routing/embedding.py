"""Features from the base model's embedding matrix alone: the mean embedding of a prompt's tokens.

No torch is needed, and only the rows of the prompts' tokens are ever read from disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebitfmt.checkpoint import Checkpoint, digest
from onebitfmt.codecs.floats import to_float32
from onebitfmt.errors import BaseMismatchError, CheckpointError
from onebitfmt.format.dtypes import HALF_AND_SINGLE
from onebitfmt.groups import layer_group
from onebitfmt.matching import model_order
from onebitfmt.routing.identity import base_fingerprint, tokenizer_fingerprint
from onebitfmt.routing.spec import FeatureSpec
from onebitfmt.routing.tokens import Tokens, token_limit

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class MeanEmbedding:
    """The mean of the embeddings of a prompt's tokens."""

    spec: FeatureSpec
    base: Checkpoint
    tokens: Tokens

    def __call__(self, prompts: Sequence[str]) -> Array:
        """Features of prompts: float32 [n, dimension]; zeros for a prompt without tokens."""
        tensor = self.spec.tensor
        assert tensor is not None
        matrix, dtype = self.base.bits(tensor), self.base.span(tensor).dtype
        features = np.zeros((len(prompts), self.spec.dimension), np.float32)
        for row, ids in zip(features, self.tokens(prompts), strict=True):
            # Tokens added later may have no embedding yet.
            known = [i for i in ids if i < matrix.shape[0]]
            if known:
                values = to_float32(np.ascontiguousarray(matrix[known]), dtype)
                row[:] = values.mean(axis=0, dtype=np.float64)
        return features


def embedding_spec(base: Checkpoint) -> FeatureSpec:
    """The specification of mean-embedding features of a base model. Raises `CheckpointError`."""
    tensor = _embedding_tensor(base)
    return FeatureSpec(
        kind="embedding",
        dimension=base.span(tensor).shape[1],
        base=base_fingerprint(base),
        tokenizer=tokenizer_fingerprint(base),
        max_tokens=token_limit(base),
        tensor=tensor,
        digest=digest(base.bits(tensor)),
    )


def open_embedding(spec: FeatureSpec, base: Checkpoint) -> MeanEmbedding:
    """The features of a specification, from the embedding matrix it names.

    The matrix alone is compared with the one recorded, since nothing else of the base is used.
    Raises `BaseMismatchError`, `CheckpointError`.
    """
    tensor, limit = spec.tensor, spec.max_tokens
    assert tensor is not None
    assert limit is not None
    if (
        tensor not in base
        or base.span(tensor).shape[1:] != (spec.dimension,)
        or base.span(tensor).dtype not in HALF_AND_SINGLE
        or digest(base.bits(tensor)) != spec.digest
    ):
        raise BaseMismatchError(
            f"the router was trained on embedding {tensor!r} of the base with fingerprint "
            f"{str(spec.base)[:12]}, but the base given is {base}, which has no such tensor or "
            f"other values in it; pass the right base, or train the router again "
            f"[{BaseMismatchError.id}]"
        )
    return MeanEmbedding(spec=spec, base=base, tokens=Tokens(base, limit))


def _embedding_tensor(base: Checkpoint) -> str:
    """The token embedding: of the embedding tables the one with as many rows as the vocabulary."""
    tables = [
        name
        for name in model_order(base)
        if layer_group(name, base.span(name).shape) == "embedding"
        and len(base.span(name).shape) == 2
        and base.span(name).dtype in HALF_AND_SINGLE
    ]
    if not tables:
        raise CheckpointError(
            f"{base}: no embedding matrix in F32, F16 or BF16; use --features ngrams or hidden"
        )
    rows = {name: base.span(name).shape[0] for name in tables}
    vocabulary = base.config.get("vocab_size")
    # Position tables can be longer than the vocabulary, so its size counts before length does.
    return max(tables, key=lambda name: (rows[name] == vocabulary, rows[name]))
