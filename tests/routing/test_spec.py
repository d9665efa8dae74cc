from __future__ import annotations

from typing import Any

import pytest

from onebitfmt.errors import FormatError
from onebitfmt.format.strict_json import Cursor
from onebitfmt.routing.spec import KINDS, FeatureSpec, dump_spec, load_spec

X = "0" * 64
SPECS = (
    FeatureSpec(kind="hidden", dimension=128, base=X, tokenizer=X, max_tokens=512),
    FeatureSpec(
        kind="embedding", dimension=1, base=X, tokenizer=X, max_tokens=1, tensor="e", digest=X
    ),
    FeatureSpec(kind="ngrams", dimension=4096, sizes=(1, 2, 3)),
)


def read(value: Any) -> FeatureSpec:
    return load_spec(Cursor(value=value, path="spec"))


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.kind)
def test_what_is_written_is_read(spec: FeatureSpec) -> None:
    assert read(dump_spec(spec)) == spec


def test_every_kind_is_here() -> None:
    assert {s.kind for s in SPECS} == set(KINDS)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.kind)
def test_a_missing_or_unknown_field_is_refused(spec: FeatureSpec) -> None:
    value = dump_spec(spec)
    for key in value:
        with pytest.raises(FormatError):
            read({k: v for k, v in value.items() if k != key})
    with pytest.raises(FormatError, match="unknown"):
        read(value | {"more": 1})


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, {"dimension": 0}),
        (0, {"dimension": 2**21}),
        (0, {"dimension": True}),
        (0, {"base": "0" * 63}),
        (0, {"base": "G" * 64}),
        (0, {"base": None}),
        (0, {"max_tokens": 0}),
        (1, {"tensor": 3}),
        (1, {"digest": "x"}),
        (2, {"sizes": []}),
        (2, {"sizes": [2, 1]}),
        (2, {"sizes": [1, 1]}),
        (2, {"sizes": [0]}),
        (2, {"sizes": [17]}),
        (2, {"sizes": "12"}),
        (2, {"kind": "words"}),
        (2, {"kind": 1}),
    ],
)
def test_bad_values_are_refused(number: int, change: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        read(dump_spec(SPECS[number]) | change)


@pytest.mark.parametrize("value", [[], "ngrams", 1, None, {}])
def test_what_is_no_specification_is_refused(value: Any) -> None:
    with pytest.raises(FormatError):
        read(value)
