"""`obd collect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebitfmt.cli.console import (
    BaseModel,
    Json,
    Overwrite,
    Quiet,
    command,
    percent,
    print_json,
    size,
    table,
)
from onebitfmt.errors import UsageError

if TYPE_CHECKING:
    from onebitfmt.collection import Collection


@command
def run(
    base: BaseModel,
    bundles: Annotated[
        list[str],
        typer.Argument(metavar="BUNDLE...", help="Bundle folders; NAME=BUNDLE renames an expert."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Collection folder to write.")],
    router: Annotated[
        Path | None, typer.Option(help="Router file that `obd router train` wrote.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="Default merge recipe, a YAML file.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put bundles of one base, a router and a merge recipe into one collection folder."""
    from onebitfmt.collection import Collection
    from onebitfmt.merge.recipe import load_recipe

    collection = Collection.create(
        output,
        base,
        _named(bundles),
        recipe=None if recipe is None else load_recipe(recipe),
        router=router,
        overwrite=overwrite,
    )
    if as_json:
        print_json(_as_json(collection))
    elif not quiet:
        _print(collection)


def _named(bundles: list[str]) -> dict[str, str]:
    from onebitfmt.container import Container

    found: dict[str, str] = {}
    for text in bundles:
        # A path may hold `=` itself, so one that exists is taken as it is.
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = Container.open(Path(text)).manifest.expert.name, text
        if name in found:
            raise UsageError(f"two experts are called {name!r}; rename one: NAME={path}")
        found[name] = path
    return found


def _as_json(collection: Collection) -> dict[str, Any]:
    router = collection.load_router()
    return {
        "collection": str(collection.path),
        "base": str(collection.base),
        "experts": {name: entry.nbytes for name, entry in collection.experts.items()},
        "router": None if router is None else {"features": router.spec.kind},
        "recipe": collection.config.recipe,
    }


def _print(collection: Collection) -> None:
    rows = []
    for name in collection.expert_names:
        entry = collection.experts[name]
        elements = sum(g.elements for g in entry.groups)
        rows.append(
            [name, size(entry.nbytes), percent(sum(g.onebit for g in entry.groups), elements)]
        )
    table(str(collection.path), ("expert", "bytes", "one-bit"), rows)
    router = collection.load_router()
    if router is None:
        typer.echo("no router: experts are chosen by name")
    else:
        typer.echo(f"router on {router.spec.kind} features, for {', '.join(router.labels)}")
    typer.echo(f"base {collection.base}")
