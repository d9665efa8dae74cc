"""The folder of a bundle: its manifest, its group files, and the stored bytes of its tensors.

Whatever is touched is checked: the manifest and the listing on opening, a group file's header when
one of its tensors is first needed, a tensor's stored bytes before they are handed out.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from blake3 import blake3

from onebitfmt.checkpoint import MappedFile, Tensor
from onebitfmt.errors import FormatError, MissingBundleError
from onebitfmt.format.limits import MAX_MANIFEST_BYTES
from onebitfmt.format.manifest import (
    FILE_NAME,
    SCALE_TENSORS,
    Exact,
    Manifest,
    TensorEntry,
    Terms,
)
from onebitfmt.format.manifest_json import load
from onebitfmt.format.safetensors import check_group_file, read_header

# CACHE/models--NS--NAME/snapshots/COMMIT/: there each file is a link to one that is named by its
# content, in a folder beside it or in one for all repositories.
_IN_CACHE: Final = re.compile(r"(.+)/models--[^/]+/snapshots/[0-9a-f]{40}/")


def stored_names(name: str, entry: TensorEntry) -> list[str]:
    """The names under which a tensor's parts stand in its group file, in digest order (spec 5)."""
    if isinstance(entry.coding, Exact):
        return [f"{name}/exact"]
    if isinstance(entry.coding, Terms):
        return [
            part
            for k, term in enumerate(entry.coding.terms)
            for part in (
                f"{name}/sign/{k}",
                *(f"{name}/{kind}/{k}" for kind in SCALE_TENSORS[term.scale]),
            )
        ]
    return []


@dataclass(kw_only=True)
class Container:
    """An open bundle folder. Reading from several threads at once is safe."""

    path: Path
    manifest: Manifest
    _files: dict[str, MappedFile] = field(default_factory=dict, repr=False)
    _trusted: set[str] = field(default_factory=set, repr=False)

    @staticmethod
    def open(path: Path) -> Container:
        """Open a folder; group files may be missing. Raises `FormatError`."""
        manifest = load(_read_manifest(path), str(path / FILE_NAME))
        _check_folder(path, manifest)
        return Container(path=path, manifest=manifest)

    @property
    def missing_files(self) -> list[str]:
        """Listed files that are not there."""
        # os.path answers False where pathlib raises: a name may be too long for the file system.
        return [f for f in self.manifest.files if not os.path.isfile(self.path / f)]

    def check_complete(self) -> None:
        """See that all listed files are there. Raises `FormatError`."""
        if missing := self.missing_files:
            problem = f"incomplete: {missing[0]} is missing; pull or convert it again"
            raise FormatError("OBD-DIR-MISSING", str(self.path), problem)

    @property
    def nbytes(self) -> int:
        """Bytes on disk of the whole bundle, the manifest included."""
        listed = sum(f.size for f in self.manifest.files.values())
        return listed + (self.path / FILE_NAME).stat().st_size

    def file(self, name: str) -> MappedFile:
        """An open and checked group file. Raises `FormatError`."""
        if name not in self._files:
            path = self.path / name
            if not path.is_file():
                group = name.split(".")[0]
                problem = f"this file is not here; the bundle was fetched without group {group!r}"
                raise FormatError("OBD-DIR-MISSING", str(path), problem)
            header = read_header(path)
            entries = self.manifest.tensors
            stored = [
                s for n in self._tensors_of.get(name, ()) for s in stored_names(n, entries[n])
            ]
            check_group_file(path, header, stored)
            self._files[name] = MappedFile(path, header)
        return self._files[name]

    @cached_property
    def _tensors_of(self) -> dict[str, list[str]]:
        """Names of the tensors that each group file holds."""
        tensors: dict[str, list[str]] = {}
        for name in self.manifest.tensors:
            if (path := self.file_of(name)) is not None:
                tensors.setdefault(path, []).append(name)
        return tensors

    @cached_property
    def _group_files(self) -> dict[str, tuple[str, ...]]:
        return {group.name: group.files for group in self.manifest.groups}

    def file_of(self, name: str) -> str | None:
        """The group file that holds a tensor's bytes; None where nothing is stored."""
        entry = self.manifest.tensors[name]
        if isinstance(entry.coding, Exact | Terms):
            return self._group_files[entry.group][entry.coding.shard]
        return None

    def parts(self, name: str, entry: TensorEntry) -> list[Tensor]:
        """The stored parts of a tensor, their digest checked the first time."""
        path = self.file_of(name)
        assert path is not None
        assert isinstance(entry.coding, Exact | Terms)
        file = self.file(path)
        parts = [file.tensor(part) for part in stored_names(name, entry)]
        if name not in self._trusted:
            hasher = blake3()
            for part in parts:
                hasher.update(part.bits.reshape(-1).view(np.uint8).data)
            if hasher.hexdigest() != entry.coding.digest:
                where = f"{self.path / path}: {name}"
                raise FormatError("OBD-TENSOR-DIGEST", where, "the stored bytes were damaged")
            self._trusted.add(name)
        return parts

    def release(self, name: str) -> None:
        """Let go of the memory pages of a tensor's stored bytes."""
        path = self.file_of(name)
        if path is not None:
            for part in stored_names(name, self.manifest.tensors[name]):
                self.file(path).release(part)


def _read_manifest(folder: Path) -> bytes:
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise MissingBundleError(str(folder))
    if not is_plain_file(path):
        raise FormatError("OBD-DIR-MANIFEST", str(path), "no manifest; not an .obd bundle")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        problem = f"larger than {MAX_MANIFEST_BYTES} bytes"
        raise FormatError("OBD-JSON-LIMIT", str(path), problem)
    return path.read_bytes()


def _check_folder(folder: Path, manifest: Manifest) -> None:
    """No file that is not listed, none of another size, no links (spec section 3)."""
    for parent, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(parent) / name
            relative = path.relative_to(folder).as_posix()
            if stat.S_ISDIR(path.lstat().st_mode):
                continue
            # Links to folders never: what is behind them would not be walked.
            if not is_plain_file(path):
                raise FormatError("OBD-DIR-LINK", str(path), "not a plain file")
            if relative == FILE_NAME:
                continue
            if relative not in manifest.files:
                raise FormatError("OBD-DIR-UNLISTED", str(path), "not listed in the manifest")
            size = path.stat().st_size
            if size != manifest.files[relative].size:
                problem = f"{size} bytes, not {manifest.files[relative].size}: cut short or changed"
                raise FormatError("OBD-DIR-SIZE", str(path), problem)


def is_plain_file(path: Path) -> bool:
    """True for a regular file, and for a link of the Hub's cache to a file of that cache."""
    if not path.is_symlink():
        return path.is_file()
    snapshot = _IN_CACHE.match(path.parent.resolve().as_posix() + "/")
    return (
        snapshot is not None
        and path.is_file()
        and path.resolve().is_relative_to(Path(snapshot[1]).resolve())
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    hasher = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()
