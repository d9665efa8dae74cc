"""`obd pull`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebitfmt.cli.console import Json, Quiet, command, print_json, say, size, table
from onebitfmt.errors import UsageError
from onebitfmt.format.manifest import EXPERT_FOLDER

if TYPE_CHECKING:
    from onebitfmt.transfer.pull import Pulled


@command(interrupted="interrupted; complete files are kept, and the same command goes on")
def run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="Collection on the Hub, or one expert: ns/name[:expert][@revision]."
        ),
    ],
    groups: Annotated[
        str | None, typer.Option(help="Only these layer groups, such as attention,mlp.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    local_dir: Annotated[
        Path | None, typer.Option(help="Folder for plain files; default: the Hub's cache.")
    ] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Another folder for the cache.")] = None,
    force_download: Annotated[
        bool, typer.Option("--force-download", help="Fetch again what is here already.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be fetched; fetch manifests alone.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch a collection, an expert or some of its layer groups from the Hub; prints the folder.

    A later pull completes what is here. Every file is checked before it is used.
    """
    from onebitfmt.transfer.pull import pull

    pulled = pull(
        source,
        groups=None if groups is None else _names(groups),
        local_dir=local_dir,
        force_download=force_download,
        dry_run=dry_run,
        revision=revision,
        cache_dir=cache_dir,
    )
    if as_json:
        print_json(_as_json(pulled, dry_run=dry_run))
        return
    if dry_run and not quiet:
        _print_plan(pulled)
    elif not quiet:
        _tell(pulled)
    if pulled.missing and not quiet:
        _tell_missing(pulled, source, _places(revision, local_dir, cache_dir))
    if not dry_run:
        say(str(pulled.path))


def _names(groups: str) -> list[str]:
    names = [name.strip() for name in groups.split(",")]
    if not any(names):
        raise UsageError("--groups names no layer group; say which, as in attention,mlp")
    return [name for name in names if name]


def _tell(pulled: Pulled) -> None:
    fetched = pulled.fetched
    here = [file for file in pulled.files if file.cached]
    say(f"{pulled.repo}@{pulled.commit}: {', '.join(pulled.experts)}", err=True)
    say(f"fetched {_amount(fetched)}; here already: {_amount(here)}", err=True)


def _amount(files: Any) -> str:
    count = len(files)
    return f"{count} file{'' if count == 1 else 's'}, {size(sum(file.nbytes for file in files))}"


def _places(revision: str | None, local_dir: Path | None, cache_dir: Path | None) -> list[str]:
    options = {"--revision": revision, "--local-dir": local_dir, "--cache-dir": cache_dir}
    return [text for name, value in options.items() if value for text in (name, str(value))]


def _tell_missing(pulled: Pulled, source: str, places: list[str]) -> None:
    for name, parts in pulled.missing.items():
        named = ("small files" if part == EXPERT_FOLDER else part for part in parts)
        say(f"missing of {name}: {', '.join(named)}", err=True)
    completing = shlex.join(["obd", "pull", source, *places])
    say(f"complete it with: {completing}", err=True)


def _print_plan(pulled: Pulled) -> None:
    rows = [[f.path, size(f.nbytes), "here" if f.cached else "fetch"] for f in pulled.files]
    table(f"{pulled.repo}@{pulled.commit}", ("file", "bytes", ""), rows)
    say(f"would fetch {_amount(pulled.fetched)}")


def _as_json(pulled: Pulled, *, dry_run: bool) -> dict[str, Any]:
    return {
        "path": str(pulled.path),
        "repo": pulled.repo,
        "commit": pulled.commit,
        "experts": list(pulled.experts),
        "files": [{"path": f.path, "bytes": f.nbytes, "cached": f.cached} for f in pulled.files],
        "fetched_bytes": sum(file.nbytes for file in pulled.fetched),
        "missing": {name: list(parts) for name, parts in pulled.missing.items()},
        "dry_run": dry_run,
    }
