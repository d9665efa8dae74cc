from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import CheckpointError, UsageError
from onebitfmt.merge.engine import Merger
from onebitfmt.merge.experts import ExpertSource
from onebitfmt.merge.plan import row_blocks
from onebitfmt.merge.recipe import Recipe
from onebitfmt.verbs.convert import convert
from onebitfmt.verbs.plan import ConvertOptions

if TYPE_CHECKING:
    from tests.conftest import Models, Tensors

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
TIES = Recipe(method="ties")


def opened(models: Models, name: str, tensors: Tensors, *, bundle: bool = False) -> ExpertSource:
    path = models.save(name, tensors)
    if not bundle:
        return ExpertSource.open(path)
    output = models.root / f"{name}.obd"
    convert(models.root / "base", path, output, ConvertOptions(preset="none"))
    return ExpertSource.open(output)


@pytest.fixture
def base(models: Models) -> Checkpoint:
    return Checkpoint.open(models.save("base", models.llama(1)))


@pytest.mark.parametrize("bundle", [False, True])
def test_a_resized_vocabulary_takes_no_part(models: Models, base: Checkpoint, bundle: bool) -> None:
    larger = models.tuned(models.llama(1), 2)
    rng = models.random(3, {EMBEDDING: (107, 64), HEAD: (107, 64)})
    one = opened(models, "one", larger | rng, bundle=bundle)
    two = opened(models, "two", models.tuned(models.llama(1), 4), bundle=bundle)
    merger = Merger(base, [one, two], TIES)
    assert merger.span(EMBEDDING) == ("BF16", (100, 64))
    assert merger.inputs(EMBEDDING) == merger.inputs(HEAD) == ["two"]
    assert merger.inputs(NORM) == ["one", "two"]
    assert [n for n in merger.notes() if "another shape" in n and EMBEDDING in n]
    # The selected expert decides the shape; the other's rows would mean other words.
    merger = Merger(base, [one, two], Recipe(select="one"))
    assert merger.span(EMBEDDING) == ("BF16", (107, 64))
    assert merger.inputs(EMBEDDING) == []
    assert np.array_equal(merger.tensor(EMBEDDING).bits, rng[EMBEDDING][1])


@pytest.mark.parametrize("bundle", [False, True])
def test_missing_and_extra_tensors(models: Models, base: Checkpoint, bundle: bool) -> None:
    fewer = models.tuned(models.llama(1), 2)
    del fewer[NORM]
    more = models.tuned(models.llama(1), 3) | models.random(5, {"score.weight": (3, 64)})
    sources = [opened(models, n, t, bundle=bundle) for n, t in (("few", fewer), ("more", more))]
    merger = Merger(base, sources, TIES)
    assert merger.inputs(NORM) == ["more"]
    assert "score.weight" not in merger.names
    notes = "\n".join(merger.notes())
    assert f"few has no such tensor, so it takes no part in {NORM}" in notes
    assert "more has tensors that the merged model lacks: score.weight" in notes
    selected = Merger(base, sources, Recipe(select="more"))
    assert np.array_equal(selected.tensor("score.weight").bits, more["score.weight"][1])
    assert NORM not in Merger(base, sources, Recipe(select="few")).names


@pytest.mark.parametrize("bundle", [False, True])
def test_a_tied_head_counts_as_its_embedding(models: Models, bundle: bool) -> None:
    tied = models.llama(1)
    del tied[HEAD]
    base = Checkpoint.open(models.save("base", tied))
    untied = models.tuned(tied, 2)
    untied[HEAD] = models.tuned(tied, 3)[EMBEDDING]
    one = opened(models, "one", untied, bundle=bundle)
    two = opened(models, "two", models.tuned(tied, 4), bundle=bundle)
    merger = Merger(base, [one, two], Recipe(select="one", density=1.0, lambda_dense=1.0))
    assert merger.inputs(HEAD) == merger.inputs(EMBEDDING) == ["two"]
    assert any("tied" in note and HEAD in note for note in merger.notes())
    vector = two.task_vector(EMBEDDING, base)
    expected = models.narrow("BF16", models.widen(*untied[HEAD]) + vector)
    assert np.array_equal(merger.tensor(HEAD).bits, expected)
    static = Merger(base, [one, two], TIES)
    assert static.inputs(EMBEDDING) == ["one", "two"]
    assert any(HEAD in note for note in static.notes())


