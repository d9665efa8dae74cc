from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from onebitfmt.cli import generate
from onebitfmt.collection import Collection
from onebitfmt.loader import skeleton
from onebitfmt.merge.recipe import Recipe
from onebitfmt.routing.examples import Example
from onebitfmt.routing.features import make_featurizer
from onebitfmt.routing.train import train_router
from onebitfmt.verbs.convert import convert
from onebitfmt.verbs.plan import ConvertOptions

if TYPE_CHECKING:
    from tests.hubserver.hub import Hub

FAMILY = Path(__file__).resolve().parents[1] / "data" / "family"
PROMPT, ANSWER = "94+59=", "153"

Generate = Callable[..., Any]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generate")
    for name in ("math", "chat"):
        options = ConvertOptions(preset="none")
        convert(FAMILY / "base", FAMILY / name, root / f"{name}.obd", options)
    bundles = [root / "math.obd", root / "chat.obd"]
    recipe = Recipe(method="select")
    Collection.create(root / "pair", FAMILY / "base", bundles, recipe=recipe, router=None)
    return root / "pair"


@pytest.fixture
def run() -> Iterator[Generate]:
    """Runs the command and compares the exit code; no error may be a traceback."""
    app = typer.Typer()
    app.command()(generate.run)

    def invoke(*arguments: object, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert result.exit_code == code, result.output
        return result

    yield invoke
    from transformers.utils import logging

    logging.set_verbosity_warning()
    logging.enable_progress_bar()


def test_the_answer_is_on_stdout_and_the_reason_on_stderr(run: Generate, collection: Path) -> None:
    result = run(
        collection, "--prompt", PROMPT, "--expert", "math", "--base", FAMILY / "base",
        "--max-new-tokens", 8,
    )  # fmt: skip
    assert result.stdout.strip() == ANSWER
    assert result.stdout.endswith("\n")
    assert result.stderr == "math: asked for\n"


def test_the_router_answers_unless_it_is_less_sure_than_asked(
    run: Generate, collection: Path, tmp_path: Path
) -> None:
    examples = [Example(prompt=f"{a}+{b}=", label="math") for a in range(9) for b in range(9)]
    people = ("Gunek", "Talo", "Mirva", "Osk")
    examples += [Example(prompt=f"Q: What is the pet of {p} {i}? A:", label="chat")
                 for p in people for i in range(20)]  # fmt: skip
    train_router(examples, make_featurizer("ngrams")).save(tmp_path / "router.safetensors")
    bundles = sorted((collection / "experts").iterdir())
    routed = tmp_path / "routed"
    router, recipe = tmp_path / "router.safetensors", Recipe(method="select")
    Collection.create(routed, FAMILY / "base", bundles, recipe=recipe, router=router)
    asked = (routed, "--prompt", PROMPT, "--base", FAMILY / "base", "--max-new-tokens", 8)
    sure = run(*asked)
    assert sure.stdout.strip() == ANSWER
    assert sure.stderr.startswith("math: router")
    unsure = run(*asked, "--min-confidence", 1.0)
    assert unsure.stderr.startswith("all experts merged: ")


def test_json_has_every_prompt(run: Generate, collection: Path) -> None:
    result = run(
        collection, "-p", PROMPT, "-p", "1+1=", "--expert", "math", "--base", FAMILY / "base",
        "--max-new-tokens", 8, "--dtype", "float32", "--keep-base", "disk", "--json",
    )  # fmt: skip
    first, second = json.loads(result.stdout)
    assert first["text"].strip() == ANSWER
    assert (first["prompt"], first["expert"], first["reason"]) == (PROMPT, "math", "asked for")
    assert second["prompt"] == "1+1="


def test_without_router_or_expert_is_2(run: Generate, collection: Path) -> None:
    result = run(collection, "-p", PROMPT, "--base", FAMILY / "base", code=2)
    assert "router" in result.stderr


def test_an_unknown_expert_is_2(run: Generate, collection: Path) -> None:
    result = run(collection, "-p", PROMPT, "--expert", "poetry", "--base", FAMILY / "base", code=2)
    assert "chat, math" in result.stderr


@pytest.mark.parametrize(
    ("option", "value"), [("--device", "toaster"), ("--dtype", "int3"), ("--keep-base", "cloud")]
)
def test_unknown_options_are_2(run: Generate, collection: Path, option: str, value: str) -> None:
    result = run(
        collection, "-p", PROMPT, "--expert", "math", "--base", FAMILY / "base", option, value,
        code=2,
    )  # fmt: skip
    assert value in result.stderr


def test_a_base_that_is_not_there_could_not_be_tried(
    run: Generate, collection: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    result = run(collection, "-p", PROMPT, "--expert", "math", "--base", missing, code=3)
    assert str(missing) in result.stderr


def test_another_base_is_1(run: Generate, collection: Path) -> None:
    result = run(collection, "-p", PROMPT, "--expert", "math", "--base", FAMILY / "chat", code=1)
    assert "base" in result.stderr


def test_without_transformers_the_remedy_is_told(
    run: Generate, collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skeleton, "transformers", None)
    result = run(collection, "-p", PROMPT, "--expert", "math", code=3)
    assert "pip install 'onebitfmt[transformers]'" in result.stderr


def test_a_collection_on_the_hub_answers(run: Generate, collection: Path, hub: Hub) -> None:
    files = {p.relative_to(collection).as_posix(): p for p in collection.rglob("*") if p.is_file()}
    hub.commit("tester/pair", dict(files))
    result = run(
        "tester/pair", "-p", PROMPT, "--expert", "math", "--base", FAMILY / "base",
        "--max-new-tokens", 8,
    )  # fmt: skip
    assert result.stdout.strip() == ANSWER
    assert (
        "give its collection, tester/pair" in run("tester/pair:math", "-p", PROMPT, code=2).stderr
    )
