"""What the features of a router are, exactly: a record that is stored with the router.

Two feature specifications that are equal give the same features for the same prompt, so a router
is only ever used with the features it was trained on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from onebitfmt.format.strict_json import Cursor

MAX_DIMENSION: Final = 1 << 20
MAX_TOKENS: Final = 1 << 20
MAX_SIZE: Final = 16

# The fields that a specification of each kind has, besides its kind and dimension.
_FIELDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "hidden": ("base", "tokenizer", "max_tokens"),
        "embedding": ("base", "tokenizer", "max_tokens", "tensor", "digest"),
        "ngrams": ("sizes",),
    }
)
_ID: Final = "OBD-ROUTER-SPEC"
_HEX64: Final = re.compile(r"[0-9a-f]{64}")

KINDS: Final = tuple(_FIELDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSpec:
    """A kind of features, their number, and all that decides their values.

    `base` is the base model's fingerprint and `tokenizer` the SHA-256 of its tokenizer.json, both
    in hexadecimal; prompts count up to `max_tokens` tokens. `tensor` and `digest` (BLAKE3) are the
    embedding matrix of kind `embedding`, `sizes` the lengths of the n-grams of kind `ngrams`.
    Fields that a kind does not use are None or empty.
    """

    kind: str
    dimension: int
    base: str | None = None
    tokenizer: str | None = None
    max_tokens: int | None = None
    tensor: str | None = None
    digest: str | None = None
    sizes: tuple[int, ...] = ()


def dump_spec(spec: FeatureSpec) -> dict[str, Any]:
    """The specification as a JSON object."""
    fields = {name: getattr(spec, name) for name in _FIELDS[spec.kind]}
    if "sizes" in fields:
        fields["sizes"] = list(spec.sizes)
    return {"kind": spec.kind, "dimension": spec.dimension, **fields}


def load_spec(cursor: Cursor) -> FeatureSpec:
    """The specification in a JSON object from a stranger. Raises `FormatError`."""
    head = dict(cursor.entries())
    kind = head["kind"].string() if "kind" in head else ""
    if kind not in _FIELDS:
        cursor.fail(_ID, f"features of kind {kind!r} are unknown; known are {', '.join(KINDS)}")
    f = cursor.fields(f"kind dimension {' '.join(_FIELDS[kind])}")
    return FeatureSpec(
        kind=kind,
        dimension=_number(f["dimension"], MAX_DIMENSION),
        base=_hex64(f.get("base")),
        tokenizer=_hex64(f.get("tokenizer")),
        max_tokens=_number(f["max_tokens"], MAX_TOKENS) if "max_tokens" in f else None,
        tensor=f["tensor"].string() if "tensor" in f else None,
        digest=_hex64(f.get("digest")),
        sizes=_sizes(f["sizes"]) if "sizes" in f else (),
    )


def _number(cursor: Cursor, largest: int) -> int:
    value = cursor.integer()
    if not 1 <= value <= largest:
        cursor.fail(_ID, f"{value} is not in 1 to {largest}")
    return value


def _hex64(cursor: Cursor | None) -> str | None:
    if cursor is None:
        return None
    text = cursor.string()
    if not _HEX64.fullmatch(text):
        cursor.fail(_ID, "expected 64 lower-case hexadecimal digits")
    return text


def _sizes(cursor: Cursor) -> tuple[int, ...]:
    sizes = tuple(_number(c, MAX_SIZE) for c in cursor.items())
    if not sizes or list(sizes) != sorted(set(sizes)):
        cursor.fail(_ID, "the sizes of n-grams must ascend, and be one or more")
    return sizes
