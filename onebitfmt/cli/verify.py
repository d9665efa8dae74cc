"""`obd verify`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onebitfmt.cli.console import NO, Jobs, Json, Quiet, command, print_json, progress, say

if TYPE_CHECKING:
    from onebitfmt.collection import Collection
    from onebitfmt.verbs.verify import Finding


@command
def run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Bundle or collection: a folder, or ns/name[:expert][@revision] on the Hub, of "
            "which all is fetched first.",
        ),
    ],
    base: Annotated[
        str | None, typer.Option(help="Base model: also rebuild and compare every tensor.")
    ] = None,
    jobs: Jobs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a bundle or a collection: every digest and rule; with --base every tensor."""
    from onebitfmt.source import open_checkpoint
    from onebitfmt.verbs.verify import verify

    of_base = open_checkpoint(base) if base else None
    subject = _open(source)
    total = subject.nbytes(with_base=base is not None)
    with progress(f"verify {Path(source).name}", total, quiet=quiet) as done:
        reports = [verify(path, of_base, jobs=jobs, progress=done) for path in subject.bundles]
    findings = [*subject.findings, *(f for report in reports for f in report.findings)]
    tensors = sum(report.tensors for report in reports)
    if as_json:
        told = [asdict(f) for f in findings]
        print_json({"valid": not findings, "tensors": tensors, "findings": told})
    else:
        for finding in findings:
            say(finding.message)
        if not findings and not quiet:
            how = "rebuilt and compared" if base else "stored bytes"
            experts = f"{len(reports)} experts, " if subject.is_collection else ""
            files = sum(report.files for report in reports)
            say(f"{source}: valid; {experts}{files} files, {tensors} tensors ({how})")
    if findings:
        raise typer.Exit(NO)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Subject:
    """Bundles to check, and what is known to be wrong before."""

    bundles: tuple[Path, ...] = ()
    is_collection: bool = False
    findings: tuple[Finding, ...] = ()

    def nbytes(self, *, with_base: bool) -> int:
        """How many bytes there are to check."""
        from onebitfmt.bundle import Bundle
        from onebitfmt.errors import FormatError, MissingBundleError
        from onebitfmt.verbs.verify import verify_bytes

        try:
            opened = [Bundle.open(path) for path in self.bundles]
        except MissingBundleError:
            raise
        except FormatError:
            return 0  # The report says what is wrong.
        return sum(verify_bytes(bundle, with_base=with_base) for bundle in opened)


def _open(source: str) -> _Subject:
    from onebitfmt.collection_config import holds_collection
    from onebitfmt.hub.address import hub_id, local_path
    from onebitfmt.transfer.opening import open_collection, open_named_bundle

    address, path = hub_id(source), local_path(source)
    if address is not None and address.expert is not None:
        return _Subject(bundles=(open_named_bundle(source)[1].path,))
    if address is not None:
        return _of_collection(open_collection(source))
    if not holds_collection(path):
        return _Subject(bundles=(path,))
    return _of_folder(path)


def _of_folder(path: Path) -> _Subject:
    from onebitfmt.collection import Collection
    from onebitfmt.errors import FormatError, UnsupportedError
    from onebitfmt.verbs.verify import Finding

    try:
        return _of_collection(Collection.open(path))
    except UnsupportedError:
        raise
    except FormatError as e:
        return _Subject(findings=(Finding(id=e.id, message=str(e)),), is_collection=True)


def _of_collection(collection: Collection) -> _Subject:
    from onebitfmt.errors import FormatError
    from onebitfmt.verbs.verify import Finding

    bundles, findings = [], []
    for name in collection.expert_names:
        try:
            bundles.append(collection.bundle(name).path)
        except FormatError as e:
            findings.append(Finding(id=e.id, message=str(e)))
    try:
        collection.load_router()
    except FormatError as e:
        findings.append(Finding(id=e.id, message=str(e)))
    return _Subject(
        bundles=tuple(bundles),
        is_collection=True,
        findings=tuple(findings),
    )
