from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import FormatError, OutputError, UsageError
from onebitfmt.merge.engine import Merger
from onebitfmt.merge.experts import ExpertSource
from onebitfmt.merge.recipe import Recipe, load_recipe
from onebitfmt.verbs.convert import convert
from onebitfmt.verbs.merge import MergeReport, merge_experts, merged_bytes
from onebitfmt.verbs.plan import ConvertOptions

if TYPE_CHECKING:
    from tests.conftest import Models, Pair

ROUTED = Recipe(select="expert", density=0.4)


@pytest.fixture
def others(pair: Pair, models: Models) -> list[Path]:
    """A second expert as checkpoint and as bundle."""
    second = models.save("second", models.tuned(pair.base_tensors, 7))
    convert(pair.base, second, models.root / "second.obd", ConvertOptions(preset="math"))
    return [second, models.root / "second.obd"]


@pytest.mark.parametrize("shard_size", [10**9, 20_000])
def test_the_checkpoint_holds_what_the_merger_gives(
    pair: Pair, models: Models, others: list[Path], shard_size: int
) -> None:
    experts = [pair.bundle, others[1]]
    done: list[int] = []
    report = merge_experts(
        pair.base, experts, ROUTED, models.root / "m", shard_size=shard_size, progress=done.append
    )
    merger = Merger(Checkpoint.open(pair.base), [ExpertSource.open(e) for e in experts], ROUTED)
    expected = {n: merger.tensor(n) for n in merger.names}
    content = {n: (t.dtype, t.shape, t.bits.tobytes()) for n, t in expected.items()}
    assert models.load(models.root / "m") == content
    assert report == MergeReport(
        files=tuple(sorted((models.root / "m").glob("*.safetensors"))),
        tensors=len(expected),
        notes=tuple(merger.notes()),
    )
    assert (len(report.files) > 1) == (shard_size == 20_000)
    assert sum(done) == merged_bytes(merger)
    assert len(Checkpoint.open(models.root / "m")) == len(expected)


def test_threads_make_no_difference(pair: Pair, models: Models, others: list[Path]) -> None:
    for jobs in (1, 2):
        output = models.root / f"m{jobs}"
        merge_experts(pair.base, [pair.expert, others[0]], ROUTED, output, jobs=jobs)
    assert models.load(models.root / "m1") == models.load(models.root / "m2")


def test_small_files_are_the_selected_experts_or_the_bases(
    pair: Pair, models: Models, others: list[Path]
) -> None:
    for experts in ([pair.bundle, others[1]], [pair.expert, others[0]]):
        merge_experts(pair.base, experts, ROUTED, models.root / "m", overwrite=True)
        for name in ("config.json", "tokenizer/vocab.txt", "README.md"):
            copy = models.root / "m" / name
            assert copy.read_bytes() == (pair.expert / name).read_bytes()
    merge_experts(pair.base, experts, Recipe(method="ties"), models.root / "n")
    assert sorted(p.name for p in (models.root / "n").iterdir()) == [
        "merge_recipe.yaml", "model.safetensors"
    ]  # fmt: skip


def test_the_recipe_written_makes_the_same_model_again(
    pair: Pair, models: Models, others: list[Path]
) -> None:
    recipe = Recipe(method="dare_ties", density=0.3, weights={"second": 0.5}, seed=9)
    experts = [pair.bundle, others[1]]
    merge_experts(pair.base, experts, recipe, models.root / "m")
    again = load_recipe(models.root / "m" / "merge_recipe.yaml")
    assert again.weights == {"expert": 1.0, "second": 0.5}
    merge_experts(pair.base, experts, again, models.root / "n")
    assert models.load(models.root / "m") == models.load(models.root / "n")


def test_nothing_is_left_of_a_merge_that_fails(
    pair: Pair, models: Models, others: list[Path]
) -> None:
    before = sorted(models.root.iterdir())
    broken = models.root / "broken.obd"
    shutil.copytree(others[1], broken)
    file = next(broken.glob("mlp.obd.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(FormatError, match="OBD-TENSOR-DIGEST"):
        merge_experts(pair.base, [pair.bundle, broken], ROUTED, models.root / "m")
    file.unlink()
    with pytest.raises(FormatError, match="OBD-DIR-MISSING"):
        merge_experts(pair.base, [pair.bundle, broken], ROUTED, models.root / "m")
    with pytest.raises(UsageError):
        merge_experts(pair.base, [pair.bundle], Recipe(select="x"), models.root / "m")
    assert sorted(models.root.iterdir()) == sorted([*before, broken])


def test_outputs_are_guarded(pair: Pair, models: Models, others: list[Path]) -> None:
    with pytest.raises(OutputError, match="input"):
        merge_experts(pair.base, [others[0]], Recipe(method="ties"), others[0], overwrite=True)
    with pytest.raises(OutputError, match="--overwrite"):
        merge_experts(pair.base, [others[1]], Recipe(method="ties"), others[0])


def test_an_index_lists_every_tensor(pair: Pair, models: Models, others: list[Path]) -> None:
    merge_experts(pair.base, [others[1]], Recipe(method="ties"), models.root / "m", shard_size=9000)
    index = json.loads((models.root / "m" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == pair.base_tensors.keys()
