from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from onebitfmt.routing.ngrams import MAX_CHARACTERS, CharacterNGrams, ngram_spec

M = 2**64 - 1


def slowly(prompt: str, dimension: int, sizes: tuple[int, ...]) -> list[float]:
    """The features by the words of the docstring, in integers of Python."""
    codes = [2, *map(ord, prompt[:MAX_CHARACTERS]), 3]
    counts = [0] * dimension
    for size in sizes:
        for i in range(len(codes) - size + 1):
            value = size
            for code in codes[i : i + size]:
                value = (value ^ code) * 0x100000001B3 & M
            value = (value ^ value >> 32) * 0xBF58476D1CE4E5B9 & M
            counts[(value ^ value >> 29) % dimension] += 1
    total = max(1, sum(counts))
    return [sqrt(n / total) for n in counts]


@pytest.mark.parametrize("prompt", ["", "a", "47+38=", "größer 漢字 🙂", "\ud800 alone", "x" * 300])
@pytest.mark.parametrize(("dimension", "sizes"), [(4096, (1, 2, 3)), (7, (2, 5))])
def test_features_are_those_of_plain_integers(
    prompt: str, dimension: int, sizes: tuple[int, ...]
) -> None:
    found = CharacterNGrams(spec=ngram_spec(dimension, sizes))([prompt])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [slowly(prompt, dimension, sizes)], rtol=1e-6)


def test_length_is_one_and_rows_are_independent() -> None:
    features = CharacterNGrams(spec=ngram_spec())
    prompts = ["one", "two", "three"]
    together = features(prompts)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)
    for row, prompt in zip(together, prompts, strict=True):
        np.testing.assert_array_equal(row, features([prompt])[0])


def test_long_prompts_are_cut() -> None:
    features = CharacterNGrams(spec=ngram_spec())
    cut = features(["a" * MAX_CHARACTERS])
    np.testing.assert_array_equal(cut, features(["a" * MAX_CHARACTERS + "b"]))


def test_no_prompts_no_rows() -> None:
    assert CharacterNGrams(spec=ngram_spec())([]).shape == (0, 4096)
