"""Prompts with the name of the expert that should answer them, and how they are split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import numpy as np

from onebitfmt.errors import UsageError
from onebitfmt.routing.names import is_expert_name

MAX_LINE_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A prompt and the name of its expert."""

    prompt: str
    label: str


def read_examples(path: str | Path) -> list[Example]:
    """The examples of a JSONL file: one object {"prompt": ..., "label": ...} a line.

    Other fields are ignored, and so are blank lines. Raises `UsageError` with the number of the
    first line that is not such an object, and where there is none at all.
    """
    source = Path(path)
    if not source.is_file():
        raise UsageError(f"{source}: no such file; prompts are read from a JSONL file")
    examples = []
    with source.open("rb") as f:
        number = 0
        # A line is never read whole before its length is known.
        while line := f.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                _refuse(source, number, f"longer than {MAX_LINE_BYTES} bytes")
            if line.strip():
                examples.append(_example(source, number, line))
    if not examples:
        raise UsageError(f"{source}: no examples in this file")
    return examples


def _refuse(path: Path, number: int, problem: str) -> NoReturn:
    form = '{"prompt": "...", "label": "EXPERT"}'
    raise UsageError(f"{path}:{number}: {problem}; a line is {form}")


def _example(path: Path, number: int, line: bytes) -> Example:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        _refuse(path, number, "not UTF-8")
    # Deep nesting ends the parser with a RecursionError, which is no ValueError.
    except (ValueError, RecursionError):
        _refuse(path, number, "not JSON")
    if not isinstance(value, dict):
        _refuse(path, number, "not an object")
    for field in ("prompt", "label"):
        if field not in value:
            _refuse(path, number, f"no field {field!r}")
        if not isinstance(value[field], str):
            _refuse(path, number, f"{field!r} is not a string")
    prompt, label = value["prompt"], value["label"]
    if not prompt.strip():
        _refuse(path, number, "the prompt is empty")
    if not is_expert_name(label):
        _refuse(path, number, f"{label!r} is not a name of an expert")
    return Example(prompt=prompt, label=label)


def without_duplicates(examples: Sequence[Example]) -> list[Example]:
    """The examples, each kept once: a copy in the held-out part would flatter the router."""
    return list(dict.fromkeys(examples))


def split(
    examples: Sequence[Example], held_out: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """A part to train on and a held-out part, with the same share of each label in both.

    Both parts have at least one example of each label. Raises `UsageError` where a label has fewer
    than two, there are fewer than two labels, or `held_out` is no share between 0 and 1.
    """
    if not 0 < held_out < 1:
        raise UsageError(f"the held-out share is between 0 and 1, not {held_out}")
    by_label: dict[str, list[Example]] = {}
    for example in examples:
        by_label.setdefault(example.label, []).append(example)
    if len(by_label) < 2:
        raise UsageError("a router needs examples of two or more experts")
    training: list[Example] = []
    kept: list[Example] = []
    for i, label in enumerate(sorted(by_label)):
        own = by_label[label]
        if len(own) < 2:
            raise UsageError(f"expert {label!r} has one example only; two or more are needed")
        count = min(max(1, round(held_out * len(own))), len(own) - 1)
        # A stream of its own for each label: more of one leaves the split of the others alone.
        order = np.random.default_rng([seed, i]).permutation(len(own))
        kept += [own[j] for j in order[:count]]
        training += [own[j] for j in order[count:]]
    return training, kept
