"""Code the tensors of one layer group into one file: the unit of work of `convert`.

Jobs are independent of each other and can be sent to another process. Within one, blocks and
chunks of a tensor are coded by a thread pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from onebitfmt.checkpoint import Checkpoint, digest
from onebitfmt.codecs import exact, floats, sign
from onebitfmt.container import stored_names
from onebitfmt.format.dtypes import matrices
from onebitfmt.format.manifest import (
    BaseTensor,
    Coding,
    Exact,
    Same,
    SignTerm,
    TensorEntry,
    Terms,
    Tied,
)
from onebitfmt.format.safetensors import GroupFileWriter
from onebitfmt.parallel import Workers
from onebitfmt.verbs.plan import FilePlan, TensorPlan, stored_bound

Array = NDArray[Any]
Progress = Callable[[int], None]

_COMPARE: Final = 1 << 22


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a tensor: its coding, its bytes before and after, and what was lost.

    `note` says why a tensor that was meant to be one-bit is kept exactly.
    """

    name: str
    group: str
    kind: str
    elements: int
    nbytes: int
    stored: int
    fidelity: sign.Fidelity | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FileJob:
    """One group file to write: all that a worker process needs to know."""

    base: Path
    expert: Path
    plan: FilePlan
    sign: sign.SignOptions
    target: Path
    jobs: int


@dataclass(kw_only=True, slots=True)
class FileResult:
    """What came of a `FileJob`; `digests` are those of the base tensors it read."""

    group: str
    path: Path
    written: bool = False
    entries: dict[str, TensorEntry] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)


def summary(parts: Iterable[sign.Fidelity]) -> dict[str, float]:
    """Relative squared error, fraction of zeros and absorbed fraction over several tensors."""
    items = list(parts)
    energy, error = sum(f.energy for f in items), sum(f.error for f in items)
    return {
        "relative_squared_error": error / energy if energy else 0.0,
        "zeros": sum(f.zeros for f in items) / sum(f.elements for f in items),
        "absorbed": sum(f.absorbed for f in items) / sum(f.sampled for f in items),
    }


def write_file(job: FileJob) -> FileResult:
    """Write one group file; for executors, which may run it in another process."""
    with Workers(job.jobs) as workers:
        # Not kept open between jobs: a worker outlives the checkpoints that lie at a path.
        base, expert = Checkpoint.open(job.base), Checkpoint.open(job.expert)
        return write_group_file(job, base, expert, workers, lambda _: None)


def write_group_file(
    job: FileJob, base: Checkpoint, expert: Checkpoint, workers: Workers, progress: Progress
) -> FileResult:
    """Write one group file with a pool that is already there."""
    result = FileResult(group=job.plan.group, path=job.target)
    with job.target.open("xb") as f:
        writer = _writer(f, job, expert)
        coder = _Coder(
            base=base, expert=expert, options=job.sign, workers=workers, writer=writer,
            progress=progress,
        )  # fmt: skip
        for plan in job.plan.tensors:
            coder.write(plan, result)
        result.written = not writer.is_empty
        if result.written:
            writer.finish()
    if not result.written:
        job.target.unlink()
    return result


