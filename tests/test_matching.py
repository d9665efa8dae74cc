from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pytest

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import CheckpointError
from onebitfmt.matching import match_names, model_order, tied_tensors

if TYPE_CHECKING:
    from tests.conftest import Models, Tensors

Shapes = Mapping[str, tuple[int, ...]]

NAMES = ("embed.weight", "layers.0.up.weight", "layers.0.norm.weight", "norm.weight")


@pytest.mark.parametrize(
    ("base_prefix", "expert_prefix"),
    [("", ""), ("model.", ""), ("", "model."), ("bert.", "bert.")],
)
def test_a_prefix_that_one_side_has_throughout_is_seen_through(
    models: Models, base_prefix: str, expert_prefix: str
) -> None:
    base = models.save(
        "base", models.random(1, dict.fromkeys((base_prefix + n for n in NAMES), (2, 2)))
    )
    expert = models.save(
        "expert", models.random(2, dict.fromkeys((expert_prefix + n for n in NAMES), (2, 2)))
    )
    found = match_names(Checkpoint.open(base), Checkpoint.open(expert))
    assert found == {expert_prefix + n: base_prefix + n for n in NAMES}


def test_an_equal_name_comes_before_a_prefixed_one(models: Models) -> None:
    names = ["a.weight", "b.weight", "model.a.weight"]
    base = models.save("base", models.random(1, dict.fromkeys(names, (2,))))
    expert = models.save("expert", models.random(2, dict.fromkeys(names[:2], (2,))))
    found = match_names(Checkpoint.open(base), Checkpoint.open(expert))
    assert found == {"a.weight": "a.weight", "b.weight": "b.weight"}


@pytest.mark.parametrize(("shared", "related"), [(2, True), (1, False), (0, False)])
def test_unrelated_models_are_refused_by_their_names(
    models: Models, shared: int, related: bool
) -> None:
    shapes: Shapes = dict.fromkeys(NAMES, (2,))
    other = {n if i < shared else f"x{i}": (2,) for i, n in enumerate(NAMES)}
    base = Checkpoint.open(models.save("base", models.random(1, shapes)))
    expert = Checkpoint.open(models.save("expert", models.random(1, other)))
    if related:
        assert sum(m is not None for m in match_names(base, expert).values()) == shared
        return
    with pytest.raises(CheckpointError, match="not a fine-tune") as caught:
        match_names(base, expert)
    for word in (base, expert, f"{shared} of its 4"):
        assert str(word) in str(caught.value)


@pytest.mark.parametrize(
    ("base", "expert", "predicted"),
    [
        (("BF16", (4, 2)), ("BF16", (5, 2)), True),
        (("BF16", (5, 2)), ("BF16", (4, 2)), True),
        (("F32", (4, 2)), ("BF16", (4, 2)), True),
        (("F16", (4, 2)), ("F32", (4, 2)), True),
        (("F64", (4, 2)), ("F64", (4, 2)), True),
        (("F64", (4, 2)), ("F32", (4, 2)), False),
        (("I32", (4, 2)), ("I64", (4, 2)), False),
        (("I32", (4, 2)), ("I32", (4, 2)), True),
        (("BF16", (8,)), ("BF16", (4, 2)), False),
    ],
)
def test_a_base_tensor_predicts_where_type_and_dimensions_allow(
    models: Models,
    base: tuple[str, tuple[int, ...]],
    expert: tuple[str, tuple[int, ...]],
    predicted: bool,
) -> None:
    folders = []
    for folder, (dtype, shape) in (("base", base), ("expert", expert)):
        width = {"F64": 8, "I64": 8, "F32": 4, "I32": 4}.get(dtype, 2)
        tensors: Tensors = {"x": (dtype, np.zeros(shape, f"u{width}"))}
        folders.append(Checkpoint.open(models.save(folder, tensors)))
    assert match_names(*folders) == {"x": "x" if predicted else None}


BODY: Shapes = {"model.embed_tokens.weight": (6, 4), "model.norm.weight": (4,)}


