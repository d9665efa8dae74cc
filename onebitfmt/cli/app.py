"""The `obd` command: one subcommand a verb."""

from __future__ import annotations

from typing import Annotated

import typer

from onebitfmt import __version__
from onebitfmt.cli import (
    collect,
    convert,
    generate,
    inspect,
    merge,
    pull,
    push,
    restore,
    route,
    router,
    storage,
    verify,
)
from onebitfmt.cli.console import catch_signals

app = typer.Typer(
    name="obd",
    no_args_is_help=True,
    rich_markup_mode=None,  # loading rich would double the time to answer
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("convert")(convert.run)
app.command("restore")(restore.run)
app.command("inspect")(inspect.run)
app.command("verify")(verify.run)
app.command("storage")(storage.run)
app.command("merge")(merge.run)
app.add_typer(router.app, name="router", help="Train and evaluate a router.")
app.command("route")(route.run)
app.command("collect")(collect.run)
app.command("generate")(generate.run)
app.command("push")(push.run)
app.command("pull")(pull.run)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"onebitfmt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep fine-tuned experts as one-bit task vectors against one base model.

    Exit codes: 0 done, or the answer is yes; 1 the answer is no (invalid, differs);
    2 wrong usage; 3 it could not be tried (missing file, network, full disk).
    """


def main() -> None:
    """The console script."""
    catch_signals()
    app()
