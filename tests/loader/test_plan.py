from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from onebitfmt.bundle import Bundle
from onebitfmt.errors import UsageError
from onebitfmt.format.manifest import BaseTensor, Manifest, Same, TensorEntry, Tied
from onebitfmt.loader.plan import Step, elements, plan, rebuilt_bytes
from onebitfmt.merge.recipe import Recipe

if TYPE_CHECKING:
    from tests.loader.conftest import Family

Q = "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def manifests(family: Family) -> dict[str, Manifest]:
    return {name: Bundle.open(path).manifest for name, path in family.bundles.items()}


def steps(
    manifests: dict[str, Manifest], recipe: Recipe, select: str | None = None
) -> dict[str, Step]:
    return {s.tensor: s for s in plan(manifests, recipe, select=select)}


def replaced(manifest: Manifest, name: str, **changes: object) -> Manifest:
    entry: TensorEntry = dataclasses.replace(manifest.tensors[name], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(manifest, tensors={**manifest.tensors, name: entry})


def test_the_selected_expert_alone(manifests: dict[str, Manifest]) -> None:
    found = steps(manifests, Recipe(method="select"), "math")
    assert list(found) == list(manifests["math"].tensors)
    assert found[Q].how == "signs"
    assert found[UP].how == found[NORM].how == "expert"
    assert {s.inputs for s in found.values()} == {("math",)}


def test_others_take_part_in_a_merge(manifests: dict[str, Manifest]) -> None:
    found = steps(manifests, Recipe(), "math")
    assert found[Q].how == "merge"  # chat has attention exactly
    assert found[Q].inputs == ("chat", "math", "code")
    two = {k: manifests[k] for k in ("math", "code")}
    assert steps(two, Recipe(), "math")[Q].how == "signs"
    assert steps(two, Recipe(method="ties"))[Q].how == "signs"


def test_bytes_are_those_of_the_kernels_inputs(manifests: dict[str, Manifest]) -> None:
    step = steps(manifests, Recipe(method="select"), "math")[Q]
    rows, columns = step.shape
    assert (rows, columns) == (128, 128)
    assert step.packed == 128 * 16 + 4 * (128 + 128)
    assert step.rebuilt == 2 * 128 * 128
    two = {k: manifests[k] for k in ("math", "code")}
    assert steps(two, Recipe(), "math")[Q].packed == 2 * step.packed
    assert steps(manifests, Recipe(), "math")[UP].packed == 0


def test_what_nobody_changed_is_the_base_itself(manifests: dict[str, Manifest]) -> None:
    untouched = {k: replaced(m, NORM, coding=Same()) for k, m in manifests.items()}
    for method, select in (("select", "math"), ("onebit_merging", "math"), ("ties", None)):
        step = steps(untouched, Recipe(method=method), select)[NORM]
        assert (step.how, step.source) == ("base", NORM)
    untouched["chat"] = manifests["chat"]
    assert steps(untouched, Recipe(), "math")[NORM].how == "merge"
    assert steps(untouched, Recipe(method="select"), "math")[NORM].how == "base"


def test_one_that_alone_is_onebit_needs_no_others(manifests: dict[str, Manifest]) -> None:
    mixed = {k: replaced(m, Q, coding=Same()) for k, m in manifests.items()}
    mixed["math"] = manifests["math"]
    step = steps(mixed, Recipe(), "math")[Q]
    assert (step.how, step.inputs) == ("signs", ("math",))
    # All count alike in a static merge: the ones that are not one-bit, too.
    assert steps(mixed, Recipe(method="average"))[Q].how == "merge"


def test_other_shapes_take_no_part(manifests: dict[str, Manifest]) -> None:
    grown = dict(manifests)
    entry = manifests["chat"].tensors[UP]
    assert entry.base is not None
    grown["chat"] = replaced(manifests["chat"], UP, shape=(400, 128))
    assert "chat" not in steps(grown, Recipe(), "math")[UP].inputs
    of_base: BaseTensor = dataclasses.replace(entry.base, dtype="I16")
    grown["chat"] = replaced(manifests["chat"], UP, base=of_base)
    assert "chat" not in steps(grown, Recipe(), "math")[UP].inputs


def test_a_new_tensor_is_not_taken_for_the_base(manifests: dict[str, Manifest]) -> None:
    new = {"math": replaced(manifests["math"], NORM, base=None)}
    assert steps(new, Recipe(method="average"))[NORM].how == "merge"


def test_heads_tied_everywhere_are_one_tensor(manifests: dict[str, Manifest]) -> None:
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    tied = {k: replaced(m, head, coding=Tied(to=embedding)) for k, m in manifests.items()}
    found = steps(tied, Recipe(), "math")
    assert (found[head].how, found[head].source, found[head].rebuilt) == ("tied", embedding, 0)
    tied["chat"] = manifests["chat"]
    assert steps(tied, Recipe(), "math")[head].how == "merge"
    assert steps(tied, Recipe(method="select"), "math")[head].how == "tied"


def test_sums(manifests: dict[str, Manifest]) -> None:
    found = plan(manifests, Recipe(method="select"), select="chat")
    assert rebuilt_bytes(found) == 2 * elements(found)
    assert Counter(s.dtype for s in found) == {"BF16": len(found)}


def test_an_unknown_expert_is_named(manifests: dict[str, Manifest]) -> None:
    with pytest.raises(UsageError, match=r"'poetry'.*chat, math, code"):
        plan(manifests, Recipe(), select="poetry")