@pytest.mark.parametrize("head", ["lm_head.weight", "embed_out.weight", "cls.decoder.weight"])
def test_a_new_head_is_predicted_by_the_embedding(models: Models, head: str) -> None:
    base = models.save("base", models.random(1, BODY))
    expert = models.save("expert", models.random(2, {**BODY, head: (6, 4)}))
    found = match_names(
        Checkpoint.open(base), Checkpoint.open(expert), ["model.embed_tokens.weight"]
    )
    assert found[head] == "model.embed_tokens.weight"


@pytest.mark.parametrize(("name", "shape"), [("lm_head.weight", (7, 4)), ("score.weight", (6, 4))])
def test_other_new_tensors_have_no_base(models: Models, name: str, shape: tuple[int, ...]) -> None:
    base = models.save("base", models.random(1, BODY))
    expert = models.save("expert", models.random(2, {**BODY, name: shape}))
    found = match_names(
        Checkpoint.open(base), Checkpoint.open(expert), ["model.embed_tokens.weight"]
    )
    assert found[name] is None


def test_a_head_is_predicted_the_same_way_however_the_expert_is_sharded(models: Models) -> None:
    embeddings = ["model.a.embed_tokens.weight", "model.b.embed_tokens.weight"]
    shapes = dict.fromkeys([*embeddings, "lm_head.weight"], (6, 4))
    base = Checkpoint.open(models.save("base", models.random(1, dict.fromkeys(embeddings, (6, 4)))))
    tensors = models.random(2, shapes)
    found = set()
    for folder, order in (("one", embeddings), ("two", embeddings[::-1])):
        shards = [[name] for name in (*order, "lm_head.weight")]
        expert = Checkpoint.open(models.save(folder, tensors, shards=shards))
        listed = [name for name in expert if name in embeddings]
        found.add(match_names(base, expert, listed)["lm_head.weight"])
    assert len(found) == 1


def tied(models: Models, tensors: Tensors, groups: Mapping[str, str]) -> dict[str, str]:
    return tied_tensors(Checkpoint.open(models.save("m", tensors)), groups)


GROUPS = {"embed.weight": "embedding", "lm_head.weight": "head", "other.weight": "other"}


@pytest.mark.parametrize("equal", [True, False])
def test_a_head_with_the_bytes_of_the_embedding_is_tied(models: Models, equal: bool) -> None:
    tensors = models.random(1, dict.fromkeys(GROUPS, (6, 4)))
    tensors["other.weight"] = tensors["embed.weight"]
    if equal:
        tensors["lm_head.weight"] = tensors["embed.weight"]
    expected = {"lm_head.weight": "embed.weight"} if equal else {}
    assert tied(models, tensors, GROUPS) == expected


def test_zeros_of_another_sign_are_not_tied(models: Models) -> None:
    zeros = np.zeros((6, 4), np.uint16)
    tensors = {"embed.weight": ("BF16", zeros), "lm_head.weight": ("BF16", zeros | 0x8000)}
    assert tied(models, tensors, GROUPS) == {}


def test_the_same_bytes_in_another_shape_or_type_are_not_tied(models: Models) -> None:
    bits = np.arange(24, dtype=np.uint16)
    tensors = {
        "embed.weight": ("BF16", bits.reshape(6, 4)),
        "lm_head.weight": ("BF16", bits.reshape(4, 6)),
        "head.weight": ("F16", bits.reshape(6, 4)),
    }
    assert tied(models, tensors, GROUPS | {"head.weight": "head"}) == {}


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["l.10.w", "l.2.w", "l.1.w"], ["l.1.w", "l.2.w", "l.10.w"]),
        (["b", "a", "a1", "a10", "a9"], ["a", "a1", "a9", "a10", "b"]),
        (["1", "a", "10", "9"], ["1", "9", "10", "a"]),
        (["w01", "w1", "w001"], ["w001", "w01", "w1"]),
    ],
)
def test_model_order_counts(names: list[str], ordered: list[str]) -> None:
    assert model_order(names) == ordered
    assert model_order(reversed(names)) == ordered
