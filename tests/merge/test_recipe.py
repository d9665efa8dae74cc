from __future__ import annotations

from pathlib import Path

import pytest

from onebitfmt.errors import UsageError
from onebitfmt.merge.recipe import METHODS, Recipe, dump_recipe, load_recipe, parse_recipe
from onebitfmt.merge.ties import PRESETS

FULL = """
merge_method: onebit_merging
preset: onebit
select: math
seed: 5
parameters: {density: 0.3, lambda: 0.25, normalize: true}
models:
  - model: chat
    parameters: {weight: 0.5}
  - model: math
groups:
  mlp: {density: 0.1, lambda: 0.5}
  attention: {lambda_onebit: 0.7}
"""


def test_a_file_says_it_all(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(FULL)
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe == Recipe(
        select="math", seed=5, density=0.3, lambda_onebit=0.25, lambda_dense=0.25, normalize=True,
        weights={"chat": 0.5, "math": 1.0},
        groups={"mlp": {"density": 0.1, "lambda": 0.5}, "attention": {"lambda_onebit": 0.7}},
    )  # fmt: skip
    assert recipe.density_of("mlp") == 0.1
    assert recipe.density_of("attention") == 0.3
    found = [recipe.lambda_of(g, onebit=b) for g in ("mlp", "attention") for b in (True, False)]
    assert found == [0.5, 0.5, 0.7, 0.25]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_written_is_read_back(method: str, preset: str) -> None:
    for recipe in (
        Recipe(method=method, preset=preset),
        Recipe(method=method, preset=preset, select="é x", lambda_onebit=0.1, seed=-3),
        Recipe(method=method, preset=preset, lambda_onebit=0.1, lambda_dense=0.1, density=1 / 3),
        Recipe(method=method, preset=preset, weights={"yes": 1e-7}, normalize=False, rescale=False),
        Recipe(method=method, preset=preset, groups={"mlp": {"lambda": 0.5}}),
    ):
        assert parse_recipe(dump_recipe(recipe), "again") == recipe


def test_an_empty_recipe_is_the_default() -> None:
    assert parse_recipe("", "x") == parse_recipe("{}", "x") == Recipe()


def test_lambda_is_small_only_for_what_goes_into_an_expert() -> None:
    assert Recipe(select="a").lambda_of("mlp", onebit=True) == 0.1
    assert Recipe().lambda_of("mlp", onebit=True) == 1.0
    assert Recipe(method="ties").lambda_of("mlp", onebit=False) == 1.0
    assert Recipe(lambda_onebit=0.3).lambda_of("mlp", onebit=True) == 0.3
    assert Recipe(lambda_onebit=0.3).lambda_of("mlp", onebit=False) == 1.0


def test_switches_follow_the_method() -> None:
    assert Recipe(method="dare_ties").rescales
    assert not Recipe(method="ties").rescales
    assert not Recipe(method="dare_ties", rescale=False).rescales
    assert Recipe(method="dare_ties").normalizes
    assert not Recipe(method="dare_ties", preset="mergekit").normalizes
    assert not Recipe(method="task_arithmetic").normalizes
    assert Recipe(method="task_arithmetic", normalize=True).normalizes


def test_another_selected_expert() -> None:
    recipe = Recipe(density=0.4)
    assert recipe.with_select("code") == Recipe(density=0.4, select="code")
    assert recipe.with_select("code").with_select(None) == recipe


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[1]", "fields"),
        ("x: [", "YAML"),
        ("density: 0.3", "density"),
        ("parameters: {weight: 1}", "weight"),
        ("parameters: 3", "parameters"),
        ("parameters: {density: yes}", "number"),
        ("parameters: {density: 1.5}", "0 to 1"),
        ("parameters: {density: .nan}", "finite"),
        ("parameters: {lambda: .inf}", "finite"),
        (f"parameters: {{lambda: {10**400}}}", "too large"),
        ("parameters: {normalize: 1}", "true or false"),
        ("merge_method: slerp", "onebit_merging"),
        ("merge_method: [a]", "text"),
        ("preset: best", "official"),
        ("seed: 0.5", "integer"),
        ("seed: true", "integer"),
        ("models: {a: 1}", "list"),
        ("models: [{parameters: {weight: 1}}]", "name"),
        ("models: [{model: a}, {model: a}]", "name"),
        ("models: [{model: a, weight: 1}]", "weight"),
        ("models: [{model: a, parameters: {density: 1}}]", "density"),
        ("groups: {mlps: {density: 0.1}}", "mlp"),
        ("groups: {mlp: {weight: 0.1}}", "weight"),
        ("merge_method: ties\npreset: official\ngroups: {mlp: {density: 0.1}}", "whole"),
        ("merge_method: ties\nparameters: {rescale: true}", "rescale"),
        ("a: &x [1]\nb: *x", "references"),
        ("!!python/object/apply:os.getcwd []", "YAML"),
    ],
)
def test_what_means_nothing_is_refused(text: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        parse_recipe(text, "r.yaml")


def test_messages_stay_short() -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe("merge_method: " + "x" * 10_000, "r.yaml")
    assert len(str(caught.value)) < 400


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml"):
        load_recipe(tmp_path / "none.yaml")
