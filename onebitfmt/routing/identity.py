"""Which base model and which tokenizer: fingerprints that features depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from onebitfmt.checkpoint import Checkpoint, digest, fingerprint
from onebitfmt.errors import CheckpointError
from onebitfmt.parallel import Workers

TOKENIZER: Final = "tokenizer.json"


def base_fingerprint(base: Checkpoint, *, jobs: int | None = None) -> str:
    """The fingerprint of a base model, as in the manifests of its bundles (spec section 7).

    Every tensor is read once, at the speed of BLAKE3 on `jobs` threads (default: all cores).
    """

    def hashed(name: str) -> tuple[str, tuple[str, tuple[int, ...], str]]:
        span, value = base.span(name), digest(base.bits(name))
        base.release(name)
        return name, (span.dtype, span.shape, value)

    with Workers(jobs) as workers:
        return fingerprint(dict(workers.map(hashed, base)))


def tokenizer_file(base: Checkpoint) -> Path:
    """The base model's tokenizer.json. Raises `CheckpointError` where it has none."""
    path = base.folder / TOKENIZER
    if not path.is_file():
        raise CheckpointError(
            f"{base}: no {TOKENIZER}, which these features need; write one with transformers: "
            "AutoTokenizer.from_pretrained(BASE).save_pretrained(BASE), or use --features ngrams"
        )
    return path


def tokenizer_fingerprint(base: Checkpoint) -> str:
    """SHA-256 of the base model's tokenizer.json. Raises `CheckpointError` where it has none."""
    return hashlib.sha256(tokenizer_file(base).read_bytes()).hexdigest()
