"""The manifest `obd.json` as records (spec section 4); reading and writing is `manifest_json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

FILE_NAME: Final = "obd.json"
VERSION: Final = "1.0"
EXPERT_FOLDER: Final = "expert/"
GROUP_SUFFIX: Final = ".obd.safetensors"
# The scale tensors of each kind of scale, in stored order (spec section 5.2).
SCALE_TENSORS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"matrix": ("matrix",), "row": ("row",), "column": ("column",), "rank1": ("row", "column")}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """The base model: fingerprint of all its tensors, and where it came from when known."""

    fingerprint: str
    repo: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        """A short name for messages."""
        known = f"{self.repo}@{self.revision}" if self.revision else self.repo
        return f"{known or 'base'} (fingerprint {self.fingerprint[:12]})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Expert:
    """The fine-tuned model that the bundle holds; `dtype` is the one of most of its elements."""

    name: str
    dtype: str
    repo: str | None = None
    revision: str | None = None
    license: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerGroup:
    """A layer group and its files, in shard order."""

    name: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """A file of the bundle: bytes and SHA-256 (the Hub's LFS object id)."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseTensor:
    """The base tensor that a coding refers to; `digest` is the BLAKE3 of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Same:
    """Identical to the base tensor; nothing is stored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tied:
    """The same bytes as another tensor of the expert; nothing is stored."""

    to: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Exact:
    """Lossless against the base: `digest` of the stored bytes, `content` of the rebuilt ones."""

    digest: str
    content: str
    coded: str
    shard: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SignTerm:
    """One sign per weight and a scale of the given kind."""

    scale: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """A task vector as a sum of terms; `digest` covers their stored bytes in order."""

    digest: str
    terms: tuple[SignTerm, ...]
    shard: int = 0


Coding = Same | Tied | Exact | Terms


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """A tensor of the expert: its layer group, type, shape, base tensor (if any) and coding."""

    group: str
    dtype: str
    shape: tuple[int, ...]
    base: BaseTensor | None
    coding: Coding


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """All that a bundle says of itself."""

    base: Base
    expert: Expert
    groups: tuple[LayerGroup, ...]
    files: Mapping[str, FileEntry]
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str] = field(default_factory=dict)
    version: str = VERSION


def coding_name(coding: Coding) -> str:
    """A coding in a word or two: `same`, `tied`, `exact`, `sign rank1`, `sign row + row`."""
    if isinstance(coding, Terms):
        return "sign " + " + ".join(term.scale for term in coding.terms)
    return type(coding).__name__.lower()


def group_file_names(group: str, count: int) -> tuple[str, ...]:
    """The file names of a group stored in `count` shards (spec section 3)."""
    if count < 2:
        return (f"{group}{GROUP_SUFFIX}",) * count
    return tuple(f"{group}-{i:05d}-of-{count:05d}{GROUP_SUFFIX}" for i in range(1, count + 1))