def test_names_may_differ_by_a_prefix(models: Models, base: Checkpoint) -> None:
    shorter = {n.removeprefix("model."): t for n, t in models.tuned(models.llama(1), 2).items()}
    del shorter[HEAD]
    expert = opened(models, "one", shorter)
    assert Merger(base, [expert], TIES).inputs(EMBEDDING) == ["one"]


def test_integers_and_tensors_that_nobody_changed_pass_as_they_are(models: Models) -> None:
    odd = np.array([0x8000, 0x7FC1, 0xFF80, 5], np.uint16)  # -0.0, a NaN with payload, -inf
    tensors = models.llama(1) | {
        "ids": ("I64", np.arange(4, dtype=np.uint64)),
        "odd": ("BF16", odd),
    }
    base = Checkpoint.open(models.save("base", tensors))
    expert = models.tuned(tensors, 2) | {"odd": tensors["odd"]}
    source = opened(models, "one", expert, bundle=True)
    merger = Merger(base, [source], TIES)
    for name in ("ids", "odd"):
        assert merger.inputs(name) == []
        assert np.array_equal(merger.tensor(name).bits, tensors[name][1])


def test_an_expert_of_another_model_is_refused(models: Models, base: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="not a fine-tune"):
        Merger(base, [opened(models, "one", models.random(1, {"x": (4, 4)}))], TIES)
    wide = models.random(1, dict.fromkeys(models.llama(1), (3, 3)))
    with pytest.raises(UsageError, match="no task vector"):
        Merger(base, [opened(models, "two", wide)], TIES)


def test_sources_are_named_by_their_folder_or_bundle(models: Models, base: Checkpoint) -> None:
    source = opened(models, "math", models.tuned(models.llama(1), 2), bundle=True)
    assert source.name == "math"
    assert ExpertSource.open(models.root / "math").name == "math"
    assert ExpertSource.open(models.root / "math.obd", name="x").name == "x"
    with pytest.raises(UsageError, match="no tensor"):
        source.span("nothing")
    with pytest.raises(UsageError, match="not both"):
        ExpertSource(name="none")
    with pytest.raises(CheckpointError):
        ExpertSource.open(Path("nowhere"))


def test_rows_of_tensors_and_task_vectors(models: Models, base: Checkpoint) -> None:
    tensors = models.tuned(models.llama(1), 2)
    for bundle in (False, True):
        source = opened(models, f"e{bundle}", tensors, bundle=bundle)
        whole = source.task_vector(EMBEDDING, base)
        part = source.task_vector(EMBEDDING, base, slice(5, 9))
        assert whole is not None
        assert part is not None
        assert np.array_equal(part, whole[5:9])
        before = models.widen(*models.llama(1)[EMBEDDING])
        assert np.array_equal(whole, models.widen(*tensors[EMBEDDING]) - before)
        rows = source.tensor(EMBEDDING, base, slice(5, 9)).bits
        assert np.array_equal(rows, tensors[EMBEDDING][1][5:9])


def test_blocks_of_rows_cover_a_tensor() -> None:
    assert row_blocks(()) == [None]
    assert row_blocks((0, 4)) == []
    assert row_blocks((3, 1 << 21)) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert row_blocks((3_000_000,)) == [
        slice(0, 1 << 20), slice(1 << 20, 2 << 20), slice(2 << 20, 3_000_000)
    ]  # fmt: skip
