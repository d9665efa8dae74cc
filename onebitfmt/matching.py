"""Which base tensor belongs to which tensor of an expert: prefixes, tied heads, resized tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import CheckpointError
from onebitfmt.format.dtypes import HALF_AND_SINGLE
from onebitfmt.format.safetensors import Span

# Under this share of matching names the two are taken for unrelated models.
_MIN_SHARE: Final = 0.5
_DIGITS: Final = re.compile(r"(\d+)")


def model_order(names: Iterable[str]) -> list[str]:
    """Names in natural order: runs of digits compare as numbers, so that layer 2 precedes 10."""
    return sorted(names, key=natural_key)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key in which runs of digits compare as numbers."""
    parts = _DIGITS.split(name)
    return tuple((1, int(p), p) if i % 2 else (0, 0, p) for i, p in enumerate(parts))


def match_names(
    base: Checkpoint, expert: Checkpoint, embeddings: Iterable[str] = ()
) -> dict[str, str | None]:
    """For each expert tensor the base tensor that predicts it, or None.

    Equal names match; else names that differ by a prefix which one side has throughout (`model.`,
    `bert.`); else a head whose base is tied is predicted by the base's embedding. `embeddings` are
    the expert's embedding tensors. Raises `CheckpointError` where fewer than half the names match.
    """
    prefixed = _prefixed(list(base), list(expert))
    matches: dict[str, str | None] = {}
    for name in expert:
        candidate = name if name in base else prefixed.get(name)
        matches[name] = candidate
    found = sum(m is not None for m in matches.values())
    if found < _MIN_SHARE * len(matches):
        raise CheckpointError(
            f"{expert} is not a fine-tune of {base}: {found} of its {len(matches)} tensor names "
            f"are in the base (for example it has {next(iter(expert), None)!r}, the base "
            f"{next(iter(base), None)!r})"
        )
    # In model order, so that the layout of the expert's files does not decide.
    by_shape: dict[tuple[int, ...], str | None] = {}
    for embedding in model_order(embeddings):
        if matches.get(embedding):
            by_shape.setdefault(expert.span(embedding).shape, matches[embedding])
    for name, candidate in matches.items():
        if candidate is None and _is_head(name):
            matches[name] = by_shape.get(expert.span(name).shape)
    return _usable(base, expert, matches)


def _is_head(name: str) -> bool:
    return name.endswith(("lm_head.weight", "embed_out.weight", "decoder.weight"))


def _usable(
    base: Checkpoint, expert: Checkpoint, matches: Mapping[str, str | None]
) -> dict[str, str | None]:
    return {
        name: m if m is not None and predicts(base.span(m), expert.span(name)) else None
        for name, m in matches.items()
    }


def predicts(base: Span, expert: Span) -> bool:
    """True where the format lets the base tensor predict the other (spec section 4.6)."""
    convertible = base.dtype == expert.dtype or {base.dtype, expert.dtype} <= HALF_AND_SINGLE
    return convertible and len(base.shape) == len(expert.shape)


def _prefixed(base: list[str], expert: list[str]) -> dict[str, str]:
    """Expert name to base name under the one prefix, on either side, that matches most names."""
    known = set(base)
    best: dict[str, str] = {}
    for prefix in sorted({name.split(".")[0] + "." for name in base + expert if "." in name}):
        added = {name: prefix + name for name in expert if prefix + name in known}
        removed = {
            name: name.removeprefix(prefix)
            for name in expert
            if name.startswith(prefix) and name.removeprefix(prefix) in known
        }
        best = max(best, added, removed, key=len)
    return best


def tied_tensors(expert: Checkpoint, groups: Mapping[str, str]) -> dict[str, str]:
    """Heads that hold the same bytes as an embedding: head name to embedding name."""
    embeddings = [n for n in model_order(expert) if groups[n] == "embedding"]
    heads = [n for n in model_order(expert) if groups[n] == "head"]
    tied = {}
    for head in heads:
        for embedding in embeddings:
            if _same_kind(expert.span(head), expert.span(embedding)) and _equal(
                expert, head, embedding
            ):
                tied[head] = embedding
                break
    return tied


def _same_kind(a: Span, b: Span) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and len(a.shape) >= 2


def _equal(checkpoint: Checkpoint, a: str, b: str) -> bool:
    x, y = checkpoint.bits(a), checkpoint.bits(b)
    # Row by row: unlike tensors differ in the first, and nothing large is built for the others.
    return all((x[i] == y[i]).all() for i in range(x.shape[0]))
