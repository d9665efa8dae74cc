"""`obd inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebitfmt.cli import inspect_collection
from onebitfmt.cli.console import Json, command, percent, print_json, say, size, table
from onebitfmt.report.quantities import rounded

if TYPE_CHECKING:
    from onebitfmt.container import Container
    from onebitfmt.format.manifest import TensorEntry
    from onebitfmt.hub.address import HubId


@command
def run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Bundle or collection: a folder, or ns/name[:expert][@revision] on the Hub.",
        ),
    ],
    tensors: Annotated[bool, typer.Option("--tensors", help="Also list every tensor.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a bundle or a collection holds: experts, base, layer groups, codings, sizes.

    From the Hub only manifests are fetched.
    """
    from onebitfmt.hub.address import hub_id, local_path

    address = hub_id(source)
    if address is None:
        _local(local_path(source), tensors=tensors, as_json=as_json)
    else:
        _remote(address, tensors=tensors, as_json=as_json)


def _local(path: Path, *, tensors: bool, as_json: bool) -> None:
    from onebitfmt.collection_config import holds_collection
    from onebitfmt.container import Container

    if not holds_collection(path):
        container = Container.open(path)
    elif tensors:
        from onebitfmt.transfer.opening import open_bundle

        container = open_bundle(path).container
    else:
        from onebitfmt.collection import Collection

        inspect_collection.show(Collection.open(path).config, path, as_json=as_json)
        return
    if as_json:
        print_json(_as_json(container, tensors))
    else:
        _show_bundle(container, str(container.path), str(container.manifest.base), tensors=tensors)


def _remote(address: HubId, *, tensors: bool, as_json: bool) -> None:
    from onebitfmt.transfer.opening import open_remote

    remote = open_remote(address)
    origin: dict[str, Any] = {"repo": remote.snapshot.repo, "commit": remote.snapshot.commit}
    if address.expert is None and not tensors:
        path = remote.snapshot.folder
        inspect_collection.show(remote.config, path, origin=origin, as_json=as_json)
        return
    expert = remote.choose(address.expert)
    remote.fetch_manifests([expert])
    container = remote.collection().bundle(expert).container
    title = f"{remote.snapshot.repo}:{expert}@{remote.snapshot.commit}"
    # The bundle itself may have been made against a local copy of the base.
    base = remote.config.base
    if as_json:
        print_json(_as_json(container, tensors) | origin | {"base": asdict(base)})
    else:
        _show_bundle(container, title, str(base), tensors=tensors)


def _show_bundle(container: Container, title: str, base: str, *, tensors: bool) -> None:
    _print(container, title, base)
    if tensors:
        entries = container.manifest.tensors.items()
        rows = [_tensor_row(container, name, entry) for name, entry in entries]
        table("tensors", ("name", "group", "dtype", "shape", "coding", "stored"), rows)


def _print(container: Container, title: str, base: str) -> None:
    from onebitfmt.report.storage import expert_storage

    manifest = container.manifest
    storage = expert_storage(container)
    expert = manifest.expert
    origin = f" from {expert.repo}@{expert.revision}" if expert.repo else ""
    licence = f", licence {expert.license}" if expert.license else ""
    say(f"expert  {expert.name} ({expert.dtype}{licence}){origin}")
    say(f"base    {base}")
    say(f"format  obd {manifest.version}")
    for key, value in sorted(manifest.metadata.items()):
        if "." not in key:
            say(f"{key:<7} {value}")
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
                rounded(error) if error else ("-" if group.onebit else "exact"),
                _presence(files, missing),
            ]
        )
    rows.append(
        ["total", str(sum(g.tensors for g in storage.groups)), size(storage.full),
         size(storage.stored), percent(storage.stored, storage.full), "", "", ""]
    )  # fmt: skip
    columns = ("group", "tensors", "full", "stored", "ratio", "one-bit", "rel. sq. error", "files")
    table(title, columns, rows)
    say(f"total includes manifest {size(storage.manifest)}, small files "
               f"{size(storage.small_files)}")  # fmt: skip


def _presence(files: tuple[str, ...], missing: set[str]) -> str:
    if not files:
        return "none"
    here = sum(f not in missing for f in files)
    return str(len(files)) if here == len(files) else f"{here} of {len(files)} here"


def _coding(entry: TensorEntry) -> str:
    from onebitfmt.format.manifest import Exact, Tied, coding_name

    coding = entry.coding
    if isinstance(coding, Tied):
        return f"tied to {coding.to}"
    if isinstance(coding, Exact) and coding.coded != entry.dtype:
        return f"exact as {coding.coded}"
    return coding_name(coding)


def _tensor_row(container: Container, name: str, entry: TensorEntry) -> list[str]:
    from onebitfmt.report.storage import stored_bytes

    shape = "x".join(map(str, entry.shape)) or "scalar"
    path = container.file_of(name)
    stored = "missing" if path in container.missing_files else size(stored_bytes(container, name))
    return [name, entry.group, entry.dtype, shape, _coding(entry), stored]


def _as_json(container: Container, tensors: bool) -> dict[str, Any]:
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
            name: {"group": e.group, "dtype": e.dtype, "shape": e.shape, "coding": _coding(e)}
            for name, e in manifest.tensors.items()
        }
    return value
