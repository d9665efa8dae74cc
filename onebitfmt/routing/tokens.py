"""Prompts as token ids, by the base model's own tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import CheckpointError, MissingDependencyError
from onebitfmt.routing.identity import tokenizer_file

MAX_TOKENS: Final = 512
"""Tokens of a prompt that count by default: a task shows in its beginning."""

_POSITIONS: Final = ("max_position_embeddings", "n_positions", "max_seq_len")


class Tokens:
    """The tokenizer of a base model; prompts are cut after `max_tokens` tokens."""

    def __init__(self, base: Checkpoint, max_tokens: int) -> None:
        """Load tokenizer.json. Raises `CheckpointError`, `MissingDependencyError`."""
        path = tokenizer_file(base)
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise MissingDependencyError("tokenizers", "transformers") from None
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
        # The package raises bare Exception for all that can be wrong with the file.
        except Exception as e:
            raise CheckpointError(f"{path}: not a tokenizer that can be read: {e}") from None
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)

    def __call__(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, special tokens included as the model expects them."""
        # Lone surrogates have no UTF-8 form, which the tokenizer needs.
        clean = [p.encode("utf-8", "replace").decode("utf-8") for p in prompts]
        return [list(coded.ids) for coded in self._tokenizer.encode_batch(clean)]


def token_limit(base: Checkpoint) -> int:
    """How many tokens of a prompt to use: 512, or as many as the base model has positions."""
    known = [base.config.get(key) for key in _POSITIONS]
    return min([MAX_TOKENS, *(n for n in known if isinstance(n, int) and n > 0)])
