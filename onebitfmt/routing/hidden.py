"""Features from the base model itself: the mean of the last hidden states of a prompt's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import BaseMismatchError, CheckpointError, MissingDependencyError
from onebitfmt.routing.identity import base_fingerprint, tokenizer_fingerprint
from onebitfmt.routing.spec import FeatureSpec
from onebitfmt.routing.tokens import Tokens, token_limit

Array = NDArray[Any]

BATCH: Final = 32


@dataclass(kw_only=True)
class HiddenState:
    """The mean over a prompt's tokens of the base model's last hidden state.

    The network is loaded when it is first needed, unless one is given. Calls from several threads
    wait for each other.
    """

    spec: FeatureSpec
    base: Checkpoint
    tokens: Tokens
    network: Any = None
    _lock: Lock = field(default_factory=Lock, repr=False)

    def __call__(self, prompts: Sequence[str]) -> Array:
        """Features of prompts: float32 [n, dimension]; zeros for a prompt without tokens.

        Raises `CheckpointError`, `MissingDependencyError`.
        """
        coded = self.tokens(prompts)
        features = np.zeros((len(prompts), self.spec.dimension), np.float32)
        # Prompts of like length go together, so that little is padded.
        order = sorted((i for i, ids in enumerate(coded) if ids), key=lambda i: len(coded[i]))
        with self._lock:
            if self.network is None and order:
                self.network = _load_network(self.base)
            for start in range(0, len(order), BATCH):
                chosen = order[start : start + BATCH]
                features[chosen] = _means(self.network, [coded[i] for i in chosen])
        return features


def hidden_spec(base: Checkpoint) -> FeatureSpec:
    """The specification of hidden-state features of a base model, all but the dimension (0)."""
    return FeatureSpec(
        kind="hidden",
        dimension=0,
        base=base_fingerprint(base),
        tokenizer=tokenizer_fingerprint(base),
        max_tokens=token_limit(base),
    )


def make_hidden(base: Checkpoint) -> HiddenState:
    """Hidden-state features of a base model, whose network is loaded to learn their number.

    Raises `CheckpointError`, `MissingDependencyError`.
    """
    spec = hidden_spec(base)
    assert spec.max_tokens is not None
    network = _load_network(base)
    dimension = _means(network, [[0]]).shape[1]
    tokens = Tokens(base, spec.max_tokens)
    spec = replace(spec, dimension=dimension)
    return HiddenState(spec=spec, base=base, tokens=tokens, network=network)


def open_hidden(
    spec: FeatureSpec, base: Checkpoint, *, network: Any = None, fingerprint: str | None = None
) -> HiddenState:
    """The features of a specification, from the base model it names.

    `network` is the base model where it is loaded already, `fingerprint` the base's where it is
    known. Raises `BaseMismatchError`, `CheckpointError`.
    """
    found = fingerprint or base_fingerprint(base)
    if found != spec.base:
        raise BaseMismatchError(
            f"the router was trained on the base with fingerprint {str(spec.base)[:12]}, but the "
            f"base given is {base} (fingerprint {found[:12]}); pass the right base, or train the "
            f"router again [{BaseMismatchError.id}]"
        )
    assert spec.max_tokens is not None
    tokens = Tokens(base, spec.max_tokens)
    return HiddenState(spec=spec, base=base, tokens=tokens, network=network)


def _load_network(base: Checkpoint) -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingDependencyError("transformers", "transformers") from None
    factory = _architecture(transformers, base)
    try:
        # "auto" is the dtype of the checkpoint: the base is often as large as memory allows.
        network = factory.from_pretrained(str(base.folder), dtype="auto")
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise CheckpointError(
            f"{base}: transformers cannot load it ({e}); use --features embedding or ngrams"
        ) from None
    return network.eval()


def _architecture(transformers: Any, base: Checkpoint) -> Any:
    """The class that the checkpoint names, so that no tensor is unexpected; else AutoModel."""
    names = base.config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    known = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if known else transformers.AutoModel


def _means(network: Any, coded: Sequence[Sequence[int]]) -> Array:
    """Mean last hidden states of token lists, none empty: float32 [n, dimension]."""
    try:
        import torch
    except ImportError:
        raise MissingDependencyError("torch", "transformers") from None
    longest = max(map(len, coded))
    ids = torch.zeros(len(coded), longest, dtype=torch.long)
    mask = torch.zeros(len(coded), longest, dtype=torch.long)
    for i, row in enumerate(coded):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    encoding = bool(getattr(network.config, "is_encoder_decoder", False))
    body = network.get_encoder() if encoding else network.base_model
    device = next(network.parameters()).device
    options: dict[str, Any] = {} if encoding else {"use_cache": False}
    with torch.inference_mode():
        told = body(input_ids=ids.to(device), attention_mask=mask.to(device), **options)
        states = told.last_hidden_state.float()
        shares = mask.to(device)[:, :, None] / mask.to(device).sum(dim=1)[:, None, None]
        means = (states * shares).sum(dim=1)
    found: Array = means.cpu().numpy()
    return found
