from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import BaseMismatchError, UsageError
from onebitfmt.merge import plan
from onebitfmt.merge.engine import Merger
from onebitfmt.merge.experts import ExpertSource
from onebitfmt.merge.masks import keep_mask, mask_key
from onebitfmt.merge.recipe import METHODS, Recipe, load_recipe
from onebitfmt.merge.ties import PRESETS
from onebitfmt.parallel import Workers

if TYPE_CHECKING:
    from tests.conftest import Models
    from tests.merge.conftest import Family

Array = NDArray[Any]

KINDS = ("matrix", "rank1", "planes", "mixed", "exact")
PEERS = Path(__file__).parents[1] / "data" / "peers"
EXPERTS = ("chat", "math", "code")


def model_digest(merger: Merger) -> str:
    hasher = hashlib.sha256()
    for name in merger.names:
        hasher.update(merger.tensor(name).bits.tobytes())
    return hasher.hexdigest()


def values(family: Family, expert: str) -> dict[str, Array]:
    widen = {"BF16": lambda b: (b.astype(np.uint32) << 16).view(np.float32)}
    return {n: widen[d](b) for n, (d, b) in family.tensors[expert].items()}


def deltas(family: Family, expert: str) -> dict[str, Array]:
    base = values(family, "base")
    return {n: v - base[n] for n, v in values(family, expert).items()}


def rounded(value: Array) -> Array:
    return torch.from_numpy(value).to(torch.bfloat16).view(torch.uint16).numpy()


def assert_model(merger: Merger, expected: dict[str, Array]) -> None:
    assert set(merger.names) == set(expected)
    for name, value in expected.items():
        assert np.array_equal(merger.tensor(name).bits, rounded(value)), name


# --- against what others compute ------------------------------------------------------------------


@pytest.mark.parametrize("recipe", sorted(p.stem for p in PEERS.glob("*.yaml")))
def test_mergekit_gives_the_same_bits(recipe: str) -> None:
    experts = [ExpertSource.open(PEERS / f"{name}.safetensors") for name in "abc"]
    base = Checkpoint.open(PEERS / "base.safetensors")
    merger = Merger(base, experts, load_recipe(PEERS / f"{recipe}.yaml"))
    with safe_open(PEERS / f"{recipe}.merged.safetensors", framework="numpy") as theirs:
        assert sorted(theirs.keys()) == sorted(merger.names)
        for name in merger.names:
            assert merger.tensor(name).bits.tobytes() == theirs.get_tensor(name).tobytes(), name


def test_there_are_results_of_mergekit() -> None:
    assert len(list(PEERS.glob("*.merged.safetensors"))) == 7


def official_ties(vectors: torch.Tensor, density: float) -> torch.Tensor:
    """The published procedure on flattened task vectors [K, D]."""
    count = vectors.shape[1]
    position = count - int(count * density)
    threshold = vectors.abs().kthvalue(position, dim=1, keepdim=True).values
    trimmed = torch.where(vectors.abs() >= threshold, vectors, 0.0)
    sign = torch.sign(trimmed.sum(dim=0))
    majority = torch.sign(sign.sum())
    sign = torch.where(sign == 0, majority, sign)
    agree = torch.where(sign > 0, trimmed > 0, trimmed < 0)
    selected = trimmed * agree
    return selected.sum(dim=0) / (selected != 0).sum(dim=0).clamp(min=1)


@pytest.mark.parametrize("kind", ["exact", "full", "matrix"])
@pytest.mark.parametrize("density", [0.2, 0.55])
def test_official_ties_is_the_published_procedure(
    family: Family, kind: str, density: float
) -> None:
    sources, base = family.sources(kind), family.base
    names = list(sources[0].names())
    flat = []
    for source in sources:
        found = [source.task_vector(name, base) for name in names]
        flat.append(torch.cat([torch.from_numpy(v).reshape(-1) for v in found if v is not None]))
    merged = official_ties(torch.stack(flat), density).split(
        [values(family, "base")[name].size for name in names]
    )
    expected = {
        name: value + 0.7 * part.numpy().reshape(value.shape)
        for name, part in zip(names, merged, strict=True)
        for value in [values(family, "base")[name]]
    }
    recipe = Recipe(
        method="ties", preset="official", density=density, lambda_onebit=0.7, lambda_dense=0.7
    )
    assert_model(family.merger(kind, recipe), expected)


