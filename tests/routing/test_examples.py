from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from onebitfmt.errors import UsageError
from onebitfmt.routing.examples import (
    MAX_LINE_BYTES,
    Example,
    read_examples,
    split,
    without_duplicates,
)

GOOD = b'{"prompt": "p", "label": "l"}'


def test_lines_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(GOOD + b'\r\n\n  \n{"label": "x-1", "id": 0.5, "prompt": "\\u00e4\\n"}')
    assert read_examples(path) == [
        Example(prompt="p", label="l"),
        Example(prompt="ä\n", label="x-1"),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not an object"),
        (b'{"label": "l"}', "no field 'prompt'"),
        (b'{"prompt": "p"}', "no field 'label'"),
        (b'{"prompt": 1, "label": "l"}', "'prompt' is not a string"),
        (b'{"prompt": "p", "label": null}', "'label' is not a string"),
        (b'{"prompt": " ", "label": "l"}', "the prompt is empty"),
        (b'{"prompt": "p", "label": ""}', "not a name"),
        (b'{"prompt": "p", "label": "../x"}', "not a name"),
        (b" " * (MAX_LINE_BYTES + 1), "longer than"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD)
    with pytest.raises(UsageError, match=rf"d\.jsonl:3: .*{problem}"):
        read_examples(path)


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_examples(tmp_path / "d.jsonl")
    (tmp_path / "d.jsonl").write_bytes(b"\n")
    with pytest.raises(UsageError, match="no examples"):
        read_examples(tmp_path / "d.jsonl")


def many(**counts: int) -> list[Example]:
    return [Example(prompt=f"{k} {i}", label=k) for k, n in counts.items() for i in range(n)]


def test_the_split_is_stratified_seeded_and_whole() -> None:
    examples = many(a=100, b=10, c=2)
    training, kept = split(examples, 0.2, 7)
    assert Counter(e.label for e in kept) == {"a": 20, "b": 2, "c": 1}
    assert Counter(training + kept) == Counter(examples)
    assert split(examples, 0.2, 7) == (training, kept)
    assert split(examples, 0.2, 8) != (training, kept)
    # Every label keeps one to train on, however much is held out.
    assert {e.label for e in split(examples, 0.99, 7)[0]} == {"a", "b", "c"}


def test_more_of_one_label_leaves_the_others_alone() -> None:
    few, more = split(many(a=10, b=10), 0.3, 1)[1], split(many(a=10, b=20), 0.3, 1)[1]
    assert [e for e in few if e.label == "a"] == [e for e in more if e.label == "a"]


@pytest.mark.parametrize("held_out", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_is_between_0_and_1(held_out: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        split(many(a=9, b=9), held_out, 0)


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(UsageError, match="two or more experts"):
        split(many(a=9), 0.2, 0)
    with pytest.raises(UsageError, match="'b' has one example"):
        split(many(a=9, b=1), 0.2, 0)


def test_copies_are_dropped_and_order_is_kept() -> None:
    a, b = many(a=2)
    assert without_duplicates([b, a, b, a]) == [b, a]
