from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from onebitfmt.bundle import Bundle
from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import BaseMismatchError, UsageError
from onebitfmt.loader import weights as module
from onebitfmt.loader.packed import to_bits
from onebitfmt.loader.weights import RoutedWeights
from onebitfmt.merge.experts import ExpertSource
from onebitfmt.merge.recipe import Recipe
from onebitfmt.verbs.convert import convert
from onebitfmt.verbs.merge import merge_experts
from onebitfmt.verbs.plan import ConvertOptions
from onebitfmt.verbs.restore import restore

if TYPE_CHECKING:
    from tests.conftest import Models
    from tests.loader.conftest import Family

SELECT = Recipe(method="select")
Q = "model.layers.0.self_attn.q_proj.weight"


def same(found: torch.Tensor, want: torch.Tensor) -> bool:
    """Equality of bits, NaN and the sign of zero included."""
    if found.dtype != want.dtype or found.shape != want.shape:
        return False
    return torch.equal(found.reshape(-1).view(torch.uint8), want.reshape(-1).view(torch.uint8))


def of(family: Family, recipe: Recipe = SELECT, **options: object) -> RoutedWeights:
    return RoutedWeights(family.base, dict(family.bundles), recipe, **options)  # type: ignore[arg-type]


def test_a_selected_expert_is_the_restored_checkpoint(family: Family, tmp_path: Path) -> None:
    weights = of(family)
    for name, bundle in family.bundles.items():
        restore(family.base, bundle, tmp_path / name)
        want = load_file(tmp_path / name / "model.safetensors")
        weights.activate(name)
        assert set(weights) == set(want)
        assert len(weights) == len(want)
        assert all(same(weights[n], want[n]) for n in want)


@pytest.mark.parametrize("method", ["onebit_merging", "task_arithmetic", "ties"])
@pytest.mark.parametrize("expert", ["math", None])
def test_the_tensors_are_those_of_obd_merge(
    family: Family, tmp_path: Path, method: str, expert: str | None
) -> None:
    recipe = Recipe(method=method)
    output = tmp_path / "merged"
    merge_experts(family.base, list(family.bundles.values()), recipe.with_select(expert), output)
    want = load_file(output / "model.safetensors")
    weights = of(family, recipe)
    weights.activate(expert)
    assert set(weights) == set(want)
    assert all(same(weights[n], want[n]) for n in want)


def test_experts_are_distinct_and_come_back_identical(family: Family) -> None:
    weights = of(family, Recipe(), budget=0)
    digests = []
    for name in (*weights.experts, *weights.experts):
        weights.activate(name)
        digests.append(weights.digest())
    assert len(set(digests[:3])) == 3
    assert digests[:3] == digests[3:]


def test_the_digest_is_a_checkpoints_fingerprint(family: Family) -> None:
    weights = RoutedWeights(family.base, [family.experts["math"]], SELECT)
    weights.activate("math")
    manifest = Bundle.open(family.bundles["math"]).manifest
    exact = RoutedWeights(family.base, {"base": family.base}, SELECT)
    exact.activate("base")
    assert exact.digest() == manifest.base.fingerprint
    assert weights.digest() != exact.digest()


def test_the_budget_holds(family: Family) -> None:
    free = of(family)
    budget = free.model_bytes("math") // 3
    weights = of(family, budget=budget)
    for name in (*weights.experts, "math"):
        weights.activate(name)
        free.activate(name)
        for tensor in weights:
            assert same(weights[tensor], free[tensor])
            assert weights.stats.cache.held <= budget
    assert weights.stats.cache.evicted > 0


def test_by_default_one_model_is_kept(family: Family) -> None:
    weights = of(family)
    weights.activate("math")
    weights.materialize(jobs=2)
    built = weights.stats.cache.built
    weights.materialize(jobs=1)
    assert weights.stats.cache.built == built
    assert weights.stats.cache.held == weights.budget == weights.model_bytes("math")
    weights.clear()
    assert weights.stats.cache.held == 0


@pytest.mark.parametrize("keep_base", ["device", "cpu", "disk"])
def test_policies_for_the_base_agree(family: Family, tmp_path: Path, keep_base: str) -> None:
    bundles = dict(family.bundles) | {"base": _of_base(family, tmp_path)}
    weights = RoutedWeights(family.base, bundles, SELECT, keep_base=keep_base)
    found = {}
    for _ in range(2):
        for name in weights.experts:
            weights.activate(name)
            found.setdefault(name, set()).add(weights.digest())
    plain = RoutedWeights(family.base, bundles, SELECT)
    for name, digests in found.items():
        plain.activate(name)
        assert digests == {plain.digest()}
    assert (weights.stats.base == 0) == (keep_base == "disk")


def _of_base(family: Family, root: Path) -> Path:
    """A bundle whose tensors are all the base's own."""
    copy = root / "copy"
    shutil.copytree(family.base, copy)
    convert(family.base, copy, root / "same.obd", ConvertOptions(preset="none"))
    return root / "same.obd"


