"""`obd restore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onebitfmt.cli.console import (
    BaseModel,
    BundleSource,
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


@command
def run(
    base: BaseModel,
    bundle: BundleSource,
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint folder to write.")],
    shard_size: Annotated[str, typer.Option(help="Largest weight file.")] = "5GB",
    jobs: Jobs = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rebuild an expert as a plain Hugging Face checkpoint."""
    from onebitfmt.source import open_checkpoint
    from onebitfmt.transfer.opening import open_bundle
    from onebitfmt.verbs.restore import restore, restored_bytes

    opened = open_bundle(bundle)
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
        say(f"{output}: {len(opened.manifest.tensors)} tensors in {len(files)} files")
