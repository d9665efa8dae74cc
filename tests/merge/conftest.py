"""A base and three experts, as checkpoints and as bundles of several kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.codecs.sign import SignOptions
from onebitfmt.merge.engine import Merger
from onebitfmt.merge.experts import ExpertSource
from onebitfmt.merge.recipe import Recipe
from onebitfmt.verbs.convert import convert
from onebitfmt.verbs.plan import ConvertOptions

if TYPE_CHECKING:
    from tests.conftest import Models, Tensors

EXPERTS = ("chat", "math", "code")
KINDS = {
    "matrix": ConvertOptions(preset="linear", sign=SignOptions(scale="matrix")),
    "rank1": ConvertOptions(preset="linear"),
    "planes": ConvertOptions(preset="linear", sign=SignOptions(planes=2)),
    "mixed": ConvertOptions(preset="math"),
    "exact": ConvertOptions(preset="none"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Read only. `tensors` has what each checkpoint holds, under `base` and the experts' names."""

    root: Path
    tensors: dict[str, Tensors]

    @property
    def base(self) -> Checkpoint:
        return Checkpoint.open(self.root / "base")

    def sources(self, kind: str) -> list[ExpertSource]:
        """The experts as bundles of a kind, or as full checkpoints."""
        if kind == "full":
            return [ExpertSource.open(self.root / name) for name in EXPERTS]
        return [ExpertSource.open(self.root / f"{kind}-{name}.obd") for name in EXPERTS]

    def merger(self, kind: str, recipe: Recipe) -> Merger:
        return Merger(self.base, self.sources(kind), recipe)


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory, models_at: Callable[[Path], Models]) -> Family:
    models = models_at(tmp_path_factory.mktemp("merge"))
    tensors = {"base": models.llama(1)}
    models.save("base", tensors["base"], files={"config.json": '{"of": "base"}'})
    for seed, name in enumerate(EXPERTS):
        tensors[name] = models.tuned(tensors["base"], 10 + seed)
        # What no expert changed.
        tensors[name]["model.norm.weight"] = tensors["base"]["model.norm.weight"]
        files = {"config.json": f'{{"of": "{name}"}}', "tokenizer.json": f'"{name}"'}
        models.save(name, tensors[name], files=files)
        for kind, options in KINDS.items():
            bundle = models.root / f"{kind}-{name}.obd"
            convert(models.root / "base", models.root / name, bundle, options, name=name)
    return Family(root=models.root, tensors=tensors)
