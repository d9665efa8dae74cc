"""Check a bundle against the specification, and, given its base model, every tensor's content."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from onebitfmt.bundle import Bundle
from onebitfmt.checkpoint import Checkpoint
from onebitfmt.container import sha256
from onebitfmt.errors import BaseMismatchError, FormatError, MissingBundleError
from onebitfmt.format.dtypes import nbytes
from onebitfmt.parallel import Workers
from onebitfmt.source import open_checkpoint

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A requirement that does not hold: its id and the whole message."""

    id: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """What `verify` looked at, and what it found; a valid bundle has no findings."""

    path: Path
    files: int
    tensors: int
    with_base: bool
    findings: tuple[Finding, ...]


def verify(
    bundle: str | Path,
    base: str | Path | Checkpoint | None = None,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check a bundle against every requirement of the specification, and collect all faults.

    Without a base: manifest, listing, SHA-256 of files, headers, digests of stored tensors, signs
    and scales. With it, each tensor is also rebuilt, and exact ones compared with the digest of the
    expert's own bytes. `progress` is called with numbers of bytes. What is wrong with the bundle is
    a finding: the first one where it cannot even be opened, else all of files and tensors. Raises
    `CheckpointError` where the base cannot be opened, `MissingBundleError` where nothing is there.
    """
    of_base = base if isinstance(base, Checkpoint) or base is None else open_checkpoint(base)
    try:
        opened = Bundle.open(bundle)
    except MissingBundleError:
        raise
    except FormatError as e:
        finding = Finding(id=e.id, message=str(e))
        return VerifyReport(
            path=Path(bundle), files=0, tensors=0, with_base=False, findings=(finding,)
        )
    report = progress or (lambda _: None)
    with Workers(jobs) as workers:
        findings = [
            *_check_files(opened, workers, report),
            *_check_tensors(opened, of_base, workers, report),
        ]
    return VerifyReport(
        path=opened.path,
        files=len(opened.manifest.files),
        tensors=len(opened.manifest.tensors),
        with_base=of_base is not None,
        findings=tuple(dict.fromkeys(findings)),
    )


def verify_bytes(bundle: Bundle, *, with_base: bool) -> int:
    """How many bytes `verify` reports as progress in all."""
    stored = sum(f.size for f in bundle.manifest.files.values())
    rebuilt = sum(nbytes(t.dtype, t.shape) for t in bundle.manifest.tensors.values())
    return stored + (rebuilt if with_base else 0)


def _check_files(bundle: Bundle, workers: Workers, progress: Progress) -> Iterator[Finding]:
    missing = set(bundle.container.missing_files)
    for path in sorted(missing):
        problem = f"{bundle.path / path}: listed but not there [OBD-DIR-MISSING]"
        yield Finding(id="OBD-DIR-MISSING", message=problem)
    present = [p for p in bundle.manifest.files if p not in missing]
    digests = workers.map(lambda p: sha256(bundle.path / p), present)
    for path, found in zip(present, digests, strict=True):
        if found != bundle.manifest.files[path].sha256:
            problem = f"{bundle.path / path}: its SHA-256 differs: damaged [OBD-DIR-SHA256]"
            yield Finding(id="OBD-DIR-SHA256", message=problem)
        progress(bundle.manifest.files[path].size)
        # Headers are checked even where no tensor refers to the file.
        if any(path in g.files for g in bundle.manifest.groups):
            try:
                bundle.container.file(path)
            except FormatError as e:
                yield Finding(id=e.id, message=str(e))


def _check_tensors(
    bundle: Bundle, base: Checkpoint | None, workers: Workers, progress: Progress
) -> Iterator[Finding]:
    missing = set(bundle.container.missing_files)
    for name in bundle.manifest.tensors:
        if bundle.container.file_of(name) in missing:
            continue
        try:
            bundle.check_stored(name)
            if base is not None:
                for block in bundle.blocks(name, base, workers):
                    progress(block.nbytes)
                bundle.release(name, base)
        except (FormatError, BaseMismatchError) as e:
            yield Finding(id=e.id, message=str(e))
