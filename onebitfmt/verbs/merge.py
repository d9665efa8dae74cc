"""Merge experts into a plain Hugging Face checkpoint, with the recipe beside the weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import FormatError
from onebitfmt.merge.engine import Merger
from onebitfmt.merge.experts import ExpertSource
from onebitfmt.merge.recipe import Recipe, dump_recipe
from onebitfmt.parallel import Workers
from onebitfmt.source import open_checkpoint
from onebitfmt.staging import check_output, staged
from onebitfmt.verbs.write_checkpoint import (
    DEFAULT_SHARD_SIZE,
    Progress,
    Spans,
    is_checkpoint,
    total_bytes,
    write_weights,
)

Array = NDArray[Any]

RECIPE_FILE: Final = "merge_recipe.yaml"


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeReport:
    """What was written: weight files, number of tensors, and remarks for people."""

    files: tuple[Path, ...]
    tensors: int
    notes: tuple[str, ...]


def merge_experts(
    base: str | Path | Checkpoint,
    experts: Sequence[str | Path | ExpertSource],
    recipe: Recipe,
    output: str | Path,
    *,
    shard_size: int = DEFAULT_SHARD_SIZE,
    jobs: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Merge experts, bundles or full checkpoints, into the checkpoint folder `output`.

    Configuration and tokenizer are the selected expert's, else the base's; the recipe is written
    as `merge_recipe.yaml`, with the weight of every expert. `progress` is called with numbers of
    bytes written. Raises `UsageError`, `CheckpointError`, `BaseMismatchError`, `FormatError`,
    `OutputError`.
    """
    target = Path(output)
    of_base = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    sources = [e if isinstance(e, ExpertSource) else ExpertSource.open(e) for e in experts]
    inputs = (of_base.path, *(source.path for source in sources))
    check_output(target, overwrite=overwrite, is_ours=is_checkpoint, inputs=inputs)
    for source in sources:
        _check_complete(source)
    merger = Merger(of_base, sources, recipe)
    model = _Merged(merger=merger)
    with staged(target) as folder, Workers(jobs) as workers:
        files = write_weights(folder, model, workers, shard_size=shard_size, progress=progress)
        _copy_small_files(merger, folder)
        text = dump_recipe(_complete(merger))
        (folder / RECIPE_FILE).write_text(text, encoding="utf-8")
    return MergeReport(
        files=tuple(target / file for file in files),
        tensors=len(merger.names),
        notes=tuple(merger.notes()),
    )


def merged_bytes(merger: Merger) -> int:
    """How many bytes writing a merged model reports as progress in all."""
    return total_bytes(merger.span(name) for name in merger.names)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Merged:
    """A merged model to be written."""

    merger: Merger

    @property
    def spans(self) -> Spans:
        return {name: self.merger.span(name) for name in self.merger.names}

    def blocks(self, name: str, workers: Workers) -> Iterator[Array]:
        return self.merger.blocks(name, workers)

    def release(self, name: str) -> None:
        self.merger.release(name)


def _complete(merger: Merger) -> Recipe:
    """The recipe with every expert's weight, so that the file lists what was merged."""
    weights: Mapping[str, float] = {
        expert.name: merger.recipe.weights.get(expert.name, 1.0) for expert in merger.experts
    }
    return replace(merger.recipe, weights=weights)


def _check_complete(source: ExpertSource) -> None:
    if source.bundle is None or not (missing := source.bundle.container.missing_files):
        return
    problem = f"incomplete, {len(missing)} files are missing, the first is {missing[0]}"
    raise FormatError("OBD-DIR-MISSING", str(source.path), problem)


def _copy_small_files(merger: Merger, folder: Path) -> None:
    selected = merger.selected
    files = merger.base.small_files() if selected is None else selected.small_files()
    for relative, path in files.items():
        copy = folder / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