def test_base_tensors_are_shared_and_cannot_be_spoiled(family: Family, tmp_path: Path) -> None:
    bundles = {"one": _of_base(family, tmp_path), "two": _of_base(family, tmp_path / "again")}
    weights = RoutedWeights(family.base, bundles, SELECT)
    weights.activate("one")
    assert {s.how for s in weights.steps("one").values()} == {"base"}
    first = weights[Q]
    weights.activate("two")
    assert weights[Q] is first
    first.zero_()
    assert Checkpoint.open(family.base).bits(Q).any()
    assert weights.base.bits(Q).any()


@pytest.mark.parametrize("expert", ["one", None])
def test_shared_tensors_keep_zeros_signs_and_nan_payloads(
    models: Models, expert: str | None
) -> None:
    base = models.llama(1)
    odd = "model.norm.weight"
    experts = {name: models.tuned(base, seed) for seed, name in enumerate(("one", "two"))}
    base[odd][1][:4] = [0x8000, 0x7F81, 0xFF80, 0x0001]
    models.save("base", base)
    for name, tuned in experts.items():
        tuned[odd] = base[odd]
        models.save(name, tuned)
        options = ConvertOptions(preset="linear")
        convert(models.root / "base", models.root / name, models.root / f"{name}.obd", options)
    bundles = [models.root / "one.obd", models.root / "two.obd"]
    recipe = Recipe()
    merge_experts(models.root / "base", bundles, recipe.with_select(expert), models.root / "merged")
    weights = RoutedWeights(models.root / "base", bundles, recipe)
    weights.activate(expert)
    assert weights.steps(expert)[odd].how == "base"
    assert to_bits(weights[odd]).tobytes() == base[odd][1].tobytes()
    assert models.load(models.root / "merged")[odd][2] == base[odd][1].tobytes()


def test_floats_are_converted_last(family: Family) -> None:
    weights, own = of(family, dtype="float32"), of(family)
    for each in (weights, own):
        each.activate("math")
    assert weights[Q].dtype == torch.float32
    assert torch.equal(weights[Q], own[Q].float())
    assert weights.model_bytes("math") == 2 * own.model_bytes("math")


def test_threads_that_switch_get_what_they_asked_for(family: Family) -> None:
    plain, weights = of(family), of(family, budget=1 << 18)
    want = {}
    for name in plain.experts:
        want[name] = {t: plain.tensor(t, name) for t in plain.steps(name)}

    def check(job: tuple[str, str]) -> bool:
        name, tensor = job
        return same(weights.tensor(tensor, name), want[name][tensor])

    jobs = [(name, t) for t in plain for name in plain.experts] * 2
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(check, jobs))


def test_the_device_path_gives_the_same_bits(
    random_family: Callable[[str], Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("llama", "gpt2"):
        family = random_family(kind)
        bundles = {"a": family.bundles["a"], "c": family.bundles["a"], "b": family.bundles["b"]}
        for recipe in (SELECT, Recipe(), Recipe(method="task_arithmetic")):
            plain = RoutedWeights(family.base, bundles, recipe)
            packed = RoutedWeights(family.base, bundles, recipe)
            monkeypatch.setattr(module, "REBUILDS_PACKED", frozenset({"cpu"}))
            for name in ("a", "b"):
                for tensor, step in plain.steps(name).items():
                    monkeypatch.setattr(module, "REBUILDS_PACKED", frozenset())
                    want = plain.tensor(tensor, name)
                    monkeypatch.setattr(module, "REBUILDS_PACKED", frozenset({"cpu"}))
                    assert same(packed.tensor(tensor, name), want), (tensor, step)
            assert packed.stats.on_device > 0
            assert packed.stats.packed > 0
            assert plain.stats.on_device == 0


def test_another_base_is_refused(family: Family) -> None:
    weights = RoutedWeights(family.experts["chat"], {"math": family.bundles["math"]}, SELECT)
    weights.activate("math")
    with pytest.raises(BaseMismatchError, match="was made against"):
        weights[Q]


def test_wrong_requests(family: Family) -> None:
    with pytest.raises(UsageError, match="keep_base is one of"):
        of(family, keep_base="cloud")
    with pytest.raises(UsageError, match=r"'poetry'.*chat, math, code"):
        of(family).activate("poetry")
    source = ExpertSource.open(family.bundles["math"])
    with pytest.raises(UsageError, match="names of their own"):
        RoutedWeights(family.base, [source, source], SELECT)
    with pytest.raises(UsageError, match="at least one"):
        RoutedWeights(family.base, [], SELECT)
    weights = of(family)
    assert Q in weights
    assert "nothing" not in weights
    with pytest.raises(KeyError):
        weights["nothing"]


def test_open_bundles_and_paths_are_taken_alike(family: Family) -> None:
    opened = RoutedWeights(
        Checkpoint.open(family.base), [Bundle.open(p) for p in family.bundles.values()], SELECT
    )
    by_path = RoutedWeights(str(family.base), list(family.bundles.values()), SELECT)
    assert opened.experts == by_path.experts == ("chat", "math", "code")
    for weights in (opened, by_path):
        weights.activate("code")
    assert opened.active == "code"
    assert opened.digest() == by_path.digest()