def test_cancelled_votes_follow_the_majority_of_the_model(models: Models) -> None:
    zeros = np.zeros((4, 4), np.float32)
    up = np.eye(4, dtype=np.float32)
    for majority, other in ((1.0, 2.0), (-1.0, -2.0)):
        root = models.root / str(majority)
        one = {"w": ("F32", up.view(np.uint32)), "v": ("F32", (majority * up).view(np.uint32))}
        two = {"w": ("F32", (-up).view(np.uint32)), "v": ("F32", (other * up).view(np.uint32))}
        base = {"w": ("F32", zeros.view(np.uint32)), "v": ("F32", zeros.view(np.uint32))}
        names = ("base", "one", "two")
        for name, tensors in zip(names, (base, one, two), strict=True):
            models.save(f"{root.name}/{name}", tensors)
        experts = [ExpertSource.open(root / name) for name in names[1:]]
        recipe = Recipe(method="ties", preset="official", density=1.0)
        merger = Merger(Checkpoint.open(root / "base"), experts, recipe)
        assert np.array_equal(merger.tensor("w").bits.view(np.float32), majority * up)


@pytest.mark.parametrize("kind", ["exact", "full"])
def test_sums_and_means(family: Family, kind: str) -> None:
    base, (a, b, c) = values(family, "base"), (deltas(family, e) for e in EXPERTS)
    weights = {"chat": 1.0, "math": 0.5, "code": 0.25}
    scaled = Recipe(method="task_arithmetic", weights=weights, lambda_dense=0.5, lambda_onebit=9)
    half, quarter = np.float32(0.5), np.float32(0.25)
    total = {n: a[n] + b[n] * half + c[n] * quarter for n in base}
    assert_model(family.merger(kind, scaled), {n: base[n] + total[n] * half for n in base})
    mean = {n: base[n] + total[n] / np.float32(1.75) for n in base}
    assert_model(family.merger(kind, Recipe(method="average", weights=weights)), mean)


def test_dare_drops_by_the_mask_of_each_place(family: Family) -> None:
    base, found = values(family, "base"), {}
    for name, value in base.items():
        found[name] = np.zeros_like(value)
        for expert in EXPERTS:
            key = mask_key(4, expert, name)
            mask = keep_mask(key, 0, value.size, 0.5).reshape(value.shape)
            found[name] += np.where(mask, deltas(family, expert)[name], 0) * np.float32(2)
    recipe = Recipe(method="dare_linear", density=0.5, seed=4)
    assert_model(family.merger("exact", recipe), {n: base[n] + found[n] for n in base})


def test_groups_have_their_own_density_and_lambda(family: Family) -> None:
    recipe = Recipe(
        method="ties", preset="paper", density=1.0,
        groups={"mlp": {"density": 0.0}, "attention": {"lambda": 0.0}},
    )  # fmt: skip
    merger = family.merger("exact", recipe)
    plain = family.merger("exact", Recipe(method="ties", preset="paper", density=1.0))
    for name in merger.names:
        bits = merger.tensor(name).bits
        kept = ".mlp." in name or ".self_attn." in name or name == "model.norm.weight"
        same = np.array_equal(bits, family.base.bits(name))
        assert same == kept, name
        assert kept or np.array_equal(bits, plain.tensor(name).bits)


# --- into a selected expert -----------------------------------------------------------------------


