"""Convert a fine-tuned checkpoint to a bundle: one pass, bounded memory, the same bytes each time.

Group files are independent of each other, so that any executor can write them side by side.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Final

from onebitfmt.checkpoint import Checkpoint, digest, fingerprint
from onebitfmt.codecs.sign import Fidelity
from onebitfmt.container import sha256
from onebitfmt.format.manifest import (
    EXPERT_FOLDER,
    FILE_NAME,
    Base,
    Exact,
    Expert,
    FileEntry,
    LayerGroup,
    Manifest,
    TensorEntry,
    Terms,
    group_file_names,
)
from onebitfmt.format.manifest_json import dump
from onebitfmt.groups import GROUPS
from onebitfmt.parallel import Workers
from onebitfmt.source import open_checkpoint
from onebitfmt.staging import check_output, staged
from onebitfmt.verbs.encode import (
    FileJob,
    FileResult,
    Outcome,
    summary,
    write_file,
    write_group_file,
)
from onebitfmt.verbs.plan import ConvertOptions, plan_conversion

Progress = Callable[[int], None]

_LICENSE: Final = re.compile(r"^license:\s*([\w.-]+)\s*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionReport:
    """The result of `convert`; sizes in bytes."""

    path: Path
    outcomes: tuple[Outcome, ...]
    expert_bytes: int
    bundle_bytes: int


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
    of_base = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    of_expert = expert if isinstance(expert, Checkpoint) else open_checkpoint(expert)
    inputs = (of_base.path, of_expert.path)
    check_output(target, overwrite=overwrite, is_ours=is_bundle, inputs=inputs)
    plans = plan_conversion(of_base, of_expert, options)
    with staged(target) as folder, Workers(jobs) as workers:
        tasks = [
            FileJob(
                base=of_base.path.absolute(), expert=of_expert.path.absolute(),
                plan=plan, sign=options.sign,
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
    tasks: Sequence[FileJob],
    base: Checkpoint,
    expert: Checkpoint,
    workers: Workers,
    executor: Executor | None,
    progress: Progress | None,
) -> Iterator[FileResult]:
    report = progress or (lambda _: None)
    if executor is None:
        for task in tasks:
            yield write_group_file(task, base, expert, workers, report)
        return
    for task, result in zip(tasks, executor.map(write_file, tasks), strict=True):
        read = [base.span(t.base) for t in task.plan.tensors if t.base is not None]
        report(sum(o.nbytes for o in result.outcomes) + sum(s.end - s.begin for s in read))
        yield result


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


def _metadata(options: ConvertOptions, results: Iterable[FileResult]) -> dict[str, str]:
    """How the bundle was made and what it lost, for readers; decoding does not need it."""
    s = options.sign
    metadata = {
        "preset": options.preset,
        "sign": f"scale={s.scale} planes={s.planes} zeros={'balanced' if s.balanced else 'plus'}",
    }
    by_group: dict[str, list[Fidelity]] = {}
    for result in results:
        for outcome in result.outcomes:
            if outcome.fidelity is not None:
                by_group.setdefault(outcome.group, []).append(outcome.fidelity)
    for group, parts in by_group.items():
        for key, value in summary(parts).items():
            metadata[f"{group}.{key}"] = f"{value:.6f}"
    return metadata
