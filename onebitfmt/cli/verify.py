"""`obd verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from onebitfmt.cli.console import NO, Jobs, Json, Quiet, command, print_json, progress


@command
def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")],
    base: Annotated[
        str | None, typer.Option(help="Base model: also rebuild and compare every tensor.")
    ] = None,
    jobs: Jobs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a bundle: every digest, every rule of the format; with --base every tensor."""
    from onebitfmt.bundle import Bundle
    from onebitfmt.errors import FormatError, MissingBundleError
    from onebitfmt.source import open_checkpoint
    from onebitfmt.verbs.verify import verify, verify_bytes

    of_base = open_checkpoint(base) if base else None
    try:
        total = verify_bytes(Bundle.open(bundle), with_base=base is not None)
    except MissingBundleError:
        raise
    except FormatError:
        total = 0  # The report says what is wrong.
    with progress(f"verify {bundle.name}", total, quiet=quiet) as done:
        report = verify(bundle, of_base, jobs=jobs, progress=done)
    if as_json:
        findings = [asdict(f) for f in report.findings]
        print_json({"valid": not findings, "tensors": report.tensors, "findings": findings})
    else:
        for finding in report.findings:
            typer.echo(finding.message)
        if not report.findings and not quiet:
            how = "rebuilt and compared" if report.with_base else "stored bytes"
            typer.echo(f"{bundle}: valid; {report.files} files, {report.tensors} tensors ({how})")
    if report.findings:
        raise typer.Exit(NO)
