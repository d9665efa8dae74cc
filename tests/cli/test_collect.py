from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from onebitfmt.cli import collect
from onebitfmt.collection import Collection
from onebitfmt.routing.router import Router
from onebitfmt.routing.spec import FeatureSpec
from tests.transfer.published import REPO, contents

if TYPE_CHECKING:
    from tests.conftest import Models, Pair
    from tests.transfer.published import Published

Run = Callable[..., Any]


@pytest.fixture
def tool() -> Run:
    app = typer.Typer()
    app.command("collect")(collect.run)
    app.command("other")(lambda: None)

    def run(*arguments: object, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["collect", *map(str, arguments)])
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def router(tmp_path: Path) -> Path:
    spec = FeatureSpec(kind="ngrams", dimension=4, sizes=(1,))
    layer = (np.ones((2, 4), np.float32), np.zeros(2, np.float32))
    made = Router(labels=("expert", "twin"), spec=spec, layers=(layer,), temperature=1.0)
    made.save(tmp_path / "r.safetensors")
    return tmp_path / "r.safetensors"


def test_bundles_router_and_recipe_become_a_collection(
    tool: Run, pair: Pair, router: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("select: twin\nparameters: {density: 0.4}\n")
    out = tmp_path / "c"
    arguments = (pair.base, pair.bundle, f"twin={pair.bundle}", "-o", out)
    told = json.loads(tool(*arguments, "--router", router, "--recipe", recipe, "--json").stdout)
    collection = Collection.open(out)
    assert collection.expert_names == ("expert", "twin")
    assert (collection.recipe.select, collection.recipe.density) == ("twin", 0.4)
    assert told["router"] == {"features": "ngrams"}
    size = sum(p.stat().st_size for p in pair.bundle.rglob("*") if p.is_file())
    assert told["experts"] == {"expert": size, "twin": size}
    assert "--overwrite" in tool(*arguments, code=3).stderr
    text = tool(*arguments, "--overwrite").stdout
    assert f"{size / 1000:.2f} kB" in text
    assert "no router" in text
    assert tool(*arguments, "--overwrite", "-q", "--router", router).stdout == ""


def test_wrong_requests(
    tool: Run, pair: Pair, router: Path, models: Models, tmp_path: Path
) -> None:
    out = tmp_path / "c"
    assert "two experts" in tool(pair.base, pair.bundle, pair.bundle, "-o", out, code=2).stderr
    arguments = (pair.base, pair.bundle, "-o", out)
    assert "'twin'" in tool(*arguments, "--router", router, code=2).stderr
    assert "no.yaml" in tool(*arguments, "--recipe", tmp_path / "no.yaml", code=2).stderr
    other = models.save("other", models.llama(5))
    assert str(other) in tool(other, pair.bundle, "-o", out, code=1).stderr
    assert "no such bundle" in tool(pair.base, tmp_path / "no.obd", "-o", out, code=3).stderr
    assert not out.exists()


def test_bundles_come_from_the_hub(tool: Run, published: Published, tmp_path: Path) -> None:
    folder = published.local.folder / "experts"
    tool(published.local.base, f"{REPO}:math", f"talk={REPO}:chat", "-o", tmp_path / "c")
    tool(published.local.base, folder / "math.obd", f"talk={folder / 'chat.obd'}",
         "-o", tmp_path / "d")  # fmt: skip
    assert contents(tmp_path / "c") == contents(tmp_path / "d")
    assert Collection.open(tmp_path / "c").expert_names == ("math", "talk")
    arguments = (f"{REPO}:math", folder / "math.obd", "-o", tmp_path / "e")
    assert "two experts" in tool(published.local.base, *arguments, code=2).stderr
    assert not any(path.is_symlink() for path in (tmp_path / "c").rglob("*"))
