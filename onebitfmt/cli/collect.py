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
    say,
    size,
    table,
)
from onebitfmt.errors import UsageError

if TYPE_CHECKING:
    from onebitfmt.bundle import Bundle
    from onebitfmt.collection import Collection


@command
def run(
    base: BaseModel,
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE...",
            help="Bundles: folders, or Hub ids ns/name:expert; NAME=BUNDLE renames an expert.",
        ),
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


def _named(sources: list[str]) -> dict[str, Bundle]:
    from onebitfmt.transfer.opening import open_named_bundle

    found: dict[str, Bundle] = {}
    for text in sources:
        # A path may hold `=` itself, so one that exists is taken as it is.
        name, equals, source = text.partition("=")
        if not equals or Path(text).exists():
            name, source = "", text
        own, bundle = open_named_bundle(source)
        if (name or own) in found:
            raise UsageError(f"two experts are called {name or own!r}; rename one: NAME={source}")
        found[name or own] = bundle
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
        say("no router: experts are chosen by name")
    else:
        say(f"router on {router.spec.kind} features, for {', '.join(router.labels)}")
    say(f"base {collection.base}")
