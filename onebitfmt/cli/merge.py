"""`obd merge`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebitfmt.cli.console import (
    BaseModel,
    Jobs,
    Json,
    Overwrite,
    Quiet,
    command,
    parse_size,
    print_json,
    progress,
    say,
)
from onebitfmt.errors import UsageError

if TYPE_CHECKING:
    from onebitfmt.checkpoint import Checkpoint
    from onebitfmt.merge.experts import ExpertSource
    from onebitfmt.merge.recipe import Recipe


@command
def run(
    base: BaseModel,
    experts: Annotated[
        list[str],
        typer.Argument(metavar="EXPERT...", help="Bundles: folders, or Hub ids ns/name:expert; "
                       "NAME=BUNDLE gives another name."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint folder to write.")],
    recipe: Annotated[
        Path | None, typer.Option(help="YAML recipe; the options below override it.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="onebit_merging (default), ties, task_arithmetic, average, dare_linear, "
            "dare_ties, select."
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="TIES as in: onebit (default), paper, official, mergelm, "
                                 "mergekit.")
    ] = None,
    select: Annotated[
        str | None, typer.Option(help="Expert that the others are merged into.")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of a task vector to keep; default 0.2.")
    ] = None,
    lambda_: Annotated[
        float | None,
        typer.Option("--lambda", help="Factor of what is merged; default 0.1 with --select, or 1."),
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option(metavar="NAME=X", help="Weight of an expert; default 1.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of DARE's masks; default 0.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="EXPERTs are full checkpoints, not bundles.")
    ] = False,
    shard_size: Annotated[str, typer.Option(help="Largest weight file.")] = "5GB",
    jobs: Jobs = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Merge experts into a plain Hugging Face checkpoint."""
    from onebitfmt.source import open_checkpoint

    given = {
        "method": method, "preset": preset, "select": select, "density": density,
        "lambda_onebit": lambda_, "lambda_dense": lambda_, "seed": seed,
    }  # fmt: skip
    wanted = _recipe(recipe, given, _weights(weight or ()))
    opened = [_open(text, full=full) for text in experts]
    _write(
        open_checkpoint(base), opened, wanted, output,
        settings={"shard_size": parse_size(shard_size), "jobs": jobs, "overwrite": overwrite},
        quiet=quiet, as_json=as_json,
    )  # fmt: skip


def _write(
    base: Checkpoint, experts: Sequence[ExpertSource], recipe: Recipe, output: Path, *,
    settings: Mapping[str, Any], quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    from onebitfmt.merge.engine import Merger
    from onebitfmt.verbs.merge import merge_experts, merged_bytes

    total = merged_bytes(Merger(base, experts, recipe))
    with progress(f"merge {output.name}", total, quiet=quiet) as done:
        report = merge_experts(base, experts, recipe, output, progress=done, **settings)
    if as_json:
        files = [str(file) for file in report.files]
        print_json({"checkpoint": str(output), "files": files, "notes": list(report.notes)})
    elif not quiet:
        say(f"{output}: {report.tensors} tensors in {len(report.files)} files")
        for note in report.notes:
            say(f"note: {note}")


def _recipe(path: Path | None, given: Mapping[str, Any], weights: Mapping[str, float]) -> Recipe:
    """The recipe of the file, or the default one, with what the options say in its place."""
    from dataclasses import replace

    from onebitfmt.merge.recipe import Recipe, load_recipe

    own = Recipe() if path is None else load_recipe(path)
    told = {name: value for name, value in given.items() if value is not None}
    recipe = replace(own, **told, weights={**own.weights, **weights})
    if recipe.method in ("onebit_merging", "select") and recipe.select is None:
        raise UsageError(f"{recipe.method} needs --select NAME: the expert to merge into")
    return recipe


def _weights(texts: Sequence[str]) -> dict[str, float]:
    weights = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise UsageError(f"--weight takes NAME=X, such as math=0.5, not {text!r}")
    return weights


def _open(text: str, *, full: bool) -> ExpertSource:
    from onebitfmt.format.manifest import FILE_NAME
    from onebitfmt.hub.address import hub_id
    from onebitfmt.merge.experts import ExpertSource
    from onebitfmt.transfer.opening import open_named_bundle

    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        name, path = "", text
    if not full and hub_id(path):
        own, bundle = open_named_bundle(path)
        return ExpertSource(name=name or own, bundle=bundle)
    is_bundle = (Path(path) / FILE_NAME).is_file()
    if is_bundle == full:
        told = "drop --full" if full else "pass --full for full checkpoints"
        raise UsageError(f"{path} is {'a' if is_bundle else 'not a'} bundle; {told}")
    return ExpertSource.open(path, name=name or None)
