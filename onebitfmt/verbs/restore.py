"""Rebuild an expert as a plain Hugging Face checkpoint: shards, index, configuration, tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from onebitfmt.bundle import Bundle
from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import FormatError
from onebitfmt.format.manifest import EXPERT_FOLDER
from onebitfmt.parallel import Workers
from onebitfmt.source import open_checkpoint
from onebitfmt.staging import check_output, staged
from onebitfmt.verbs.write_checkpoint import (
    DEFAULT_SHARD_SIZE,
    Progress,
    Spans,
    is_checkpoint,
    total_bytes,
    write_weights,
)

Array = NDArray[Any]


def restore(
    base: str | Path | Checkpoint,
    bundle: str | Path | Bundle,
    output: str | Path,
    *,
    shard_size: int = DEFAULT_SHARD_SIZE,
    jobs: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write the expert of a bundle to the folder `output`; gives the weight files written.

    Exact tensors are the expert's own bits, one-bit ones base + task vector. `progress` is called
    with numbers of bytes written. Raises `CheckpointError`, `BaseMismatchError`, `FormatError`,
    `OutputError`.
    """
    target = Path(output)
    source = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    of_base = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    inputs = (of_base.path, source.path)
    check_output(target, overwrite=overwrite, is_ours=is_checkpoint, inputs=inputs)
    _check_complete(source)
    model = _Rebuilt(bundle=source, base=of_base)
    with staged(target) as folder, Workers(jobs) as workers:
        files = write_weights(folder, model, workers, shard_size=shard_size, progress=progress)
        _copy_small_files(source, folder)
    return [target / file for file in files]


def restored_bytes(bundle: Bundle) -> int:
    """How many bytes `restore` reports as progress in all."""
    return total_bytes(_spans(bundle).values())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rebuilt:
    """The expert of a bundle as a model to be written."""

    bundle: Bundle
    base: Checkpoint

    @property
    def spans(self) -> Spans:
        return _spans(self.bundle)

    def blocks(self, name: str, workers: Workers) -> Iterator[Array]:
        return self.bundle.blocks(name, self.base, workers)

    def release(self, name: str) -> None:
        self.bundle.release(name, self.base)


def _spans(bundle: Bundle) -> Spans:
    return {name: (t.dtype, t.shape) for name, t in bundle.manifest.tensors.items()}


def _check_complete(bundle: Bundle) -> None:
    if missing := bundle.container.missing_files:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        problem = f"incomplete, {len(missing)} files are missing: {names}"
        raise FormatError("OBD-DIR-MISSING", str(bundle.path), problem)


def _copy_small_files(bundle: Bundle, folder: Path) -> None:
    for path in bundle.manifest.files:
        if path.startswith(EXPERT_FOLDER):
            copy = folder / path.removeprefix(EXPERT_FOLDER)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / path, copy)
