"""Convert a fine-tuned checkpoint to a bundle: one pass, bounded memory, the same bytes each time.

Group files are independent of each other, so that any executor can write them side by side; within
a file, blocks and chunks of a tensor are coded by a thread pool.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from onebitfmt.checkpoint import Checkpoint, digest, fingerprint
from onebitfmt.codecs import exact, floats, sign
from onebitfmt.container import stored_names
from onebitfmt.format.limits import MAX_DIMENSIONS
from onebitfmt.format.manifest import (
    EXPERT_FOLDER,
    FILE_NAME,
    Base,
    BaseTensor,
    Coding,
    Exact,
    Expert,
    FileEntry,
    LayerGroup,
    Manifest,
    Same,
    SignTerm,
    TensorEntry,
    Terms,
    Tied,
    group_file_names,
)
from onebitfmt.format.manifest_json import dump
from onebitfmt.format.safetensors import GroupFileWriter
from onebitfmt.groups import GROUPS
from onebitfmt.parallel import Workers
from onebitfmt.plan import ConvertOptions, FilePlan, TensorPlan, plan_conversion
from onebitfmt.source import open_checkpoint
from onebitfmt.staging import check_output, staged

Array = NDArray[Any]
Progress = Callable[[int], None]

_COMPARE: Final = 1 << 22
_LICENSE: Final = re.compile(r"^license:\s*([\w.-]+)\s*$", re.MULTILINE)


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
class ConversionReport:
    """The result of `convert`; sizes in bytes."""

    path: Path
    outcomes: tuple[Outcome, ...]
    expert_bytes: int
    bundle_bytes: int


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


def convert(
    base: str | Path | Checkpoint,
    expert: str | Path | Checkpoint,
    output: str | Path,
    options: ConvertOptions,
    *,
    name: str | None = None,
    jobs: int | None = None,
    overwrite: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> ConversionReport:
    """Write the bundle of an expert against its base model to the folder `output`.

    `jobs` threads (default: all cores) code each file; an `executor`, of processes or machines that
    share the file system, writes files side by side. `progress` is called with numbers of bytes
    done, `work_bytes` in all. Raises `CheckpointError`, `UsageError` and `OutputError`.
    """
    target = Path(output)
    check_output(target, overwrite=overwrite, is_ours=is_bundle)
    of_base = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    of_expert = expert if isinstance(expert, Checkpoint) else open_checkpoint(expert)
    plans = plan_conversion(of_base, of_expert, options)
    with staged(target) as folder, Workers(jobs) as workers:
        tasks = [
            FileJob(
                base=of_base.path, expert=of_expert.path, plan=plan, sign=options.sign,
                target=folder / f"part-{i}", jobs=1 if executor else workers.jobs,
            )
            for i, plan in enumerate(plans)
        ]  # fmt: skip
        results = list(_run(tasks, of_base, of_expert, workers, executor, progress))
        groups, entries = _name_files(folder, results)
        digests = {n: d for r in results for n, d in r.digests.items()}
        manifest = Manifest(
            base=Base(
                fingerprint=_fingerprint(of_base, digests, workers, progress),
                repo=of_base.repo,
                revision=of_base.revision,
            ),
            expert=_describe(of_expert, name or target.stem),
            groups=groups,
            files=_list_files(folder, of_expert, groups, workers),
            tensors=entries,
            metadata=_metadata(options, results),
        )
        (folder / FILE_NAME).write_bytes(dump(manifest))
        stored = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    return ConversionReport(
        path=target,
        outcomes=tuple(o for r in results for o in r.outcomes),
        expert_bytes=of_expert.nbytes,
        bundle_bytes=stored,
    )


def work_bytes(base: Checkpoint, expert: Checkpoint) -> int:
    """How many bytes `convert` reports as progress in all."""
    return base.nbytes + expert.nbytes


def is_bundle(path: Path) -> bool:
    """True for a folder that looks like a bundle."""
    return (path / FILE_NAME).is_file()


def _run(
    tasks: Iterable[FileJob],
    base: Checkpoint,
    expert: Checkpoint,
    workers: Workers,
    executor: Executor | None,
    progress: Progress | None,
) -> Iterator[FileResult]:
    report = progress or (lambda _: None)
    if executor is None:
        for task in tasks:
            yield _write_file(task, base, expert, workers, report)
        return
    for result in executor.map(write_file, tasks):
        report(sum(o.nbytes for o in result.outcomes))
        yield result


@lru_cache(maxsize=4)
def _opened(path: Path) -> Checkpoint:
    return Checkpoint.open(path)


def write_file(job: FileJob) -> FileResult:
    """Write one group file; for executors, which may run it in another process."""
    with Workers(job.jobs) as workers:
        return _write_file(job, _opened(job.base), _opened(job.expert), workers, lambda _: None)


def _write_file(
    job: FileJob, base: Checkpoint, expert: Checkpoint, workers: Workers, progress: Progress
) -> FileResult:
    result = FileResult(group=job.plan.group, path=job.target)
    with job.target.open("xb") as f:
        writer = GroupFileWriter(file=f, dimensions=_dimensions(job, expert))
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


def _dimensions(job: FileJob, expert: Checkpoint) -> dict[str, int]:
    """Every stored name that may come, for the header's room."""
    terms = tuple(SignTerm(scale=job.sign.scale) for _ in range(job.sign.planes))
    names: dict[str, int] = {}
    for plan in job.plan.tensors:
        shape = expert.span(plan.name).shape
        codings: list[Coding] = [Exact(digest="", content="", coded="U8")]
        if plan.onebit:
            codings.append(Terms(digest="", terms=terms))
        for coding in codings:
            entry = TensorEntry(group="", dtype="U8", shape=shape, base=None, coding=coding)
            names.update(dict.fromkeys(stored_names(plan.name, entry), MAX_DIMENSIONS))
    return names


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
        reference = None
        if plan.base is not None:
            known = result.digests.get(plan.base)
            hashing = self.workers.submit(partial(digest, self.base.bits(plan.base)))
        coding, fidelity, note = self._code(plan)
        if plan.base is not None:
            result.digests[plan.base] = known or hashing.result()
            of_base = self.base.span(plan.base)
            reference = BaseTensor(
                name=plan.base, dtype=of_base.dtype, shape=of_base.shape,
                digest=result.digests[plan.base],
            )  # fmt: skip
        entry = TensorEntry(
            group=plan.group, dtype=span.dtype, shape=span.shape, base=reference, coding=coding
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
            nbytes += of_base.end - of_base.begin
        self.progress(nbytes)

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
        shape = sign.matrices(span.shape)
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


# --- the manifest --------------------------------------------------------------------------------


def _name_files(
    folder: Path, results: Iterable[FileResult]
) -> tuple[tuple[LayerGroup, ...], dict[str, TensorEntry]]:
    """Give the parts their final names; a part without stored bytes has no file."""
    by_group: dict[str, list[FileResult]] = {}
    for result in results:
        by_group.setdefault(result.group, []).append(result)
    groups = []
    entries: dict[str, TensorEntry] = {}
    for group in (g for g in GROUPS if g in by_group):
        parts = [r for r in by_group[group] if r.written]
        names = group_file_names(group, len(parts))
        for part in by_group[group]:
            entries.update(part.entries)
        for shard, (part, file) in enumerate(zip(parts, names, strict=True)):
            part.path.rename(folder / file)
            for name, entry in part.entries.items():
                if isinstance(entry.coding, (Exact, Terms)):
                    entries[name] = replace(entry, coding=replace(entry.coding, shard=shard))
        groups.append(LayerGroup(name=group, files=names))
    return tuple(groups), entries


def _fingerprint(
    base: Checkpoint, digests: Mapping[str, str], workers: Workers, progress: Progress | None
) -> str:
    """The base's fingerprint; tensors that no expert tensor refers to are hashed now."""

    def hashed(name: str) -> tuple[str, str]:
        value = digests.get(name)
        if value is None:
            value = digest(base.bits(name))
            base.release(name)
            if progress is not None:
                progress(base.span(name).end - base.span(name).begin)
        return name, value

    return fingerprint(
        {
            name: (base.span(name).dtype, base.span(name).shape, value)
            for name, value in workers.map(hashed, base)
        }
    )


def _describe(expert: Checkpoint, name: str) -> Expert:
    weight: dict[str, int] = {}
    for tensor in expert:
        span = expert.span(tensor)
        weight[span.dtype] = weight.get(span.dtype, 0) + prod(span.shape)
    readme = expert.folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    licence = _LICENSE.search(text)
    return Expert(
        name=name,
        dtype=max(sorted(weight), key=weight.__getitem__),
        repo=expert.repo,
        revision=expert.revision,
        license=licence[1] if licence else None,
    )


def _list_files(
    folder: Path, expert: Checkpoint, groups: Iterable[LayerGroup], workers: Workers
) -> dict[str, FileEntry]:
    """Copy the expert's small files, then size and SHA-256 of everything."""
    paths = [file for group in groups for file in group.files]
    for relative, source in expert.small_files().items():
        target = folder / EXPERT_FOLDER / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        paths.append(EXPERT_FOLDER + relative)
    return {
        path: FileEntry(size=(folder / path).stat().st_size, sha256=value)
        for path, value in zip(paths, workers.map(lambda p: sha256(folder / p), paths), strict=True)
    }


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    hasher = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def _metadata(options: ConvertOptions, results: Iterable[FileResult]) -> dict[str, str]:
    """How the bundle was made and what it lost, for readers; decoding does not need it."""
    s = options.sign
    metadata = {
        "preset": options.preset,
        "sign": f"scale={s.scale} planes={s.planes} zeros={'balanced' if s.balanced else 'plus'}",
    }
    by_group: dict[str, list[sign.Fidelity]] = {}
    for result in results:
        for outcome in result.outcomes:
            if outcome.fidelity is not None:
                by_group.setdefault(outcome.group, []).append(outcome.fidelity)
    for group, parts in by_group.items():
        for key, value in summary(parts).items():
            metadata[f"{group}.{key}"] = f"{value:.6f}"
    return metadata


def summary(parts: Iterable[sign.Fidelity]) -> dict[str, float]:
    """Relative squared error, fraction of zeros and absorbed fraction over several tensors."""
    items = list(parts)
    energy = sum(f.energy for f in items)
    return {
        "relative_squared_error": sum(f.error for f in items) / energy if energy else 0.0,
        "zeros": sum(f.zeros for f in items) / sum(f.elements for f in items),
        "absorbed": sum(f.absorbed for f in items) / sum(f.sampled for f in items),
    }
