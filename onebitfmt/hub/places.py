"""Where the Hub's client keeps the files of a commit, and how wrong ones leave for good."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from onebitfmt.errors import HubError

if TYPE_CHECKING:
    from huggingface_hub import RepoFile

# In a folder of its own the client notes here what it has put there, and of which commit.
_NOTES: Final = Path(".cache", "huggingface", "download")


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """The files of one commit: in the cache, as links to blobs, or plain in `local_dir`."""

    repo: str
    commit: str
    cache_dir: Path
    local_dir: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.local_dir or self.snapshot

    @property
    def _storage(self) -> Path:
        return self.cache_dir / f"models--{self.repo.replace('/', '--')}"

    @property
    def snapshot(self) -> Path:
        """Where the files lie in the cache."""
        return self._storage / "snapshots" / self.commit

    def path(self, name: str) -> Path:
        """Where a file lies, or would. Raises `HubError` for a name that leads elsewhere."""
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in name or Path(name).drive:
            raise HubError(f"{self.repo}: {name!r} is no name of a file; tell the owner")
        return self.folder / name

    def holds(self, name: str) -> bool:
        """True where the file is here, and of this commit."""
        if not self.path(name).is_file():
            return False
        if self.local_dir is None:
            return True
        # Where the client cannot reach the Hub it leaves the file of another commit in place.
        return self._commit_of(name) == self.commit

    def _commit_of(self, name: str) -> str | None:
        """The commit from which a download put a file into `local_dir`."""
        try:
            return self._note(name).read_text("utf-8").partition("\n")[0]
        except (OSError, UnicodeDecodeError):
            return None

    def edited(self, name: str) -> bool:
        """True for a file of `local_dir` that no download put there, or that changed since."""
        path = self.path(name)
        if self.local_dir is None or not path.is_file():
            return False
        try:
            when = float(self._note(name).read_text("utf-8").split("\n")[2])
        except (OSError, ValueError, IndexError):
            return True
        # The client's own rule.
        return path.stat().st_mtime - 1 > when

    def _note(self, name: str) -> Path:
        return self.folder / _NOTES / f"{name}.metadata"

    def listing(self) -> Mapping[str, RepoFile] | None:
        """What the commit holds, if a download has kept that."""
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        try:
            files = get_cached_repo_tree(
                self.repo,
                revision=self.commit,
                cache_dir=self.cache_dir,
                local_dir=self.local_dir,
            )
        except CachedRepoTreeNotFoundError:
            return None
        return {file.path: file for file in files}

    def remove(self, name: str, blobs: Collection[str]) -> None:
        """Remove a file and all that a repeated download could take it from.

        `blobs` are names that its blob may have: the SHA-256, and git's name.
        """
        path = self.path(name)
        if self.local_dir is not None:
            path.unlink(missing_ok=True)
            self._note(name).unlink(missing_ok=True)
        # A folder of its own is filled from the cache where that has the file.
        cached = self.snapshot / name
        blobs = () if cached.is_symlink() else blobs
        for each in (cached, *(self._storage / "blobs" / blob for blob in blobs)):
            _unlink_all(each, self.cache_dir)

    def remove_stale(self, folder: str, keep: Collection[str]) -> None:
        """Remove the files below a folder of `local_dir` that downloads put there, but for `keep`.

        Files that no download put there stay.
        """
        notes = self.folder / _NOTES
        for note in sorted((notes / folder).rglob("*.metadata")):
            name = note.relative_to(notes).as_posix().removesuffix(".metadata")
            if name in keep or self._commit_of(name) == self.commit:
                continue
            path = self.folder / name
            path.unlink(missing_ok=True)
            note.unlink()
            while (
                path.parent != self.folder
                and path.parent.is_dir()
                and not any(path.parent.iterdir())
            ):
                path = path.parent
                path.rmdir()


def git_names(data: bytes) -> tuple[str, str]:
    """Git's names of a file of these bytes, and of the LFS pointer to one."""
    return git_name(data), pointer_name(hashlib.sha256(data).hexdigest(), len(data))


def pointer_name(digest: str, size: int) -> str:
    """Git's name of the LFS pointer to a file of this SHA-256 and size."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n"
    return git_name(pointer.encode())


def git_name(data: bytes) -> str:
    """Git's name of a file of these bytes: the SHA-1 of a header and the bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _unlink_all(path: Path, root: Path) -> None:
    """Remove a file and, where it is a link, all that it leads to below `root`."""
    while root in path.parents:
        target = path.readlink() if path.is_symlink() else None
        path.unlink(missing_ok=True)
        if target is None:
            return
        path = Path(os.path.normpath(path.parent / target))
