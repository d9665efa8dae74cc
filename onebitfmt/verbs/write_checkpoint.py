"""Write a model as a plain Hugging Face checkpoint: shards and index, in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from onebitfmt.format.dtypes import DTYPES, nbytes
from onebitfmt.format.safetensors import layout
from onebitfmt.matching import model_order
from onebitfmt.parallel import Workers

Array = NDArray[Any]
Progress = Callable[[int], None]
Spans = Mapping[str, tuple[str, tuple[int, ...]]]

DEFAULT_SHARD_SIZE: Final = 5_000_000_000
INDEX: Final = "model.safetensors.index.json"
# What transformers asks of a checkpoint's files.
_METADATA: Final = {"format": "pt"}


class ModelSource(Protocol):
    """A model whose tensors are made block by block."""

    @property
    def spans(self) -> Spans:
        """Dtype and shape of each tensor by its name."""

    def blocks(self, name: str, workers: Workers) -> Iterator[Array]:
        """A tensor as flat blocks of bit patterns in row-major order."""

    def release(self, name: str) -> None:
        """Let go of what reading a tensor has mapped."""


def write_weights(
    folder: Path,
    model: ModelSource,
    workers: Workers,
    *,
    shard_size: int = DEFAULT_SHARD_SIZE,
    progress: Progress | None = None,
) -> list[str]:
    """Write the weight files, and an index if there are several; gives the files' names.

    `progress` is called with numbers of bytes written, `total_bytes` in all. A tensor larger than
    `shard_size` has a file of its own.
    """
    shards = _shards(model.spans, shard_size)
    for file, names in shards.items():
        _write_shard(folder / file, names, model, workers, progress)
    if len(shards) > 1:
        _write_index(folder / INDEX, shards, model.spans)
    return list(shards)


def is_checkpoint(path: Path) -> bool:
    """True for a folder that looks like a checkpoint written here, and like nothing else."""
    return any(path.glob("model*.safetensors")) and not (path / ".git").exists()


def total_bytes(spans: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    """Bytes of tensors of these dtypes and shapes."""
    return sum(nbytes(dtype, shape) for dtype, shape in spans)


def _shards(spans: Spans, shard_size: int) -> dict[str, list[str]]:
    shards: list[list[str]] = [[]]
    room = shard_size
    for name in model_order(spans):
        size = nbytes(*spans[name])
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
    model: ModelSource,
    workers: Workers,
    progress: Progress | None,
) -> None:
    spans = model.spans
    # Large items first: every tensor is then aligned to its item size.
    ordered = sorted(names, key=lambda n: -DTYPES[spans[n][0]].itemsize)
    _, header = layout({name: spans[name] for name in ordered}, _METADATA)
    with path.open("xb") as f:
        f.write(header)
        for name in ordered:
            for block in model.blocks(name, workers):
                f.write(block.data.cast("B"))
                if progress is not None:
                    progress(block.nbytes)
            model.release(name)


def _write_index(path: Path, shards: Mapping[str, Sequence[str]], spans: Spans) -> None:
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {
        "metadata": {"total_size": total_bytes(spans.values())},
        "weight_map": dict(sorted(weight_map.items())),
    }
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
