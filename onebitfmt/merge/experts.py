"""One expert as a source of task vectors: a bundle, or a full checkpoint, behind one class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onebitfmt.bundle import Bundle, name_in
from onebitfmt.checkpoint import Checkpoint, Tensor
from onebitfmt.codecs.floats import to_float32
from onebitfmt.codecs.sign import Plane
from onebitfmt.errors import UsageError
from onebitfmt.format.dtypes import HALF_AND_SINGLE
from onebitfmt.format.manifest import EXPERT_FOLDER, FILE_NAME, Same, TensorEntry, Terms, Tied
from onebitfmt.groups import assign_groups
from onebitfmt.matching import match_names, model_order, tied_tensors
from onebitfmt.parallel import Workers
from onebitfmt.source import open_checkpoint

Array = NDArray[Any]

_BLOCK: Final = 1 << 20


@dataclass(kw_only=True)
class ExpertSource:
    """An open expert. `name` is unique within a merge; exactly one of the other two is given.

    Task vectors are relative to the base, as stored: one-bit where the bundle is. Reading from
    several threads at once is safe.
    """

    name: str
    bundle: Bundle | None = None
    checkpoint: Checkpoint | None = None
    _matches: dict[str, Mapping[str, str | None]] = field(default_factory=dict, repr=False)

    @staticmethod
    def open(path: str | Path, *, name: str | None = None) -> ExpertSource:
        """Open a bundle folder, or a full checkpoint: folder, .safetensors file or Hub id.

        The name is by default the bundle's own, or that of the folder. Raises `FormatError`,
        `CheckpointError`.
        """
        if (Path(path) / FILE_NAME).is_file():
            bundle = Bundle.open(path)
            return ExpertSource(name=name or bundle.manifest.expert.name, bundle=bundle)
        checkpoint = open_checkpoint(path)
        source = checkpoint.repo or checkpoint.path.resolve().name
        own = source.rpartition("/")[2].removesuffix(".safetensors")
        return ExpertSource(name=name or own, checkpoint=checkpoint)

    def __post_init__(self) -> None:
        """Check that there is one source. Raises `UsageError`."""
        if (self.bundle is None) == (self.checkpoint is None):
            raise UsageError(f"expert {self.name}: give a bundle or a checkpoint, not both")

    @property
    def path(self) -> Path:
        """Where the expert lies."""
        return self._bundle.path if self.checkpoint is None else self.checkpoint.path

    @property
    def _bundle(self) -> Bundle:
        assert self.bundle is not None  # __post_init__
        return self.bundle

    @cached_property
    def _names(self) -> tuple[str, ...]:
        known = self._bundle.manifest.tensors if self.checkpoint is None else self.checkpoint
        return tuple(model_order(known))

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self._names)

    def names(self) -> Sequence[str]:
        """The expert's tensors in model order."""
        return self._names

    def __contains__(self, name: object) -> bool:
        """True where the expert has a tensor of this name."""
        return name in self._known

    def span(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Dtype and shape of the expert's tensor. Raises `UsageError` for an unknown name."""
        if name not in self._known:
            raise UsageError(f"expert {self.name} has no tensor {name!r}")
        if self.checkpoint is None:
            entry = self._bundle.entry(name)
            return entry.dtype, entry.shape
        span = self.checkpoint.span(name)
        return span.dtype, span.shape

    def is_onebit(self, name: str) -> bool:
        """True where the task vector is stored as sign terms: all of about one size."""
        return self.bundle is not None and isinstance(self._entry(name).coding, Terms)

    def _entry(self, name: str) -> TensorEntry:
        entry = self._bundle.entry(name)
        while isinstance(entry.coding, Tied):
            entry = self._bundle.entry(entry.coding.to)
        return entry

    def is_same(self, name: str) -> bool:
        """True where a bundle says that the tensor is the base's own."""
        return self.bundle is not None and isinstance(self._entry(name).coding, Same)

    # --- against the base ------------------------------------------------------------------------

    def base_name(self, name: str, base: Checkpoint) -> str | None:
        """The tensor of `base` that the expert's tensor is a fine-tune of, if there is one.

        Raises `CheckpointError` where a full checkpoint is of another model altogether.
        """
        if self.bundle is None:
            return self._matched(base)[name]
        reference = self._entry(name).base
        return None if reference is None else name_in(base, reference.name)

    def has_task_vector(self, name: str, base: Checkpoint) -> bool:
        """True where base and expert hold floats of up to 32 bits of one shape.

        Raises `CheckpointError`, as `base_name` does.
        """
        origin = self.base_name(name, base)
        if origin is None:
            return False
        dtype, shape = self.span(name)
        span = base.span(origin)
        return span.shape == shape and {dtype, span.dtype} <= HALF_AND_SINGLE

    def tied(self) -> Mapping[str, str]:
        """Heads that are the same bytes as an embedding: head name to embedding name."""
        if self.checkpoint is None:
            entries = self._bundle.manifest.tensors.items()
            return {n: e.coding.to for n, e in entries if isinstance(e.coding, Tied)}
        return tied_tensors(self.checkpoint, self._groups)

    @cached_property
    def _groups(self) -> dict[str, str]:
        assert self.checkpoint is not None
        return assign_groups({n: self.checkpoint.span(n).shape for n in self.checkpoint})

    def _matched(self, base: Checkpoint) -> Mapping[str, str | None]:
        key = str(base.path)
        if key not in self._matches:
            assert self.checkpoint is not None
            embeddings = [n for n, group in self._groups.items() if group == "embedding"]
            self._matches[key] = match_names(base, self.checkpoint, embeddings)
        return self._matches[key]

    def check_base(self, name: str, base: Checkpoint) -> None:
        """Check, once a tensor, that a bundle's task vector is applied to the base it is of.

        Raises `BaseMismatchError`.
        """
        if self.bundle is not None and (reference := self._entry(name).base) is not None:
            self.bundle._base_bits(reference, base)

    def planes(self, name: str) -> list[Plane]:
        """The sign planes of a one-bit tensor. Raises `FormatError`."""
        while isinstance(coding := self._bundle.entry(name).coding, Tied):
            name = coding.to
        return self._bundle.planes(name)

    def task_vector(self, name: str, base: Checkpoint, rows: slice | None = None) -> Array | None:
        """The task vector as float32, or rows of its first axis; None where there is none.

        There is none for a tensor that is new, of another shape than in the base, or no float of
        up to 32 bits. Raises `BaseMismatchError`, `FormatError`.
        """
        if not self.has_task_vector(name, base):
            return None
        if self.bundle is not None:
            return self.bundle.task_vector(name, base, rows)
        origin = self.base_name(name, base)
        assert origin is not None
        value = self.tensor(name, base, rows)
        before = _rows(base.bits(origin), rows)
        return to_float32(value.bits, value.dtype) - to_float32(before, base.span(origin).dtype)

    def tensor(self, name: str, base: Checkpoint, rows: slice | None = None) -> Tensor:
        """The expert's tensor as stored or rebuilt, or rows of its first axis.

        Raises `BaseMismatchError`, `FormatError`.
        """
        if self.bundle is not None:
            return self.bundle.tensor(name, base, rows)
        assert self.checkpoint is not None
        whole = self.checkpoint.tensor(name)
        return Tensor(dtype=whole.dtype, bits=_rows(whole.bits, rows))

    def blocks(self, name: str, base: Checkpoint, workers: Workers) -> Iterator[Array]:
        """The expert's tensor as flat blocks of bit patterns, in bounded memory."""
        if self.bundle is not None:
            yield from self.bundle.blocks(name, base, workers)
            return
        assert self.checkpoint is not None
        yield from flat_blocks(self.checkpoint.bits(name))

    def release(self, name: str, base: Checkpoint) -> None:
        """Let go of the memory pages of a tensor."""
        if self.bundle is not None:
            self.bundle.release(name, base)
        elif self.checkpoint is not None:
            self.checkpoint.release(name)

    def small_files(self) -> dict[str, Path]:
        """Configuration, tokenizer, licence: relative path to file."""
        if self.checkpoint is not None:
            return self.checkpoint.small_files()
        files = (f for f in self._bundle.manifest.files if f.startswith(EXPERT_FOLDER))
        return {f.removeprefix(EXPERT_FOLDER): self._bundle.path / f for f in files}


def flat_blocks(bits: Array) -> Iterator[Array]:
    """Bit patterns in blocks of 2^20."""
    flat = bits.reshape(-1)
    return (flat[i : i + _BLOCK] for i in range(0, flat.size, _BLOCK))


def _rows(bits: Array, rows: slice | None) -> Array:
    # numpy's own ascontiguousarray gives scalars an axis.
    return bits if rows is None or not bits.shape else np.array(bits[rows], order="C")