def _writer(file: BinaryIO, job: FileJob, expert: Checkpoint) -> GroupFileWriter:
    """A writer with room for every stored name that may come.

    A tensor meant to be one-bit that is kept exactly after all needs less room than its terms.
    """
    dimensions: dict[str, int] = {}
    largest = 0
    for plan in job.plan.tensors:
        shape = expert.span(plan.name).shape
        largest += 2 * stored_bound(plan, expert, job.sign) + max(shape, default=0) + 64
        coding: Exact | Terms = Exact(digest="", content="", coded="U8")
        if plan.onebit:
            terms = tuple(SignTerm(scale=job.sign.scale) for _ in range(job.sign.planes))
            coding = Terms(digest="", terms=terms)
            largest += expert.span(plan.name).end - expert.span(plan.name).begin
        entry = TensorEntry(group="", dtype="U8", shape=shape, base=None, coding=coding)
        axes = len(shape) if plan.onebit else 1
        dimensions.update(dict.fromkeys(stored_names(plan.name, entry), axes))
    return GroupFileWriter(file=file, dimensions=dimensions, largest=largest)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Coder:
    """Codes tensors, one after the other, into a group file."""

    base: Checkpoint
    expert: Checkpoint
    options: sign.SignOptions
    workers: Workers
    writer: GroupFileWriter
    progress: Progress

    def write(self, plan: TensorPlan, result: FileResult) -> None:
        """Code one tensor and note what became of it."""
        span = self.expert.span(plan.name)
        hashing = None
        if plan.base is not None and plan.base not in result.digests:
            hashing = self.workers.submit(partial(digest, self.base.bits(plan.base)))
        coding, fidelity, note = self._code(plan)
        if plan.base is not None and hashing is not None:
            result.digests[plan.base] = hashing.result()
        entry = TensorEntry(
            group=plan.group,
            dtype=span.dtype,
            shape=span.shape,
            base=None if plan.base is None else self._reference(plan.base, result),
            coding=coding,
        )
        result.entries[plan.name] = entry
        nbytes = span.end - span.begin
        result.outcomes.append(
            Outcome(
                name=plan.name,
                group=plan.group,
                kind=type(coding).__name__.lower(),
                elements=prod(span.shape),
                nbytes=nbytes,
                stored=sum(self.writer.size(n) for n in stored_names(plan.name, entry)),
                fidelity=fidelity,
                note=plan.note or note,
            )
        )
        self.expert.release(plan.name)
        if plan.base is not None:
            self.base.release(plan.base)
            of_base = self.base.span(plan.base)
            # A base tensor that predicts two tensors is work once: `work_bytes` counts it so.
            nbytes += of_base.end - of_base.begin if hashing is not None else 0
        self.progress(nbytes)

    def _reference(self, name: str, result: FileResult) -> BaseTensor:
        span = self.base.span(name)
        digest = result.digests[name]
        return BaseTensor(name=name, dtype=span.dtype, shape=span.shape, digest=digest)

    def _code(self, plan: TensorPlan) -> tuple[Coding, sign.Fidelity | None, str | None]:
        if plan.tied_to is not None:
            return Tied(to=plan.tied_to), None, None
        if plan.base is not None and self._is_same(plan.name, plan.base):
            return Same(), None, None
        if plan.onebit and plan.base is not None:
            coded = self._code_terms(plan.name, plan.base)
            if coded is not None:
                return (*coded, None)
            return self._code_exact(plan), None, "a difference is not finite"
        return self._code_exact(plan), None, None

    def _is_same(self, name: str, base: str) -> bool:
        a, b = self.expert.span(name), self.base.span(base)
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        x, y = self.expert.bits(name).reshape(-1), self.base.bits(base).reshape(-1)
        return all(
            np.array_equal(x[i : i + _COMPARE], y[i : i + _COMPARE])
            for i in range(0, x.size, _COMPARE)
        )

    def _code_terms(self, name: str, base: str) -> tuple[Coding, sign.Fidelity] | None:
        span = self.expert.span(name)
        shape = matrices(span.shape)
        dtypes = (self.base.span(base).dtype, span.dtype)
        coded = sign.encode(
            self.base.bits(base).reshape(shape),
            self.expert.bits(name).reshape(shape),
            dtypes,
            self.options,
            self.workers,
        )
        if coded is None:
            return None
        planes, fidelity = coded
        hasher = blake3()
        for k, plane in enumerate(planes):
            stored = sign.stored_scales(plane, span.shape, self.options.scale)
            hasher.update(plane.bits.data.cast("B"))
            self.writer.write_payload(
                f"{name}/sign/{k}", (*span.shape[:-1], plane.bits.shape[-1]), [plane.bits.data]
            )
            for kind, scale in stored.items():
                data = scale.tobytes()
                hasher.update(data)
                dtype = f"F{8 * scale.itemsize}"
                self.writer.add_small(f"{name}/{kind}/{k}", dtype, scale.shape, data)
        terms = (SignTerm(scale=self.options.scale),) * len(planes)
        return Terms(digest=hasher.hexdigest(), terms=terms), fidelity

    def _code_exact(self, plan: TensorPlan) -> Exact:
        span = self.expert.span(plan.name)
        flat = self.expert.bits(plan.name).reshape(-1)
        hashing = self.workers.submit(partial(digest, flat))
        coded = exact.narrowed_dtype(flat, span.dtype)
        predictor = exact.Predictor(
            base=None if plan.base is None else self.base.bits(plan.base),
            dtype=span.dtype if plan.base is None else self.base.span(plan.base).dtype,
            shape=span.shape,
            coded=coded,
        )
        hasher = blake3()
        self.writer.write_payload(
            f"{plan.name}/exact", None, self._chunks(flat, span.dtype, predictor, hasher)
        )
        return Exact(digest=hasher.hexdigest(), content=hashing.result(), coded=coded)

    def _chunks(
        self, flat: Array, dtype: str, predictor: exact.Predictor, hasher: Any
    ) -> Iterator[bytes]:
        def encode(first: int) -> bytes:
            stop = min(first + exact.CHUNK, flat.size)
            values = floats.convert(flat[first:stop], dtype, predictor.coded)
            return exact.encode_chunk(values, predictor.block(first, stop), predictor.coded)

        lengths = []
        for chunk in self.workers.map(encode, range(0, flat.size, exact.CHUNK)):
            lengths.append(len(chunk))
            hasher.update(chunk)
            yield chunk
        table = exact.encode_table(lengths)
        hasher.update(table)
        yield table