def test_the_others_are_merged_into_the_selected_expert(family: Family) -> None:
    base = values(family, "base")
    sources, of_base = family.sources("rank1"), family.base
    merger = family.merger("rank1", Recipe(select="math", lambda_onebit=0.3, lambda_dense=0.4))
    for name in merger.names:
        own, a, b = (sources[k].task_vector(name, of_base) for k in (1, 0, 2))
        assert own is not None
        assert a is not None
        assert b is not None
        onebit = sources[0].is_onebit(name)
        size, keep = a.size, a.size - int(a.size * 0.2)
        if not onebit:
            a, b = (np.where(abs(v) >= np.sort(abs(v).ravel())[keep - 1], v, 0) for v in (a, b))
        sign = np.where(a + b >= 0, 1, -1)
        agree = [np.where(v * sign > 0, v, 0) for v in (a, b)]
        merged = (agree[0] + agree[1]) / np.maximum((agree[0] != 0) * 1 + (agree[1] != 0) * 1, 1)
        merged = merged.astype(np.float32) * np.float32(0.3 if onebit else 0.4)
        start = base[name] if onebit else values(family, "math")[name]
        expected = start + (own + merged if onebit else merged)
        assert np.array_equal(merger.tensor(name).bits, rounded(expected)), (name, size)


@pytest.mark.parametrize("kind", [*KINDS, "full"])
def test_k_experts_make_k_models(family: Family, kind: str) -> None:
    merger = family.merger(kind, Recipe(select="chat"))
    found = {model_digest(merger.select(expert)) for expert in EXPERTS}
    assert len(found) == 3
    assert model_digest(merger) in found
    # Asked again, and opened again: the same models.
    again = {model_digest(family.merger(kind, Recipe(select=e))) for e in EXPERTS}
    assert again == found
    assert model_digest(merger.select(None)) not in found


@pytest.mark.parametrize("kind", [*KINDS, "full"])
@pytest.mark.parametrize(
    "recipe", [Recipe(lambda_onebit=0, lambda_dense=0), Recipe(method="select")]
)
def test_with_nothing_merged_it_is_the_expert(family: Family, kind: str, recipe: Recipe) -> None:
    merger = family.merger(kind, recipe.with_select("code"))
    source = family.sources(kind)[2]
    for name in merger.names:
        expected = source.tensor(name, family.base).bits
        assert np.array_equal(merger.tensor(name).bits, expected)
        assert merger.inputs(name) == []


def test_without_a_selected_expert_all_are_merged_into_the_base(family: Family) -> None:
    merger = family.merger("mixed", Recipe())
    ties = family.merger("mixed", Recipe(method="ties"))
    assert model_digest(merger) == model_digest(ties)
    alone = family.merger("mixed", Recipe(method="select"))
    assert all(np.array_equal(alone.tensor(n).bits, family.base.bits(n)) for n in alone.names)


