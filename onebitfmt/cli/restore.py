"""`obd restore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
)


@command
def run(
    base: BaseModel,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint folder to write.")],
    shard_size: Annotated[str, typer.Option(help="Largest weight file.")] = "5GB",
    jobs: Jobs = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rebuild an expert as a plain Hugging Face checkpoint."""
    from onebitfmt.bundle import Bundle
    from onebitfmt.source import open_checkpoint
    from onebitfmt.verbs.restore import restore, restored_bytes

    opened = Bundle.open(bundle)
    of_base = open_checkpoint(base)
    with progress(f"restore {output.name}", restored_bytes(opened), quiet=quiet) as done:
        files = restore(
            of_base,
            opened,
            output,
            shard_size=parse_size(shard_size),
            jobs=jobs,
            overwrite=overwrite,
            progress=done,
        )
    if as_json:
        print_json({"checkpoint": str(output), "files": [str(f) for f in files]})
    elif not quiet:
        typer.echo(f"{output}: {len(opened.manifest.tensors)} tensors in {len(files)} files")
