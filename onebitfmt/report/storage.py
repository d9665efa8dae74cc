"""Bytes on disk of a set of bundles, against full routing and against the paper's own scheme.

Full routing keeps every expert as a checkpoint. The paper's scheme (arXiv 2502.10743) keeps one bit
a weight and one FP16 scale a matrix where a tensor is one-bit, and FP16 for all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.container import Container, stored_names
from onebitfmt.format.dtypes import matrices, nbytes
from onebitfmt.format.manifest import EXPERT_FOLDER, TensorEntry, Terms, Tied


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupStorage:
    """A layer group of one bundle; `onebit` counts the elements that are one-bit. Bytes.

    `stored` are the group's files; `full` the tensors of the expert; `paper` what the paper's
    scheme takes for the same choice of one-bit tensors.
    """

    name: str
    tensors: int
    elements: int
    onebit: int
    stored: int
    full: int
    paper: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertStorage:
    """One bundle: its groups, its manifest and the expert's small files, in bytes."""

    name: str
    path: Path
    groups: tuple[GroupStorage, ...]
    manifest: int
    small_files: int

    @property
    def stored(self) -> int:
        """Bytes on disk of the bundle."""
        return sum(g.stored for g in self.groups) + self.manifest + self.small_files

    @property
    def full(self) -> int:
        """Bytes of the full expert: its tensors and small files."""
        return sum(g.full for g in self.groups) + self.small_files

    @property
    def paper(self) -> int:
        """Bytes of the paper's scheme, small files included."""
        return sum(g.paper for g in self.groups) + self.small_files


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageReport:
    """A set of bundles of one base; `base` is the base checkpoint's bytes, 0 if not given."""

    experts: tuple[ExpertStorage, ...]
    base: int

    @property
    def stored(self) -> int:
        """Bytes of all bundles."""
        return sum(e.stored for e in self.experts)

    @property
    def full(self) -> int:
        """Bytes of all full experts."""
        return sum(e.full for e in self.experts)

    @property
    def paper(self) -> int:
        """Bytes of the paper's scheme for all experts."""
        return sum(e.paper for e in self.experts)


def storage(bundles: Sequence[str | Path], base: Checkpoint | None = None) -> StorageReport:
    """Measure bundles on disk. Raises `FormatError`."""
    experts = tuple(expert_storage(Container.open(Path(p))) for p in bundles)
    return StorageReport(experts=experts, base=0 if base is None else base.nbytes)


def expert_storage(container: Container) -> ExpertStorage:
    """The storage of one bundle, from its manifest."""
    manifest = container.manifest
    groups = []
    for group in manifest.groups:
        entries = [t for t in manifest.tensors.values() if t.group == group.name]
        groups.append(
            GroupStorage(
                name=group.name,
                tensors=len(entries),
                elements=sum(prod(t.shape) for t in entries),
                onebit=sum(prod(t.shape) for t in entries if isinstance(t.coding, Terms)),
                stored=sum(manifest.files[f].size for f in group.files),
                full=sum(nbytes(t.dtype, t.shape) for t in entries),
                paper=sum(paper_bytes(t) for t in entries),
            )
        )
    small = sum(f.size for p, f in manifest.files.items() if p.startswith(EXPERT_FOLDER))
    listed = sum(f.size for f in manifest.files.values())
    return ExpertStorage(
        name=manifest.expert.name,
        path=container.path,
        groups=tuple(groups),
        manifest=container.nbytes - listed,
        small_files=small,
    )


def paper_bytes(entry: TensorEntry) -> int:
    """Bytes of a tensor in the paper's scheme: signs and a scale a matrix, or FP16."""
    if isinstance(entry.coding, Tied):
        return 0
    if isinstance(entry.coding, Terms):
        stack, height, width = matrices(entry.shape)
        return stack * (height * -(-width // 8) + 2)
    return 2 * prod(entry.shape)


def stored_bytes(container: Container, name: str) -> int:
    """Bytes of one tensor's parts in its group file."""
    path = container.file_of(name)
    if path is None:
        return 0
    spans = container.file(path).header.spans
    names = stored_names(name, container.manifest.tensors[name])
    return sum(spans[n].end - spans[n].begin for n in names)
