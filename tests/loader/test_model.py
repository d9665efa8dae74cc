from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import family as tasks
import pytest
import torch
import transformers

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.collection import Collection
from onebitfmt.errors import HubError, OnebitError, UsageError
from onebitfmt.format.manifest import EXPERT_FOLDER
from onebitfmt.loader import skeleton
from onebitfmt.loader.model import RoutedModel
from onebitfmt.loader.weights import RoutedWeights
from onebitfmt.merge.recipe import Recipe
from onebitfmt.routing.examples import Example
from onebitfmt.routing.features import make_featurizer
from onebitfmt.routing.router import Decision
from onebitfmt.routing.train import train_router
from onebitfmt.verbs.merge import merge_experts

if TYPE_CHECKING:
    from tests.hubserver.hub import Hub
    from tests.loader.conftest import Family

SELECT = Recipe(method="select")
KINDS = {
    "llama": "AutoModelForCausalLM",
    "gpt2": "AutoModelForCausalLM",
    "bert": "AutoModelForMaskedLM",
}


def routed(family: Family, recipe: Recipe = SELECT, **options: Any) -> RoutedModel:
    ahead = options.pop("ahead", True)
    weights = RoutedWeights(family.base, dict(family.bundles), recipe, dtype="bfloat16", **options)
    folders: dict[str | None, Path] = {n: p / EXPERT_FOLDER for n, p in family.bundles.items()}
    return RoutedModel(weights, folders | {None: family.base}, ahead=ahead)


def inputs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randint(2, 96, (2, 7), generator=generator)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=inputs()).logits
    return found


def merged(family: Family, kind: str, expert: str | None, recipe: Recipe, output: Path) -> Any:
    merge_experts(family.base, list(family.bundles.values()), recipe.with_select(expert), output)
    return getattr(transformers, KINDS[kind]).from_pretrained(output)


@pytest.mark.parametrize("kind", list(KINDS))
def test_logits_are_those_of_the_merged_checkpoint(
    random_family: Callable[[str], Family], tmp_path: Path, kind: str
) -> None:
    family, recipe = random_family(kind), Recipe()
    want = {
        expert: logits(merged(family, kind, expert, recipe, tmp_path / str(expert)))
        for expert in ("a", "b", None)
    }
    for ahead in (True, False):
        model = routed(family, recipe, ahead=ahead)
        for expert in ("a", "b", None, "a"):
            model.activate(expert)
            assert model.active == expert
            assert torch.equal(logits(model.model), want[expert])


@pytest.mark.parametrize("kind", list(KINDS))
def test_layers_let_go_give_the_same(random_family: Callable[[str], Family], kind: str) -> None:
    family = random_family(kind)
    whole, streamed = routed(family), routed(family, budget=0)
    for expert in ("a", "b", "a"):
        whole.activate(expert)
        streamed.activate(expert)
        for _ in range(2):
            assert torch.equal(logits(streamed.model), logits(whole.model))
    layers = [u for u in streamed._body.units if u.layer]
    assert all(getattr(s.module, s.name).numel() == 0 for u in layers for s in u.slots)
    assert streamed.weights.stats.cache.held == 0
    with pytest.raises(UsageError, match="budget"):
        streamed.load()


def test_a_switch_rebuilds_nothing_until_a_layer_runs(
    random_family: Callable[[str], Family],
) -> None:
    model = routed(random_family("llama"), ahead=False)
    model.activate("b")
    assert model.weights.stats.cache.built == 0
    inner = model.model.model
    hidden = inner.embed_tokens(inputs())
    assert model.weights.stats.cache.built == 1
    places = torch.arange(7)[None]
    inner.layers[1](hidden, position_embeddings=inner.rotary_emb(hidden, places))
    assert model.weights.stats.cache.built == 1 + 9
    assert inner.layers[0].mlp.up_proj.weight.numel() == 0
    inner.layers[0].mlp(hidden)
    assert inner.layers[0].mlp.up_proj.weight.numel() > 0


def test_loading_in_advance_leaves_nothing_to_do(random_family: Callable[[str], Family]) -> None:
    model = routed(random_family("gpt2"))
    model.load()
    built = model.weights.stats.cache.built
    logits(model.model)
    assert model.weights.stats.cache.built == built


def test_tied_weights_are_one_tensor(random_family: Callable[[str], Family]) -> None:
    model = routed(random_family("llama"))
    model.load()
    inner = model.model
    assert inner.lm_head.weight.data_ptr() == inner.model.embed_tokens.weight.data_ptr()


