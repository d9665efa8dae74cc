from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.codecs.sign import SignOptions
from onebitfmt.errors import UsageError
from onebitfmt.groups import Override
from onebitfmt.verbs.plan import PRESETS, ConvertOptions, TensorPlan, plan_conversion, stored_bound

if TYPE_CHECKING:
    from tests.conftest import Models, Pair

ATTENTION = {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in range(2) for p in "qo"}
MLP = {f"model.layers.{i}.mlp.{p}_proj.weight" for i in range(2) for p in ("gate", "up", "down")}


def plans(base: Path, expert: Path, options: ConvertOptions) -> dict[str, TensorPlan]:
    files = plan_conversion(Checkpoint.open(base), Checkpoint.open(expert), options)
    return {plan.name: plan for file in files for plan in file.tensors}


def onebit(found: dict[str, TensorPlan]) -> set[str]:
    return {name for name, plan in found.items() if plan.onebit}


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("chat", MLP),
        ("math", ATTENTION),
        ("code", ATTENTION),
        ("linear", MLP | ATTENTION),
        ("none", set()),
    ],
)
def test_a_preset_makes_its_groups_onebit(pair: Pair, preset: str, expected: set[str]) -> None:
    assert onebit(plans(pair.base, pair.expert, ConvertOptions(preset=preset))) == expected


def test_every_preset_is_tested() -> None:
    assert set(PRESETS) == {"chat", "math", "code", "linear", "none"}


Q = "model.layers.0.self_attn.q_proj.weight"
K = "model.layers.0.self_attn.k_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (ConvertOptions(preset="none", onebit=("*q_proj*",)), {Q, Q.replace("0", "1")}),
        (ConvertOptions(preset="none", onebit=(K, EMBEDDING)), {K, EMBEDDING}),
        (ConvertOptions(preset="math", exact=("*.1.*",)), {n for n in ATTENTION if ".0." in n}),
        (ConvertOptions(preset="none", onebit=("*.q_proj.*",), exact=("*.1.*",)), {Q}),
        (ConvertOptions(preset="none", onebit=("*.norm.weight", Q)), None),
        (
            ConvertOptions(
                preset="math", groups=(Override(pattern="*.mlp.up*", group="attention"),)
            ),
            ATTENTION | {n for n in MLP if "up" in n},
        ),
        (
            ConvertOptions(preset="math", groups=(Override(pattern="*.1.*", group="other"),)),
            {n for n in ATTENTION if ".0." in n},
        ),
    ],
)
def test_globs_and_overrides_add_and_take(
    pair: Pair, options: ConvertOptions, expected: set[str] | None
) -> None:
    if expected is None:
        with pytest.raises(UsageError, match="not a matrix"):
            plans(pair.base, pair.expert, options)
        return
    assert onebit(plans(pair.base, pair.expert, options)) == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ConvertOptions(preset="chatty"), ("'chatty'", "chat, math, code, linear, none")),
        (ConvertOptions(preset="none", onebit=("*nosuch*",)), ("--onebit '*nosuch*'", "no tensor")),
        (ConvertOptions(preset="math", exact=("*nosuch*",)), ("--exact '*nosuch*'", "no tensor")),
        (
            ConvertOptions(preset="none", onebit=("*.q_proj.*",), exact=("*attn*",)),
            ("--onebit '*.q_proj.*'", "excluded by --exact"),
        ),
        (
            ConvertOptions(preset="none", groups=(Override(pattern="*nosuch*", group="mlp"),)),
            ("'*nosuch*'", "no tensor"),
        ),
        (
            ConvertOptions(preset="none", groups=(Override(pattern="*", group="everything"),)),
            ("'everything'", "attention, mlp"),
        ),
    ],
    ids=["preset", "onebit", "exact", "both", "override", "group"],
)
def test_a_request_that_means_nothing_is_refused(
    pair: Pair, options: ConvertOptions, words: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        plans(pair.base, pair.expert, options)
    for word in words:
        assert word in str(caught.value)


def test_what_cannot_be_onebit_says_why(models: Models) -> None:
    mlp = "model.layers.{}.mlp.up_proj.weight"
    same = models.random(1, {mlp.format(i): (64, 64) for i in range(4)})
    base, expert = dict(same), models.tuned(same, 2)
    shorter = models.random(3, {mlp.format(1): (32, 64)})
    base |= shorter
    wide = ("F64", np.zeros((64, 64), np.uint64))
    base[mlp.format(2)], expert[mlp.format(2)] = wide, wide
    del base[mlp.format(3)]
    found = plans(
        models.save("base", base), models.save("expert", expert), ConvertOptions(preset="chat")
    )
    assert {name: plan.note for name, plan in found.items()} == {
        mlp.format(0): None,
        mlp.format(1): "another shape than in the base",
        mlp.format(2): "F64 is not a float of 16 or 32 bits",
        mlp.format(3): "not in the base",
    }
    assert onebit(found) == {mlp.format(0)}


def test_other_families_and_stacks_of_experts(models: Models) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.h.0.attn.c_attn.weight": (64, 192),
        "transformer.h.0.attn.c_attn.bias": (192,),
        "transformer.h.0.attn.bias": (1, 1, 64, 64),
        "transformer.h.0.mlp.c_fc.weight": (64, 256),
        "transformer.h.0.ln_1.weight": (64,),
        "transformer.wte.weight": (100, 64),
        "bert.encoder.layer.0.attention.self.query.weight": (64, 64),
        "bert.encoder.layer.0.attention.output.LayerNorm.weight": (64,),
        "bert.encoder.layer.0.intermediate.dense.weight": (128, 64),
        "bert.embeddings.word_embeddings.weight": (100, 64),
        "model.layers.0.mlp.experts.gate_up_proj": (4, 32, 64),
        "model.layers.0.mlp.experts.gate_up_proj_bias": (64, 64),
        "model.layers.0.mlp.gate.weight": (64, 64),
    }
    tensors = models.random(1, shapes)
    base = models.save("base", tensors)
    expert = models.save("expert", models.tuned(tensors, 2))
    assert onebit(plans(base, expert, ConvertOptions(preset="math"))) == {
        "transformer.h.0.attn.c_attn.weight",
        "bert.encoder.layer.0.attention.self.query.weight",
    }
    assert onebit(plans(base, expert, ConvertOptions(preset="chat"))) == {
        "transformer.h.0.mlp.c_fc.weight",
        "bert.encoder.layer.0.intermediate.dense.weight",
        "model.layers.0.mlp.experts.gate_up_proj",
    }


