"""An open bundle: tensors rebuilt lazily, whole or in part, and task vectors.

A base tensor's identity is checked before it is used. A bundle of which only some groups are
present opens and serves what it has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from onebitfmt.checkpoint import Checkpoint, Tensor, digest
from onebitfmt.codecs import exact, sign
from onebitfmt.codecs.floats import convert, to_float32, unsigned
from onebitfmt.container import Container
from onebitfmt.errors import BaseMismatchError, FormatError, UsageError
from onebitfmt.format.dtypes import HALF_AND_SINGLE, matrices
from onebitfmt.format.manifest import (
    SCALE_TENSORS,
    BaseTensor,
    Exact,
    Manifest,
    Same,
    TensorEntry,
    Terms,
    Tied,
)
from onebitfmt.parallel import Workers
from onebitfmt.slices import assemble, bounds, check_steps, index, kernel_columns, sliced_shape

Array = NDArray[Any]

_BLOCK: Final = 1 << 20


@dataclass(kw_only=True)
class Bundle:
    """An open bundle. Reading from several threads at once is safe."""

    container: Container
    _trusted_base: set[str] = field(default_factory=set, repr=False)

    @staticmethod
    def open(path: str | Path) -> Bundle:
        """Open a bundle folder; group files may be missing. Raises `FormatError`."""
        return Bundle(container=Container.open(Path(path)))

    @property
    def path(self) -> Path:
        """The bundle's folder."""
        return self.container.path

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.container.manifest

    def entry(self, name: str) -> TensorEntry:
        """The manifest's entry of a tensor. Raises `UsageError` for an unknown name."""
        try:
            return self.manifest.tensors[name]
        except KeyError:
            raise UsageError(f"{self.path}: no tensor {name!r} in this bundle") from None

    # --- whole tensors and slices ----------------------------------------------------------------

    def tensor(
        self, name: str, base: Checkpoint, rows: slice | None = None, columns: slice | None = None
    ) -> Tensor:
        """The rebuilt tensor, or a slice of its first and last axes (step 1).

        Exact codings give the expert's own bits. Raises `BaseMismatchError`, `FormatError`.
        """
        check_steps(rows, columns)
        entry = self.entry(name)
        if isinstance(entry.coding, Tied):
            return self.tensor(entry.coding.to, base, rows, columns)
        if isinstance(entry.coding, Terms):
            bits = self._rebuilt_terms(name, entry, base, rows, columns)
        else:
            bits = self._exact_slice(name, entry, base, rows, columns)
        return Tensor(dtype=entry.dtype, bits=bits)

    def task_vector(
        self,
        name: str,
        base: Checkpoint | None = None,
        rows: slice | None = None,
        columns: slice | None = None,
    ) -> Array:
        """The stored task vector as float32, or a slice of its first and last axes.

        One-bit tensors need no base. Raises `UsageError` where a base is needed or the tensor has
        no task vector: it is new, of another shape than in the base, or no float of up to 32 bits.
        """
        check_steps(rows, columns)
        entry = self.entry(name)
        if isinstance(entry.coding, Tied):
            return self.task_vector(entry.coding.to, base, rows, columns)
        if isinstance(entry.coding, Same):
            shape = sliced_shape(entry.shape, rows, columns)
            return np.zeros(shape, np.float32)
        if isinstance(entry.coding, Terms):
            planes = self.planes(name)
            return assemble(entry.shape, rows, columns, lambda s, r, c: sign.task_vector(
                kernel_columns(sign.kernel_planes(planes, s, r.start, r.stop, entry.shape[-1]), c)
            ), np.dtype(np.float32))  # fmt: skip
        if base is None:
            raise UsageError(f"{name} is stored exactly; its task vector needs the base model")
        if entry.base is None or entry.base.shape != entry.shape:
            raise UsageError(f"{name} has no base tensor of its shape, so no task vector")
        if not {entry.dtype, entry.base.dtype} <= HALF_AND_SINGLE:
            raise UsageError(f"{name} is {entry.dtype}, which has no task vector")
        value = self.tensor(name, base, rows, columns)
        origin = self._base_bits(entry.base, base)[index(entry.shape, rows, columns)]
        difference = to_float32(value.bits, value.dtype)
        return difference - to_float32(np.array(origin, order="C"), entry.base.dtype)

    def planes(self, name: str) -> list[sign.Plane]:
        """The sign planes of a one-bit tensor, its stored bytes checked.

        Raises `UsageError` for a tensor that is not one-bit, `FormatError` for damage.
        """
        entry = self.entry(name)
        coding = entry.coding
        if not isinstance(coding, Terms):
            raise UsageError(f"{self.path}: {name} is not one-bit")
        parts = iter(self.container.parts(name, entry))
        where = self._where(name)
        planes = []
        for term in coding.terms:
            bits = next(parts)
            scales = {kind: next(parts) for kind in SCALE_TENSORS[term.scale]}
            _check_shapes(entry.shape, bits, scales, where)
            values = {kind: to_float32(scale.bits, scale.dtype) for kind, scale in scales.items()}
            planes.append(sign.plane_from_stored(entry.shape, bits.bits, values, where))
        return planes

    def blocks(self, name: str, base: Checkpoint, workers: Workers) -> Iterator[Array]:
        """The rebuilt tensor as flat blocks of bit patterns in row-major order.

        For a whole model in bounded memory: blocks are decoded in parallel, a few ahead. The
        content of exact tensors is checked when the last block has been taken.
        """
        entry = self.entry(name)
        if isinstance(entry.coding, Tied):
            yield from self.blocks(entry.coding.to, base, workers)
        elif isinstance(entry.coding, Same):
            flat = self._same_bits(entry, base).reshape(-1)
            yield from (flat[i : i + _BLOCK] for i in range(0, flat.size, _BLOCK))
        elif isinstance(entry.coding, Exact):
            yield from self._exact_blocks(name, entry, entry.coding, base, workers)
        else:
            yield from self._term_blocks(name, entry, base, workers)

    def check_stored(self, name: str) -> None:
        """Check what can be checked of a tensor without its base. Raises `FormatError`."""
        entry = self.entry(name)
        if isinstance(entry.coding, Terms):
            self.planes(name)
        elif isinstance(entry.coding, Exact):
            self._blob(name, entry)

    def release(self, name: str, base: Checkpoint) -> None:
        """Let go of the memory pages of a tensor's stored bytes and of its base tensor."""
        entry = self.entry(name)
        self.container.release(name)
        of_base = None if entry.base is None else name_in(base, entry.base.name)
        if of_base is not None:
            base.release(of_base)

    # --- exact -----------------------------------------------------------------------------------

    def _same_bits(self, entry: TensorEntry, base: Checkpoint) -> Array:
        assert entry.base is not None  # the manifest's rules say so
        return self._base_bits(entry.base, base)

    def _predictor(self, entry: TensorEntry, base: Checkpoint) -> exact.Predictor:
        coding = entry.coding
        assert isinstance(coding, Exact)
        bits = None if entry.base is None else self._base_bits(entry.base, base)
        dtype = entry.dtype if entry.base is None else entry.base.dtype
        return exact.Predictor(base=bits, dtype=dtype, shape=entry.shape, coded=coding.coded)

    def _blob(self, name: str, entry: TensorEntry) -> tuple[memoryview, list[tuple[int, int]]]:
        """The stored bytes of an exact tensor and where its chunks lie in them."""
        [blob] = self.container.parts(name, entry)
        where = self._where(name)
        if len(blob.shape) != 1 or blob.dtype != "U8":
            raise FormatError("OBD-EXACT-TABLE", where, "not stored as U8 of one axis")
        return blob.bits.data, exact.chunk_spans(blob.bits.data, prod(entry.shape), where)

    def _where(self, name: str) -> str:
        return f"{self.path}: {name}"

    def _exact_blocks(
        self, name: str, entry: TensorEntry, coding: Exact, base: Checkpoint, workers: Workers
    ) -> Iterator[Array]:
        data, spans = self._blob(name, entry)
        predictor = self._predictor(entry, base)
        elements, where = prod(entry.shape), self._where(name)

        def decode(i: int) -> Array:
            first = i * exact.CHUNK
            prediction = predictor.block(first, min(first + exact.CHUNK, elements))
            begin, end = spans[i]
            bits = exact.decode_chunk(data[begin:end], prediction, coding.coded, where)
            return convert(bits, coding.coded, entry.dtype)

        hasher = blake3()
        for bits in workers.map(decode, range(len(spans))):
            hasher.update(bits.data.cast("B"))
            yield bits
        if hasher.hexdigest() != coding.content:
            problem = "the rebuilt tensor is not the expert's: its digest differs"
            raise FormatError("OBD-EXACT-CONTENT", where, problem)

    def _exact_slice(
        self,
        name: str,
        entry: TensorEntry,
        base: Checkpoint,
        rows: slice | None,
        columns: slice | None,
    ) -> Array:
        if isinstance(entry.coding, Same):
            bits = self._same_bits(entry, base)
            # numpy's own ascontiguousarray gives scalars an axis.
            return np.array(bits[index(entry.shape, rows, columns)], order="C")
        coding = entry.coding
        assert isinstance(coding, Exact)
        if not entry.shape or (rows is None and columns is None):
            with Workers(1) as workers:
                parts = list(self._exact_blocks(name, entry, coding, base, workers))
            flat = np.concatenate(parts) if parts else np.empty(0, unsigned(entry.dtype))
            return flat.reshape(entry.shape)
        data, spans = self._blob(name, entry)
        predictor = self._predictor(entry, base)
        where = self._where(name)
        elements, inner = prod(entry.shape), prod(entry.shape[1:])
        top, bottom = bounds(rows, entry.shape[0])
        first, stop = top * inner, bottom * inner
        parts = []
        for i in range(first // exact.CHUNK, -(-stop // exact.CHUNK)):
            prediction = predictor.block(i * exact.CHUNK, min((i + 1) * exact.CHUNK, elements))
            begin, end = spans[i]
            parts.append(exact.decode_chunk(data[begin:end], prediction, coding.coded, where))
        offset = first // exact.CHUNK * exact.CHUNK
        flat = np.concatenate(parts) if parts else np.empty(0, unsigned(coding.coded))
        bits = convert(flat[first - offset : stop - offset], coding.coded, entry.dtype)
        return bits.reshape(bottom - top, *entry.shape[1:])[index(entry.shape, None, columns)]

    # --- terms -----------------------------------------------------------------------------------

    def _rebuilt_terms(
        self,
        name: str,
        entry: TensorEntry,
        base: Checkpoint,
        rows: slice | None,
        columns: slice | None,
    ) -> Array:
        assert entry.base is not None
        planes = self.planes(name)
        stack, height, width = matrices(entry.shape)
        origin = self._base_bits(entry.base, base).reshape(stack, height, width)
        dtypes = (entry.base.dtype, entry.dtype)

        def block(s: int, r: slice, c: slice) -> Array:
            found = kernel_columns(sign.kernel_planes(planes, s, r.start, r.stop, width), c)
            return sign.rebuild(origin[s, r, c], dtypes, found)

        return assemble(entry.shape, rows, columns, block, unsigned(entry.dtype))

    def _term_blocks(
        self, name: str, entry: TensorEntry, base: Checkpoint, workers: Workers
    ) -> Iterator[Array]:
        assert entry.base is not None
        planes = self.planes(name)
        stack, height, width = matrices(entry.shape)
        origin = self._base_bits(entry.base, base).reshape(stack, height, width)
        dtypes = (entry.base.dtype, entry.dtype)
        step = max(1, _BLOCK // width)

        def rebuild(place: tuple[int, int]) -> Array:
            s, first = place
            stop = min(first + step, height)
            found = sign.kernel_planes(planes, s, first, stop, width)
            return sign.rebuild(origin[s, first:stop], dtypes, found).reshape(-1)

        places = ((s, first) for s in range(stack) for first in range(0, height, step))
        return workers.map(rebuild, places)

    # --- the base ---------------------------------------------------------------------------------

    def _base_bits(self, wanted: BaseTensor, base: Checkpoint) -> Array:
        """The base tensor's bits, its identity checked the first time."""
        name = name_in(base, wanted.name)
        if name is None:
            self._refuse_base(base, f"it has no tensor {wanted.name!r}")
        span = base.span(name)
        if (span.dtype, span.shape) != (wanted.dtype, wanted.shape):
            found = f"{span.dtype} {list(span.shape)}"
            problem = f"its {wanted.name} is {found}, not {wanted.dtype} {list(wanted.shape)}"
            self._refuse_base(base, problem)
        bits = base.bits(name)
        key = f"{base.path}\0{name}"
        if key not in self._trusted_base:
            if digest(bits) != wanted.digest:
                self._refuse_base(base, f"its {wanted.name} holds other values")
            self._trusted_base.add(key)
        return bits

    def _refuse_base(self, base: Checkpoint, problem: str) -> NoReturn:
        raise BaseMismatchError(
            f"{self.path} was made against {self.manifest.base}, but the base given is {base}: "
            f"{problem} [{BaseMismatchError.id}]"
        )


def name_in(base: Collection[str], name: str) -> str | None:
    """A tensor's name in a copy of the base, which may have a leading prefix more or less."""
    if name in base:
        return name
    shorter = name.partition(".")[2]
    if shorter in base:
        return shorter
    longer = [n for n in base if n.partition(".")[2] == name]
    return longer[0] if len(longer) == 1 else None


def _check_shapes(
    shape: tuple[int, ...], bits: Tensor, scales: Mapping[str, Tensor], where: str
) -> None:
    *stack, height, width = shape
    wanted = {
        "matrix": (*stack, 1, 1),
        "row": (*stack, height, 1),
        "column": (*stack, 1, width),
    }
    good = bits.dtype == "U8" and bits.shape == (*stack, height, -(-width // 8))
    for kind, scale in scales.items():
        good &= scale.dtype in ("F16", "F32") and scale.shape == wanted[kind]
    if not good:
        raise FormatError("OBD-SIGN-SHAPE", where, "signs or scales have the wrong type or shape")
