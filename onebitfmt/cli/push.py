"""`obd push`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebitfmt.cli.console import Jobs, Json, Quiet, command, print_json, progress, say, size, table
from onebitfmt.report.quantities import count

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

    A new repository is public unless --private is given. A bundle is added to the repository's
    collection; a collection takes its place, so that experts it lacks are removed there. Files
    that are there already are not sent again: it is safe to repeat.
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
        return
    if dry_run and not quiet:
        _print_files(pushed)
    if not quiet:
        _tell(pushed, would=dry_run)
    if not dry_run:
        say(f"commit {pushed.commit}")
        say(str(pushed.pull_request or pushed.url))


def _print_files(pushed: Pushed) -> None:
    rows = [[f.path, size(f.nbytes), "there already" if f.there else "send"] for f in pushed.files]
    rows += [[path, "", "remove"] for path in pushed.deleted]
    table(pushed.repo, ("file", "bytes", ""), rows)


def _tell(pushed: Pushed, *, would: bool) -> None:
    if pushed.created:
        kind = "private" if pushed.private else "public"
        say(f"{pushed.repo}: {'would be ' if would else ''}a new {kind} repository", err=True)
    if not pushed.changed:
        say(f"{pushed.repo}: nothing to change", err=True)
    else:
        sent = [file for file in pushed.files if not file.there]
        there = len(pushed.files) - len(sent)
        say(
            f"{pushed.repo}: {'would send' if would else 'sent'} {count(len(sent), 'file')} "
            f"({size(pushed.sent)}); {there} there already",
            err=True,
        )
    for part, number in removed_parts(pushed.deleted).items():
        say(f"{'would remove' if would else 'removed'} {part}: {count(number, 'file')}", err=True)
    for note in pushed.notes:
        say(f"note: {note}", err=True)


def removed_parts(paths: Sequence[str]) -> dict[str, int]:
    """What removed files were part of, and how many of them."""
    parts = (p.split("/")[1].removesuffix(".obd") if "/" in p else p for p in paths)
    return dict(Counter(parts))


def _as_json(pushed: Pushed, *, dry_run: bool) -> dict[str, Any]:
    files = [{"path": f.path, "bytes": f.nbytes, "there": f.there} for f in pushed.files]
    return {**asdict(pushed), "files": files, "sent_bytes": pushed.sent, "dry_run": dry_run}
