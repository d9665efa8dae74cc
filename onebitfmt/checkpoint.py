"""An open Hugging Face checkpoint: memory-mapped tensors as bit patterns, never a whole model.

A checkpoint is a folder (one file, or shards with an index) or a single .safetensors file. Pickle
checkpoints are refused: reading one runs code.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from onebitfmt.errors import CheckpointError, FormatError
from onebitfmt.format.dtypes import DTYPES
from onebitfmt.format.safetensors import Header, Span, read_header
from onebitfmt.format.strict_json import canonical

Array = NDArray[Any]

_SMALL_FILES: Final = (".json", ".jinja", ".txt", ".model", ".md", ".tiktoken")
_LICENCES: Final = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
_NOT_THE_EXPERTS: Final = ("trainer_state.json", "training_args.json", "all_results.json")
_INDEX: Final = "*.safetensors.index.json"
_MAX_SMALL_FILE: Final = 64 << 20
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HOW_TO_CONVERT: Final = (
    "convert it first, in Python: from transformers import AutoModelForCausalLM as M; "
    "M.from_pretrained(SOURCE, dtype='auto').save_pretrained(TARGET)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """A tensor as bit patterns: unsigned integers of the dtype's width, little-endian."""

    dtype: str
    bits: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.bits.shape)


class MappedFile:
    """A safetensors file in memory-mapped form; tensors are views of it."""

    def __init__(self, path: Path, header: Header) -> None:
        """Map the file whose checked header is given."""
        self.path = path
        self.header = header
        with path.open("rb") as f:
            # Copy-on-write only so that arrays count as writable: kernels are compiled once.
            self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)

    def bits(self, name: str) -> Array:
        """The bit patterns of a tensor, a view of the mapping wherever alignment allows."""
        span = self.header.spans[name]
        flat = self._flat(span)
        return flat.reshape(span.shape)

    def tensor(self, name: str) -> Tensor:
        """A tensor with its type."""
        return Tensor(dtype=self.header.spans[name].dtype, bits=self.bits(name))

    def _flat(self, span: Span) -> Array:
        item = np.dtype(f"<u{DTYPES[span.dtype].itemsize}")
        data = np.frombuffer(self._map, item, prod(span.shape), span.begin)
        return data if span.begin % item.itemsize == 0 else data.copy()

    def release(self, name: str) -> None:
        """Let go of a tensor's pages; they are read again if they are needed again."""
        span = self.header.spans[name]
        begin = -(-span.begin // mmap.PAGESIZE) * mmap.PAGESIZE
        length = span.end // mmap.PAGESIZE * mmap.PAGESIZE - begin
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, begin, length)


def digest(bits: Array) -> str:
    """BLAKE3-256 of a tensor's little-endian row-major bytes, in hexadecimal."""
    flat = np.ascontiguousarray(bits).reshape(-1).view(np.uint8)
    return blake3(flat.data).hexdigest()


