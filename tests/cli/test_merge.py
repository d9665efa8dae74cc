from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from onebitfmt.cli import merge
from onebitfmt.merge.recipe import load_recipe
from tests.transfer.published import REPO

if TYPE_CHECKING:
    from tests.conftest import Models, Pair
    from tests.transfer.published import Published

Run = Callable[..., Any]


@pytest.fixture
def run(pair: Pair) -> Run:
    """Runs `obd merge BASE` with arguments and compares the exit code."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(merge.run)

    def run(*arguments: object, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [str(a) for a in (pair.base, *arguments)])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return run


def test_options_become_a_recipe(run: Run, pair: Pair, tmp_path: Path) -> None:
    two = f"two={pair.bundle}"
    result = run(
        pair.bundle, two, "--select", "two", "--density", 0.4, "--lambda", 0.3, "--seed", 5,
        "--weight", "expert=0.5", "-o", tmp_path / "m",
    )  # fmt: skip
    assert result.stdout == f"{tmp_path / 'm'}: {len(pair.base_tensors)} tensors in 1 files\n"
    recipe = load_recipe(tmp_path / "m" / "merge_recipe.yaml")
    assert (recipe.method, recipe.select, recipe.density) == ("onebit_merging", "two", 0.4)
    assert recipe.lambda_onebit == recipe.lambda_dense == 0.3
    assert recipe.weights == {"expert": 0.5, "two": 1.0}
    assert recipe.seed == 5


def test_a_recipe_file_and_an_option_over_it(run: Run, pair: Pair, models: Models) -> None:
    file = models.root / "r.yaml"
    file.write_text("merge_method: ties\nparameters: {density: 0.5, lambda: 0.7}\n")
    run(pair.bundle, "--recipe", file, "--density", 0.25, "-o", models.root / "m", "-q")
    recipe = load_recipe(models.root / "m" / "merge_recipe.yaml")
    assert (recipe.method, recipe.density, recipe.lambda_dense) == ("ties", 0.25, 0.7)
    run(pair.bundle, "--recipe", models.root / "m" / "merge_recipe.yaml", "-o", models.root / "n")
    assert models.load(models.root / "m") == models.load(models.root / "n")


def test_full_checkpoints(run: Run, pair: Pair, models: Models) -> None:
    run(pair.expert, "--full", "--method", "task_arithmetic", "-o", models.root / "m")
    run(pair.expert, "--full", "--method", "select", "--select", "expert", "-o", models.root / "n")
    assert models.load(models.root / "n") == models.content(pair.expert_tensors)
    assert "--full" in run(pair.expert, "--method", "ties", "-o", models.root / "x", code=2).stderr
    result = run(pair.bundle, "--full", "--method", "ties", "-o", models.root / "x", code=2)
    assert "--full" in result.stderr


def test_json_has_files_and_notes(run: Run, pair: Pair, models: Models) -> None:
    fewer = models.tuned(pair.base_tensors, 3)
    del fewer["model.norm.weight"]
    expert = models.save("few", fewer)
    result = run(expert, "--full", "--method", "ties", "-o", models.root / "m", "--json")
    found = json.loads(result.stdout)
    assert found["files"] == [str(models.root / "m" / "model.safetensors")]
    [note] = found["notes"]
    assert "model.norm.weight" in note
    result = run(expert, "--full", "--method", "ties", "-o", models.root / "m", "--overwrite")
    assert f"note: {note}" in result.stdout


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ([], "--select"),
        (["--method", "select"], "--select"),
        (["--select", "poetry"], "expert"),
        (["--method", "slerp"], "ties"),
        (["--method", "ties", "--preset", "mine"], "official"),
        (["--method", "ties", "--density", "2"], "0 to 1"),
        (["--method", "ties", "--weight", "expert"], "NAME=X"),
        (["--method", "ties", "--weight", "expert=a"], "NAME=X"),
        (["--method", "ties", "--weight", "x=1"], "expert"),
        (["--recipe", "none.yaml"], "none.yaml"),
    ],
)
def test_wrong_usage_is_2(
    run: Run, pair: Pair, tmp_path: Path, options: list[str], word: str
) -> None:
    result = run(pair.bundle, *options, "-o", tmp_path / "m", code=2)
    assert word in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_could_not_be_tried(run: Run, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    result = run(missing, "--full", "--method", "ties", "-o", tmp_path / "m", code=3)
    assert str(missing) in result.stderr


def test_experts_come_from_the_hub(published: Published, models: Models) -> None:
    base, folder = published.local.base, published.local.folder / "experts"
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(merge.run)
    local = (folder / "math.obd", f"talk={folder / 'chat.obd'}")
    for output, experts in (
        ("local", local),
        ("remote", (f"{REPO}:math", f"talk={REPO}:chat@{published.commit}")),
    ):
        words = (base, *experts, "--select", "talk", "-o", models.root / output, "-q")
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
    assert models.load(models.root / "remote") == models.load(models.root / "local")
    recipe = load_recipe(models.root / "remote" / "merge_recipe.yaml")
    assert set(recipe.weights) == {"math", "talk"}
