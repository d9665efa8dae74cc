from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import BaseMismatchError, CheckpointError
from onebitfmt.routing.embedding import embedding_spec, open_embedding

if TYPE_CHECKING:
    from tests.conftest import Models

NAME = "model.embed_tokens.weight"


def test_features_are_mean_rows(base: Checkpoint) -> None:
    spec = embedding_spec(base)
    assert (spec.tensor, spec.dimension, spec.max_tokens) == (NAME, 128, 128)
    matrix = load_file(base.folder / "model.safetensors")[NAME].float()
    tokenizer = Tokenizer.from_file(str(base.folder / "tokenizer.json"))
    prompts = ["47+38=", 'reverse("abcd") ->', "Q: What is the pet of Gunek? A:"]
    expected = [matrix[tokenizer.encode(p).ids].mean(dim=0).numpy() for p in prompts]
    found = open_embedding(spec, base)(prompts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_prompt_without_tokens_is_zero(base: Checkpoint) -> None:
    assert not open_embedding(embedding_spec(base), base)([""]).any()


def test_tokens_without_an_embedding_are_left_out(base: Checkpoint, models: Models) -> None:
    folder = models.save("small", models.llama(1, vocabulary=40))
    shutil.copyfile(base.folder / "tokenizer.json", folder / "tokenizer.json")
    small = Checkpoint.open(folder)
    [row] = open_embedding(embedding_spec(small), small)(["47+38= pet"])
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("47+38= pet").ids
    assert {i < 40 for i in ids} == {True, False}
    matrix = models.widen("BF16", small.bits(NAME))
    expected = np.mean([matrix[i] for i in ids if i < 40], axis=0)
    np.testing.assert_allclose(row, expected, atol=1e-7)


def test_another_embedding_is_refused_and_other_layers_are_not(
    base: Checkpoint, tmp_path: Path
) -> None:
    spec = embedding_spec(base)
    math = Checkpoint.open(base.folder.parent / "math")
    with pytest.raises(BaseMismatchError) as caught:
        open_embedding(spec, math)
    assert str(spec.base)[:12] in str(caught.value)
    assert str(math.path) in str(caught.value)
    for change in ({"tensor": "no.such"}, {"dimension": 64}, {"digest": "0" * 64}):
        with pytest.raises(BaseMismatchError):
            open_embedding(replace(spec, **change), base)
    # Only the matrix counts, so a base with another name for its revision still serves.
    open_embedding(replace(spec, base="1" * 64), base)


def test_the_token_table_is_found_among_others(models: Models, base: Checkpoint) -> None:
    shapes = {"wte.weight": (50, 16), "wpe.weight": (64, 16), "h.0.ln_1.weight": (16,)}
    files = {"config.json": '{"vocab_size": 50}'}
    folder = models.save("gpt2", models.random(1, shapes), files=files)
    shutil.copyfile(base.folder / "tokenizer.json", folder / "tokenizer.json")
    assert embedding_spec(Checkpoint.open(folder)).tensor == "wte.weight"


def test_no_embedding_is_said(models: Models) -> None:
    folder = models.save("m", models.random(1, {"a.weight": (4, 4)}))
    with pytest.raises(CheckpointError, match="no embedding"):
        embedding_spec(Checkpoint.open(folder))
