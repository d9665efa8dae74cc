"""Rebuild an expert as a plain Hugging Face checkpoint: shards, index, configuration, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from onebitfmt.bundle import Bundle
from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import FormatError
from onebitfmt.format.dtypes import DTYPES, nbytes
from onebitfmt.format.manifest import EXPERT_FOLDER, TensorEntry
from onebitfmt.format.safetensors import layout
from onebitfmt.matching import model_order
from onebitfmt.parallel import Workers
from onebitfmt.source import open_checkpoint
from onebitfmt.staging import check_output, staged

Progress = Callable[[int], None]

DEFAULT_SHARD_SIZE: Final = 5_000_000_000
INDEX: Final = "model.safetensors.index.json"
# What transformers asks of a checkpoint's files.
_METADATA: Final = {"format": "pt"}


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
    shards = _shards(source.manifest.tensors, shard_size)
    with staged(target) as folder, Workers(jobs) as workers:
        for file, names in shards.items():
            _write_shard(folder / file, names, source, of_base, workers, progress)
        if len(shards) > 1:
            _write_index(folder / INDEX, shards, source.manifest.tensors)
        _copy_small_files(source, folder)
    return [target / file for file in shards]


def is_checkpoint(path: Path) -> bool:
    """True for a folder that looks like a restored checkpoint, and like nothing else."""
    return any(path.glob("model*.safetensors")) and not (path / ".git").exists()


def restored_bytes(bundle: Bundle) -> int:
    """How many bytes `restore` reports as progress in all."""
    return sum(nbytes(t.dtype, t.shape) for t in bundle.manifest.tensors.values())


def _check_complete(bundle: Bundle) -> None:
    if missing := bundle.container.missing_files:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        problem = f"incomplete, {len(missing)} files are missing: {names}"
        raise FormatError("OBD-DIR-MISSING", str(bundle.path), problem)


def _shards(tensors: Mapping[str, TensorEntry], shard_size: int) -> dict[str, list[str]]:
    shards: list[list[str]] = [[]]
    room = shard_size
    for name in model_order(tensors):
        size = nbytes(tensors[name].dtype, tensors[name].shape)
        if size > room and shards[-1]:
            shards.append([])
            room = shard_size
        shards[-1].append(name)
        room -= size
    count = len(shards)
    if count == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05d}-of-{count:05d}.safetensors": s for i, s in enumerate(shards, 1)}


def _write_shard(
    path: Path,
    names: Sequence[str],
    bundle: Bundle,
    base: Checkpoint,
    workers: Workers,
    progress: Progress | None,
) -> None:
    tensors = bundle.manifest.tensors
    # Large items first: every tensor is then aligned to its item size.
    ordered = sorted(names, key=lambda n: -DTYPES[tensors[n].dtype].itemsize)
    _, header = layout({n: (tensors[n].dtype, tensors[n].shape) for n in ordered}, _METADATA)
    with path.open("xb") as f:
        f.write(header)
        for name in ordered:
            for block in bundle.blocks(name, base, workers):
                f.write(block.data.cast("B"))
                if progress is not None:
                    progress(block.nbytes)
            bundle.release(name, base)


def _write_index(
    path: Path, shards: Mapping[str, Sequence[str]], tensors: Mapping[str, TensorEntry]
) -> None:
    total = sum(nbytes(t.dtype, t.shape) for t in tensors.values())
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copy_small_files(bundle: Bundle, folder: Path) -> None:
    for path in bundle.manifest.files:
        if path.startswith(EXPERT_FOLDER):
            copy = folder / path.removeprefix(EXPERT_FOLDER)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / path, copy)
