"""`obd inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebitfmt.cli.console import Json, command, percent, print_json, size, table

if TYPE_CHECKING:
    from onebitfmt.container import Container
    from onebitfmt.format.manifest import TensorEntry


@command
def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="Also list every tensor.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a bundle holds: expert, base, layer groups, codings, sizes."""
    from onebitfmt.container import Container

    container = Container.open(bundle)
    if as_json:
        print_json(_as_json(container, tensors))
        return
    _print(container)
    if tensors:
        entries = container.manifest.tensors.items()
        rows = [_tensor_row(container, name, entry) for name, entry in entries]
        table("tensors", ("name", "group", "dtype", "shape", "coding", "stored"), rows)


def _print(container: Container) -> None:
    from onebitfmt.report.storage import expert_storage

    manifest = container.manifest
    storage = expert_storage(container)
    expert, base = manifest.expert, manifest.base
    origin = f" from {expert.repo}@{expert.revision}" if expert.repo else ""
    licence = f", licence {expert.license}" if expert.license else ""
    typer.echo(f"expert  {expert.name} ({expert.dtype}{licence}){origin}")
    typer.echo(f"base    {base}")
    typer.echo(f"format  obd {manifest.version}")
    for key, value in sorted(manifest.metadata.items()):
        if "." not in key:
            typer.echo(f"{key:<7} {value}")
    missing = set(container.missing_files)
    rows = []
    for group in storage.groups:
        files = next(g.files for g in manifest.groups if g.name == group.name)
        error = manifest.metadata.get(f"{group.name}.relative_squared_error")
        rows.append(
            [
                group.name,
                str(group.tensors),
                size(group.full),
                size(group.stored),
                percent(group.stored, group.full),
                percent(group.onebit, group.elements),
                error[:6] if error else "exact",
                _presence(files, missing),
            ]
        )
    rows.append(
        ["total", str(sum(g.tensors for g in storage.groups)), size(storage.full),
         size(storage.stored), percent(storage.stored, storage.full), "", "", ""]
    )  # fmt: skip
    columns = ("group", "tensors", "full", "stored", "ratio", "one-bit", "rel. sq. error", "files")
    table(str(container.path), columns, rows)
    typer.echo(f"total includes manifest {size(storage.manifest)}, small files "
               f"{size(storage.small_files)}")  # fmt: skip


def _presence(files: tuple[str, ...], missing: set[str]) -> str:
    if not files:
        return "none"
    here = sum(f not in missing for f in files)
    return str(len(files)) if here == len(files) else f"{here} of {len(files)} here"


def coding_name(entry: TensorEntry) -> str:
    """A tensor's coding in a word or two."""
    from onebitfmt.format.manifest import Exact, Terms, Tied

    coding = entry.coding
    if isinstance(coding, Terms):
        return "sign " + " + ".join(t.scale for t in coding.terms)
    if isinstance(coding, Tied):
        return f"tied to {coding.to}"
    if isinstance(coding, Exact):
        return "exact" if coding.coded == entry.dtype else f"exact as {coding.coded}"
    return "same"


def _tensor_row(container: Container, name: str, entry: TensorEntry) -> list[str]:
    from onebitfmt.report.storage import stored_bytes

    shape = "x".join(map(str, entry.shape)) or "scalar"
    path = container.file_of(name)
    stored = "missing" if path in container.missing_files else size(stored_bytes(container, name))
    return [name, entry.group, entry.dtype, shape, coding_name(entry), stored]


def _as_json(container: Container, tensors: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from onebitfmt.report.storage import expert_storage

    manifest = container.manifest
    storage = expert_storage(container)
    value: dict[str, Any] = {
        "path": str(container.path),
        "version": manifest.version,
        "expert": asdict(manifest.expert),
        "base": asdict(manifest.base),
        "metadata": dict(manifest.metadata),
        "stored_bytes": storage.stored,
        "full_bytes": storage.full,
        "groups": [asdict(g) for g in storage.groups],
        "missing_files": container.missing_files,
    }
    if tensors:
        value["tensors"] = {
            name: {"group": e.group, "dtype": e.dtype, "shape": e.shape, "coding": coding_name(e)}
            for name, e in manifest.tensors.items()
        }
    return value