# --- however it is asked --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rank1", "mixed", "exact"])
@pytest.mark.parametrize(
    ("method", "preset"),
    [(method, "onebit") for method in METHODS]
    + [("ties", preset) for preset in PRESETS]
    + [("onebit_merging", "mergekit"), ("dare_ties", "mergekit")],
)
def test_blocks_and_threads_make_no_difference(
    family: Family, kind: str, method: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    merger = family.merger(kind, Recipe(method=method, preset=preset, select="math"))
    name = "model.layers.1.mlp.down_proj.weight"
    whole = merger.tensor(name).bits.reshape(-1)
    # Many small blocks, rows that no chunk or tie respects.
    monkeypatch.setattr(plan, "_BLOCK", 1500)
    assert len(merger.step(name).row_blocks()) > 4
    for jobs in (1, 2):
        fresh = family.merger(kind, Recipe(method=method, preset=preset, select="math"))
        with Workers(jobs) as workers:
            found = np.concatenate(list(fresh.blocks(name, workers)))
        if method.startswith("dare") and preset == "mergekit":
            # The factor is a sum of sums of blocks.
            assert (found != whole).mean() < 0.01
        else:
            assert np.array_equal(found, whole)


@pytest.mark.parametrize("kind", ["matrix", "rank1", "planes"])
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(select="math"), Recipe(method="ties"), Recipe(method="average"),
        Recipe(method="task_arithmetic", weights={"chat": 0.5}), Recipe(normalize=False),
        Recipe(method="ties", weights={"chat": 0.5, "code": -1}, lambda_onebit=0.3),
        Recipe(method="dare_ties", density=1.0, preset="mergekit"),
        Recipe(select="code", weights={"math": 0.5, "code": 7}),
    ],
)  # fmt: skip
def test_the_fast_path_gives_the_same_bits(
    family: Family, kind: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    merger = family.merger(kind, recipe)
    fast = {n: merger.tensor(n).bits for n in merger.names if merger.rule(n) is not None}
    assert len(fast) == sum(merger.experts[0].is_onebit(n) for n in merger.names) > 0
    monkeypatch.setattr(Merger, "_rule", lambda self, step: None)
    for name, bits in fast.items():
        assert np.array_equal(merger.tensor(name).bits, bits), name


def test_the_order_in_which_experts_are_given_does_not_matter(family: Family) -> None:
    recipe = Recipe(method="task_arithmetic")
    experts = family.sources("exact")
    first = Merger(family.merger("exact", recipe).base, experts, recipe)
    second = Merger(first.base, experts[::-1], recipe)
    for name in first.names:
        assert np.array_equal(first.tensor(name).bits, second.tensor(name).bits), name


def test_rules_say_what_is_merged(family: Family) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    merger = family.merger("rank1", Recipe(select="math", lambda_onebit=0.3))
    found = merger.rule(name)
    assert found is not None
    names, rule = found
    assert names == tuple(sorted(EXPERTS))
    assert (rule.select, rule.elect, rule.scale) == (names.index("math"), True, 0.3)
    sources = sorted(family.sources("rank1"), key=lambda source: source.name)
    stack = np.stack([s.bundle.task_vector(name) for s in sources if s.bundle is not None])
    expected = rounded(values(family, "base")[name] + rule.apply(stack))
    assert np.array_equal(merger.tensor(name).bits, expected)
    assert merger.rule("lm_head.weight") is None
    for other in (
        Recipe(preset="paper"), Recipe(preset="official"), Recipe(method="dare_linear"),
        Recipe(method="select", select="math"), Recipe(select="math", lambda_onebit=0.0),
    ):  # fmt: skip
        assert family.merger("rank1", other).rule(name) is None


# --- what does not fit ----------------------------------------------------------------------------


def test_another_base_is_refused(family: Family, models: Models) -> None:
    other = Checkpoint.open(models.save("other", models.llama(99)))
    for kind in ("rank1", "exact"):
        for recipe in (Recipe(method="ties"), Recipe(method="average"), Recipe(select="math")):
            merger = Merger(other, family.sources(kind), recipe)
            with pytest.raises(BaseMismatchError):
                merger.tensor("model.layers.0.self_attn.q_proj.weight")


def test_recipes_and_experts_must_fit(family: Family) -> None:
    with pytest.raises(UsageError, match="chat, code, math"):
        family.merger("full", Recipe(select="poetry"))
    with pytest.raises(UsageError, match="poetry"):
        family.merger("full", Recipe(weights={"poetry": 1}))
    with pytest.raises(UsageError, match="two experts"):
        Merger(family.base, family.sources("full") * 2, Recipe())
    with pytest.raises(UsageError, match="at least one"):
        Merger(family.base, [], Recipe())
    merger = family.merger("full", Recipe())
    with pytest.raises(UsageError, match="poetry"):
        merger.select("poetry")
    with pytest.raises(UsageError, match="no tensor"):
        merger.tensor("x")
