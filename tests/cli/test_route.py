from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from onebitfmt.cli import route
from onebitfmt.collection import Collection
from onebitfmt.routing.examples import Example
from onebitfmt.routing.ngrams import CharacterNGrams, ngram_spec
from onebitfmt.routing.train import train_router
from tests.transfer.published import REPO

if TYPE_CHECKING:
    from tests.conftest import Pair
    from tests.transfer.published import Published

Run = Callable[..., Any]


@pytest.fixture
def tool(made: Path) -> Run:
    app = typer.Typer()
    app.command("route")(route.run)
    app.command("other")(lambda: None)

    def run(*arguments: object, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["route", str(made), *map(str, arguments)])
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def made(pair: Pair, tmp_path: Path) -> Path:
    examples = [Example(prompt=f"{i}+{i}=", label="math") for i in range(20)]
    examples += [Example(prompt=f"{chr(97 + i) * 5}()", label="code") for i in range(20)]
    examples += [Example(prompt=f"What is {chr(97 + i)}?", label="chat") for i in range(20)]
    router = train_router(examples, CharacterNGrams(spec=ngram_spec(256)))
    names = dict.fromkeys(("math", "code", "chat"), pair.bundle)
    Collection.create(tmp_path / "c", pair.base, names, router=router)
    return tmp_path / "c"


def test_each_prompt_has_its_expert(tool: Run) -> None:
    lines = tool("12+34=", "abc()", "What is this?").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["math", "code", "chat"]
    assert all("router: " in line for line in lines)


def test_json_has_probabilities_and_weights(tool: Run) -> None:
    [told] = json.loads(tool("12+34=", "--json").stdout)
    assert told["prompt"] == "12+34="
    assert told["expert"] == "math"
    assert told["weights"] == {"math": 1.0}
    assert sum(told["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    [two] = json.loads(tool("12+34=", "--top", 2, "--json").stdout)
    assert len(two["weights"]) == 2
    [soft] = json.loads(tool("12+34=", "--soft", "--json").stdout)
    assert soft["weights"] == pytest.approx(told["probabilities"], abs=1e-6)
    text = tool("12+34=", "--soft").stdout
    assert text.startswith("math\tweights: math ")


def test_little_confidence_means_the_merge(tool: Run) -> None:
    [told] = json.loads(tool("12+34=", "--min-confidence", 1.0, "--json").stdout)
    assert (told["expert"], told["weights"]) == (None, {})
    assert tool("12+34=", "--min-confidence", 1.0).stdout.startswith("(all)\tmath has 0.")
    tool("12+34=", "--min-confidence", 1.5, code=2)


def test_an_expert_by_name_wins(tool: Run, made: Path) -> None:
    (made / "router.safetensors").unlink()
    assert tool("12+34=", "--expert", "code").stdout == "code\tasked for\n"
    assert "the experts are chat, code, math" in tool("x", "--expert", "x", code=2).stderr
    assert "no such file" in tool("x", code=1).stderr


def test_wrong_requests(tool: Run, pair: Pair, tmp_path: Path) -> None:
    assert "--soft" in tool("x", "--soft", "--top", 2, code=2).stderr
    tool("x", "--top", 0, code=2)


def test_without_a_router_experts_are_named(pair: Pair, made: Path, tool: Run) -> None:
    Collection.create(made, pair.base, [pair.bundle], overwrite=True)
    assert "--expert (expert)" in tool("x", code=2).stderr
    assert tool("x", "--expert", "expert").stdout.startswith("expert")


def test_a_collection_on_the_hub_sends_config_and_router(
    obd: Callable[..., Any], published: Published
) -> None:
    result = obd("route", REPO, "hello", "--expert", "math")
    assert result.stdout == "math\tasked for\n"
    result = obd("route", REPO, "hello")
    assert published.downloaded().keys() == {"config.json", "router.safetensors"}
    assert result.stdout == obd("route", published.local.folder, "hello").stdout
    assert "the experts are chat, math" in obd("route", REPO, "x", "--expert", "x", code=2).stderr
    assert REPO in obd("route", f"{REPO}:math", "hello", code=2).stderr