def test_switching_to_the_same_expert_changes_nothing(
    random_family: Callable[[str], Family],
) -> None:
    model = routed(random_family("gpt2"))
    model.load()
    before = model.model.transformer.wte.weight
    model.activate(model.active)
    assert model.model.transformer.wte.weight is before


def test_experts_with_another_vocabulary_get_a_body_of_their_own(
    random_family: Callable[[str], Family], tmp_path: Path
) -> None:
    from onebitfmt.verbs.convert import convert
    from onebitfmt.verbs.plan import ConvertOptions

    family = random_family("gpt2")
    tuned = transformers.GPT2LMHeadModel.from_pretrained(family.experts["b"])
    tuned.resize_token_embeddings(101, mean_resizing=False)
    tuned.save_pretrained(tmp_path / "grown")
    convert(family.base, tmp_path / "grown", tmp_path / "g.obd", ConvertOptions(preset="math"))
    bundles = {"a": family.bundles["a"], "g": tmp_path / "g.obd"}
    weights = RoutedWeights(family.base, bundles, SELECT, dtype="bfloat16")
    model = RoutedModel(weights, {n: p / EXPERT_FOLDER for n, p in bundles.items()})
    for name, size in (("a", 96), ("g", 101), ("a", 96)):
        model.activate(name)
        assert logits(model.model).shape[-1] == size


def test_an_encoder_does_not_generate(random_family: Callable[[str], Family]) -> None:
    family = random_family("bert")
    model = routed(family)
    model._tokenizers[model._folders["a"]] = object()
    with pytest.raises(UsageError, match="BertForMaskedLM does not generate"):
        model.generate("x", "a")


# --- the trained family --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collection(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("collection") / "family"
    Collection.create(
        output, family.base, list(family.bundles.values()), recipe=Recipe(), router=None
    )
    return output


@pytest.fixture(scope="module")
def model(collection: Path, family: Family) -> RoutedModel:
    return RoutedModel.from_pretrained(collection, base=family.base, dtype="float32")


def asked() -> list[tasks.Prompt]:
    return [p for group in zip(*(tasks.prompts(t, "test")[:3] for t in tasks.TASKS), strict=True)
            for p in group]  # fmt: skip


def by_task(prompts: list[tasks.Prompt]) -> list[Decision]:
    return [Decision(expert=p.task, probabilities={}, reason="known") for p in prompts]


def test_a_mixed_batch_is_answered_in_order(model: RoutedModel) -> None:
    prompts = asked()
    told = model.generate([p.text for p in prompts], decisions=by_task(prompts), max_new_tokens=12)
    right = [text.strip() == p.answer for text, p in zip(told, prompts, strict=True)]
    assert sum(right) >= 7
    for prompt, text in zip(prompts[:4], told, strict=False):
        assert model.generate(prompt.text, prompt.task, max_new_tokens=12) == [text]


def test_threads_take_turns(model: RoutedModel) -> None:
    prompts = asked()
    want = model.generate([p.text for p in prompts], decisions=by_task(prompts), max_new_tokens=8)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda p: model.generate(p.text, p.task, max_new_tokens=8)[0], prompts)
        assert list(found) == want


def test_text_is_streamed(model: RoutedModel) -> None:
    pieces: list[str] = []
    prompt = tasks.prompts("chat", "test")[0]
    told = model.generate(prompt.text, "chat", max_new_tokens=12, on_text=pieces.append)
    assert "".join(pieces) == told[0]
    with pytest.raises(UsageError, match="one prompt"):
        model.generate(["a", "b"], "chat", on_text=pieces.append)


def test_the_static_merge_answers_where_no_expert_was_found(model: RoutedModel) -> None:
    decision = Decision(expert=None, probabilities={}, reason="unsure")
    assert len(model.generate("1+1=", decisions=[decision], max_new_tokens=2)) == 1
    assert model.active is None


def test_without_a_router_the_expert_must_be_named(model: RoutedModel, family: Family) -> None:
    with pytest.raises(UsageError, match="no router"):
        model.generate("1+1=")
    with pytest.raises(UsageError, match=r"'poetry'.*chat, code, math"):
        model.generate("1+1=", "poetry")
    assert model.decide(["a", "b"], "math") == [model.decide(["a"], "math")[0]] * 2