def fingerprint(tensors: Mapping[str, tuple[str, tuple[int, ...], str]]) -> str:
    """The base fingerprint: SHA-256 over (dtype, shape, digest) of all tensors (spec section 7)."""
    rows = [[name, dtype, list(shape), d] for name, (dtype, shape, d) in sorted(tensors.items())]
    return hashlib.sha256(canonical(rows)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An open checkpoint. `repo` and `revision` say where it came from, when that is known."""

    path: Path
    files: tuple[MappedFile, ...]
    repo: str | None = None
    revision: str | None = None

    @staticmethod
    def open(
        path: str | Path, *, repo: str | None = None, revision: str | None = None
    ) -> Checkpoint:
        """Open a folder or a .safetensors file. Raises `CheckpointError`."""
        source = Path(path)
        files = tuple(_open_file(p) for p in _weight_files(source))
        names: dict[str, Path] = {}
        for file in files:
            for name in file.header.spans:
                if name in names:
                    both = f"{names[name].name} and {file.path.name}"
                    raise CheckpointError(f"{source}: tensor {name!r} is in both {both}")
                names[name] = file.path
        _check_index(source, names)
        return Checkpoint(path=source, files=files, repo=repo, revision=revision)

    @cached_property
    def _owners(self) -> dict[str, MappedFile]:
        return {name: file for file in self.files for name in file.header.spans}

    def __contains__(self, name: object) -> bool:
        """True where the checkpoint has a tensor of this name."""
        return name in self._owners

    def __iter__(self) -> Iterator[str]:
        """Tensor names, in the order of the files."""
        return iter(self._owners)

    def __len__(self) -> int:
        """The number of tensors."""
        return len(self._owners)

    def __str__(self) -> str:
        """A short name for messages."""
        return f"{self.repo}@{self.revision}" if self.repo else str(self.path)

    def span(self, name: str) -> Span:
        """Type, shape and place of a tensor."""
        return self._owners[name].header.spans[name]

    def bits(self, name: str) -> Array:
        """The bit patterns of a tensor, in its shape."""
        return self._owners[name].bits(name)

    def tensor(self, name: str) -> Tensor:
        """A tensor with its type."""
        return self._owners[name].tensor(name)

    def release(self, name: str) -> None:
        """Let go of a tensor's pages."""
        self._owners[name].release(name)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(s.end - s.begin for f in self.files for s in f.header.spans.values())

    @property
    def folder(self) -> Path:
        """The folder the checkpoint lies in."""
        return self.path if self.path.is_dir() else self.path.parent

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json as far as it is readable, else empty: it only ever serves for hints."""
        try:
            value = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def small_files(self) -> dict[str, Path]:
        """What belongs to the model besides its weights: configuration, tokenizer, licence.

        Code (.py) is left out: a bundle never carries any. A bare weight file has no such files.
        """
        if not self.path.is_dir():
            return {}
        found = {}
        for path in sorted(self.path.rglob("*")):
            relative = path.relative_to(self.path)
            hidden = any(part.startswith(".") for part in relative.parts)
            if path.is_file() and len(relative.parts) <= 3 and not hidden and _is_small(path):
                found[relative.as_posix()] = path
        return found


def _is_small(path: Path) -> bool:
    name = path.name
    wanted = name.endswith(_SMALL_FILES) or name.startswith(_LICENCES)
    unwanted = name.endswith(".index.json") or name in _NOT_THE_EXPERTS
    return wanted and not unwanted and path.stat().st_size <= _MAX_SMALL_FILE


def _open_file(path: Path) -> MappedFile:
    try:
        # The reference implementation judges files that others wrote.
        with safe_open(path, framework="numpy"):
            pass
        return MappedFile(path, read_header(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; is the download complete?") from None
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{path}: not a readable safetensors file ({e})") from None
    except FormatError as e:
        raise CheckpointError(f"{e.where}: {e.problem}") from None


def _weight_files(source: Path) -> list[Path]:
    if source.is_file():
        if source.suffix != ".safetensors":
            _refuse_file(source)
        return [source]
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such file or folder, and not a Hub id (ns/name)")
    if (source / "adapter_config.json").exists():
        raise CheckpointError(
            f"{source}: a LoRA adapter, not a full checkpoint; merge it into its base first, with "
            "peft: PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(DIR)"
        )
    if indexes := sorted(source.glob(_INDEX)):
        return _indexed_files(indexes[0])
    if (source / "model.safetensors").exists():
        return [source / "model.safetensors"]
    files = sorted(source.glob("*.safetensors"))
    if not files:
        _refuse_folder(source)
    return files


def _read_index(index: Path) -> dict[str, str]:
    """Tensor name to shard."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = set(weight_map.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index}: not a safetensors index") from None
    if not all(isinstance(n, str) and n == Path(n).name for n in shards):
        raise CheckpointError(f"{index}: names a shard outside its folder")
    return dict(weight_map)


def _indexed_files(index: Path) -> list[Path]:
    names = sorted(set(_read_index(index).values()))
    missing = [n for n in names if not (index.parent / n).is_file()]
    if missing:
        raise CheckpointError(
            f"{index}: {len(missing)} of {len(names)} shards are missing, the first is "
            f"{missing[0]}; is the download complete?"
        )
    return [index.parent / n for n in names]


def _check_index(source: Path, found: Mapping[str, Path]) -> None:
    """Refuse an index that promises tensors which its shards lack."""
    for index in sorted(source.glob(_INDEX))[:1] if source.is_dir() else ():
        missing = [n for n, shard in _read_index(index).items() if found.get(n) != source / shard]
        if missing:
            raise CheckpointError(f"{index}: tensor {missing[0]!r} is not in the shard it names")


def _refuse_file(path: Path) -> None:
    if any(path.match(pattern) for pattern in _PICKLES):
        raise CheckpointError(f"{path}: pickle checkpoints are refused; {_HOW_TO_CONVERT}")
    raise CheckpointError(f"{path}: not a .safetensors file")


def _refuse_folder(path: Path) -> None:
    if any(f for pattern in _PICKLES for f in path.glob(pattern)):
        raise CheckpointError(
            f"{path}: only pickle weights (.bin), which are refused; {_HOW_TO_CONVERT}"
        )
    if (path / "obd.json").exists():
        raise CheckpointError(f"{path}: an .obd bundle; a checkpoint is needed here")
    raise CheckpointError(f"{path}: no .safetensors weights in this folder")
