from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from onebitfmt.cli import router
from onebitfmt.collection import Collection
from tests.transfer.published import REPO

if TYPE_CHECKING:
    from tests.conftest import Pair
    from tests.transfer.published import Published

Run = Callable[..., Any]
BASE = Path(__file__).parents[1] / "data" / "family" / "base"


@pytest.fixture
def tool() -> Run:
    app = typer.Typer()
    app.add_typer(router.app, name="router")

    def run(*arguments: object, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["router", *map(str, arguments)])
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    pairs = [("math", f"{i}+{i}=") for i in range(20)]
    pairs += [("code", f'reverse("{chr(97 + i) * 4}") ->') for i in range(20)]
    return write(path, pairs)


def write(path: Path, pairs: Iterable[tuple[str, str]]) -> Path:
    lines = [json.dumps({"prompt": p, "label": k}) for k, p in pairs]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("features", ["ngrams", "embedding"])
@pytest.mark.parametrize("kind", ["softmax", "mlp"])
def test_train_and_eval(tool: Run, data: Path, tmp_path: Path, features: str, kind: str) -> None:
    out = tmp_path / "r.safetensors"
    options = ("--features", features, "--kind", kind, "--json")
    told = json.loads(tool("train", BASE, data, "-o", out, *options).stdout)
    assert told["labels"] == ["code", "math"]
    assert (told["train"], told["held_out"]) == (32, 8)
    assert told["features"] == features
    assert told["confusion"] == [[4, 0], [0, 4]]
    marks = json.loads(tool("eval", out, data, "--base", BASE, "--json").stdout)
    assert marks["accuracy"] == 1
    assert marks["examples"] == 40
    assert marks["confusion"] == [[20, 0], [0, 20]]
    text = tool("eval", out, data, "--base", BASE).stdout
    assert "accuracy 100.00 % of 40 prompts" in text


def test_hidden_is_the_default(tool: Run, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    out = tmp_path / "r.safetensors"
    text = tool("train", BASE, data, "-o", out).stdout
    assert "hidden features (128), softmax" in text
    assert "accuracy 100.00 % of 8 prompts held out" in text


def test_an_output_is_not_replaced_unasked(tool: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.safetensors"
    out.write_text("mine")
    arguments = ("train", BASE, data, "-o", out, "--features", "ngrams", "-q")
    assert "--overwrite" in tool(*arguments, code=3).stderr
    assert out.read_text() == "mine"
    assert tool(*arguments, "--overwrite").stdout == ""
    assert out.read_bytes() != b"mine"


def test_ngrams_read_no_base(tool: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.safetensors"
    tool("train", tmp_path / "none", data, "-o", out, "--features", "ngrams", "-q")
    tool("eval", out, data)


def test_a_bad_line_is_2_with_its_number(tool: Run, data: Path, tmp_path: Path) -> None:
    with data.open("a") as f:
        f.write('{"prompt": "x"}\n')
    out = tmp_path / "r.safetensors"
    assert "data.jsonl:41: no field 'label'" in tool("train", BASE, data, "-o", out, code=2).stderr
    assert not out.exists()


def test_wrong_requests(tool: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.safetensors"
    assert "ngrams" in tool("train", BASE, data, "-o", out, "--features", "x", code=2).stderr
    tool("train", BASE, data, "-o", out, "--features", "embedding", "-q")
    assert "--base" in tool("eval", out, data, code=2).stderr
    math = BASE.parent / "math"
    assert "embed_tokens" in tool("eval", out, data, "--base", math, code=1).stderr
    other = write(tmp_path / "o.jsonl", [("chat", "hello")])
    assert "'chat'" in tool("eval", out, other, "--base", BASE, code=2).stderr
    assert "no such file" in tool("eval", tmp_path / "no", data, code=1).stderr
    assert "not a collection" in tool("eval", BASE.parent, data, code=1).stderr


def test_the_router_of_a_collection_is_marked(
    tool: Run, data: Path, pair: Pair, tmp_path: Path
) -> None:
    out = tmp_path / "r.safetensors"
    tool("train", BASE, data, "-o", out, "--features", "ngrams", "-q")
    names = dict.fromkeys(("math", "code"), pair.bundle)
    Collection.create(tmp_path / "c", pair.base, names, router=out)
    assert json.loads(tool("eval", tmp_path / "c", data, "--json").stdout)["accuracy"] == 1
    Collection.create(tmp_path / "d", pair.base, names)
    assert "has no router" in tool("eval", tmp_path / "d", data, code=2).stderr


def test_the_router_of_a_collection_on_the_hub_is_marked(
    tool: Run, published: Published, tmp_path: Path
) -> None:
    data = write(tmp_path / "d.jsonl", [("chat", "hello"), ("math", "1+1=")])
    found = tool("eval", REPO, data, "--json").stdout
    assert published.downloaded().keys() == {"config.json", "router.safetensors"}
    assert found == tool("eval", published.local.folder, data, "--json").stdout
    assert "no such local path" in tool("eval", "models/nix", data, code=3).stderr