def test_the_router_decides(family: Family, tmp_path: Path) -> None:
    examples = [
        Example(prompt=p.text, label=task)
        for task in tasks.TASKS
        for p in tasks.prompts(task, "train")[:60]
    ]
    train_router(examples, make_featurizer("ngrams")).save(tmp_path / "router.safetensors")
    Collection.create(
        tmp_path / "routed",
        family.base,
        list(family.bundles.values()),
        recipe=SELECT,
        router=tmp_path / "router.safetensors",
    )
    model = RoutedModel.from_pretrained(tmp_path / "routed", base=family.base)
    prompts = asked()[:6]
    assert [d.expert for d in model.route([p.text for p in prompts])] == [p.task for p in prompts]
    told = model.generate([p.text for p in prompts], max_new_tokens=12)
    assert told == model.generate(
        [p.text for p in prompts], decisions=by_task(prompts), max_new_tokens=12
    )


def test_a_sole_expert_needs_no_router(random_family: Callable[[str], Family]) -> None:
    family = random_family("gpt2")
    weights = RoutedWeights(family.base, {"a": family.bundles["a"]}, SELECT)
    model = RoutedModel(weights, {"a": family.bundles["a"] / EXPERT_FOLDER})
    assert [d.expert for d in model.decide(["x", "y"])] == ["a", "a"]


def test_the_dtype_is_the_experts_own(collection: Path, family: Family) -> None:
    model = RoutedModel.from_pretrained(collection, base=family.base, keep_base="disk")
    assert model.weights.dtype == torch.bfloat16
    assert model.model.dtype == torch.bfloat16
    assert model.active == "chat"


def test_a_base_that_is_not_known_is_said(collection: Path, tmp_path: Path) -> None:
    with pytest.raises(OnebitError, match="base"):
        RoutedModel.from_pretrained(collection)
    with pytest.raises(OnebitError, match="nowhere"):
        RoutedModel.from_pretrained(collection, base=tmp_path / "nowhere")


def test_an_expert_without_configuration_is_said(
    random_family: Callable[[str], Family], tmp_path: Path
) -> None:
    family = random_family("gpt2")
    weights = RoutedWeights(family.base, {"a": family.bundles["a"]}, SELECT)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no config\.json"):
        RoutedModel(weights, {"a": tmp_path / "empty"})


def test_code_from_a_checkpoint_is_not_run(
    random_family: Callable[[str], Family], tmp_path: Path
) -> None:
    family = random_family("gpt2")
    folder = tmp_path / "odd"
    shutil.copytree(family.bundles["a"] / EXPERT_FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Own"], "auto_map": {"AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('run')")
    weights = RoutedWeights(family.base, {"a": family.bundles["a"]}, SELECT)
    with pytest.raises(UsageError, match="Own"):
        RoutedModel(weights, {"a": folder})


def test_without_transformers_the_remedy_is_told(
    monkeypatch: pytest.MonkeyPatch, collection: Path
) -> None:
    monkeypatch.setattr(skeleton, "transformers", None)
    with pytest.raises(OnebitError, match=r"onebitfmt\[transformers\]"):
        RoutedModel.from_pretrained(collection)


def files_of(folder: Path) -> dict[str, bytes | Path]:
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def test_a_collection_on_the_hub_brings_its_base_at_its_commit(
    random_family: Callable[[str], Family], hub: Hub, tmp_path: Path
) -> None:
    family = random_family("llama")
    commit = hub.commit("org/base", files_of(family.base))
    hub.commit("org/base", {"model.safetensors": b"something else"})
    base = Checkpoint.open(family.base, repo="org/base", revision=commit)
    Collection.create(tmp_path / "c", base, list(family.bundles.values()))
    hub.commit("org/experts", files_of(tmp_path / "c"))
    hub.tag("org/experts", "v1")
    hub.commit("org/experts", {"config.json": b"{}"})
    hub.repo("org/experts").private = True
    cache = tmp_path / "cache"
    model = RoutedModel.from_pretrained(
        "org/experts", revision="v1", token=hub.token, cache_dir=cache
    )
    local = RoutedModel.from_pretrained(tmp_path / "c", base=family.base)
    for expert in ("a", "b"):
        model.activate(expert)
        local.activate(expert)
        assert torch.equal(logits(model.model), logits(local.model))
    assert cache in model.weights.base.path.parents
    assert not list(hub.cache.rglob("*.safetensors"))
    assert all(r.user_agent.startswith("onebitfmt/") for r in hub.requests)
    hub.forget()
    again = RoutedModel.from_pretrained(
        "org/experts", revision="v1", cache_dir=cache, local_files_only=True
    )
    assert again.active == "a"
    assert hub.requests == []
    with pytest.raises(HubError, match="private"):
        RoutedModel.from_pretrained("org/experts", token=False)
