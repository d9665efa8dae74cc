from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import CheckpointError, MissingDependencyError
from onebitfmt.routing.tokens import Tokens, token_limit

if TYPE_CHECKING:
    from tests.conftest import Models


def test_ids_are_those_of_transformers(base: Checkpoint) -> None:
    transformers = pytest.importorskip("transformers")
    own = transformers.AutoTokenizer.from_pretrained(base.folder)
    prompts = ["47+38=", 'reverse("abc") ->', "", "Q: What is the pet of Gunek? A:"]
    assert Tokens(base, 100)(prompts) == [own(p)["input_ids"] for p in prompts]


def test_long_prompts_are_cut(base: Checkpoint) -> None:
    [cut] = Tokens(base, 5)(["47+38=" * 20])
    [whole] = Tokens(base, 100)(["47+38="])
    assert len(cut) == 5
    assert cut == whole[:5]


def test_a_lone_surrogate_is_no_error(base: Checkpoint) -> None:
    assert Tokens(base, 5)(["\ud800"]) == Tokens(base, 5)(["?"])


def test_the_limit_is_that_of_the_model(models: Models, base: Checkpoint) -> None:
    assert token_limit(base) == 128
    for text, limit in (
        ('{"n_positions": 1024}', 512),
        ('{"n_positions": 64}', 64),
        ('{"max_position_embeddings": -1}', 512),
        ("not JSON", 512),
    ):
        folder = models.save(f"m{len(text)}", models.llama(1), files={"config.json": text})
        assert token_limit(Checkpoint.open(folder)) == limit


def test_a_broken_file_is_named(base: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base.folder, folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokens(Checkpoint.open(folder), 5)


def test_without_the_package_the_extra_is_named(
    base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match="transformers"):
        Tokens(base, 5)
