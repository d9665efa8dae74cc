"""`obd push`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebitfmt.cli.console import Jobs, Json, Quiet, command, print_json, progress, say, size, table

if TYPE_CHECKING:
    from onebitfmt.transfer.push import Pushed


@command(interrupted="interrupted; what was sent is not sent again, and the same command goes on")
def run(
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="Collection folder, or a single bundle.")
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repository on the Hub: ns/name.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private, if it is new.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to commit to, made from main if new.")
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead.")
    ] = False,
    commit_message: Annotated[str | None, typer.Option(help="Title of the commit.")] = None,
    base_model_id: Annotated[
        str | None,
        typer.Option(
            metavar="NS/NAME[@REVISION]",
            help="Where the base model is on the Hub, if it was a local folder.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, and say what would be sent.")
    ] = False,
    jobs: Jobs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish a collection or a bundle on the Hub, in one commit.

    A bundle is added to the repository's collection; a collection takes its place. Files that are
    there already are not sent again, so it is safe to repeat.
    """
    from onebitfmt.transfer.push import PushOptions, push

    options = PushOptions(
        private=private,
        revision=revision,
        create_pr=create_pr,
        message=commit_message,
        base_model_id=base_model_id,
        dry_run=dry_run,
    )
    pushed = push(
        source,
        repo,
        options,
        jobs=jobs,
        checking=lambda total: progress(f"check {source.name}", total, quiet=quiet),
    )
    if as_json:
        print_json(_as_json(pushed, dry_run=dry_run))
    elif dry_run:
        _print_plan(pushed)
    else:
        _print(pushed, quiet=quiet)


def _print_plan(pushed: Pushed) -> None:
    rows = [[f.path, size(f.nbytes), "there already" if f.there else "send"] for f in pushed.files]
    rows += [[path, "", "remove"] for path in pushed.deleted]
    table(f"{pushed.repo}{' (new)' if pushed.created else ''}", ("file", "bytes", ""), rows)
    say(f"would send {size(pushed.sent)}" if pushed.changed else "nothing would change")


def _print(pushed: Pushed, *, quiet: bool) -> None:
    sent = [file for file in pushed.files if not file.there]
    if not quiet and not pushed.changed:
        say(f"{pushed.repo}: nothing to change", err=True)
    elif not quiet:
        removed = f", {len(pushed.deleted)} removed" if pushed.deleted else ""
        say(
            f"{pushed.repo}: {len(sent)} files sent ({size(pushed.sent)}), "
            f"{len(pushed.files) - len(sent)} there already{removed}",
            err=True,
        )
    say(f"commit {pushed.commit}")
    say(str(pushed.pull_request or pushed.url))


def _as_json(pushed: Pushed, *, dry_run: bool) -> dict[str, Any]:
    return {**asdict(pushed), "sent_bytes": pushed.sent, "dry_run": dry_run}