def test_tied_tensors_are_planned_as_such_even_under_a_glob(models: Models) -> None:
    tensors = models.llama(1)
    tensors["lm_head.weight"] = tensors[EMBEDDING]
    base = models.save("base", tensors)
    tuned = models.tuned(tensors, 2)
    tuned["lm_head.weight"] = tuned[EMBEDDING]
    expert = models.save("expert", tuned)
    options = ConvertOptions(preset="none", onebit=("*embed*", "*"))
    plan = plans(base, expert, options)["lm_head.weight"]
    assert (plan.tied_to, plan.base, plan.onebit) == (EMBEDDING, None, False)
    with pytest.raises(UsageError, match="tied"):
        plans(base, expert, ConvertOptions(preset="none", onebit=("lm_head.weight",)))


def test_files_go_by_group_in_model_order(models: Models) -> None:
    shapes = {f"model.layers.{i}.mlp.up_proj.weight": (4, 4) for i in (10, 9, 1)}
    shapes |= {"model.layers.3.self_attn.q_proj.weight": (4, 4), "strange": (1, 1)}
    tensors = models.random(1, shapes)
    folder = Checkpoint.open(models.save("m", tensors))
    files = plan_conversion(folder, folder, ConvertOptions(preset="none"))
    assert [(f.group, [t.name for t in f.tensors]) for f in files] == [
        ("attention", ["model.layers.3.self_attn.q_proj.weight"]),
        ("mlp", [f"model.layers.{i}.mlp.up_proj.weight" for i in (1, 9, 10)]),
        ("other", ["strange"]),
    ]


@pytest.mark.parametrize(
    ("shard_size", "counts"), [(1, [1, 1, 1, 1]), (64, [2, 2]), (95, [2, 2]), (10**9, [4])]
)
def test_shards_are_filled_up_to_their_size(
    models: Models, shard_size: int, counts: list[int]
) -> None:
    tensors = models.random(1, {f"layers.{i}.mlp.up.weight": (4, 4) for i in range(4)})
    folder = Checkpoint.open(models.save("m", tensors))
    options = ConvertOptions(preset="none", shard_size=shard_size)
    files = plan_conversion(folder, folder, options)
    assert [len(f.tensors) for f in files] == counts


@pytest.mark.parametrize(
    ("scale", "scales"), [("matrix", 2), ("row", 10), ("column", 18), ("rank1", 28)]
)
@pytest.mark.parametrize("planes", [1, 3])
def test_the_bound_of_a_onebit_tensor_counts_signs_and_scales(
    models: Models, scale: str, scales: int, planes: int
) -> None:
    folder = Checkpoint.open(models.save("m", models.random(1, {"x": (2, 5, 9)})))
    plan = TensorPlan(name="x", group="mlp", base="x", onebit=True)
    bound = stored_bound(plan, folder, SignOptions(scale=scale, planes=planes))
    assert bound == planes * (2 * 5 * 2 + 4 * scales)
