"""What the server holds: repositories, their commits, and the bytes of their files on disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, Literal

Kind = Literal["model", "dataset", "space"]

ATTRIBUTES: Final = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
_SHORT_SHA: Final = re.compile(r"[0-9a-f]{7,40}")


class Refusal(Exception):
    """The server says no: an HTTP status, its words, and the `X-Error-Code` if it has one."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One file of a commit. `sha256` is None of a regular file, which has no LFS pointer."""

    path: str
    size: int
    oid: str
    sha256: str | None = None
    pointer_size: int = 0
    xet: str | None = None

    @property
    def etag(self) -> str:
        """What names the content: sha256 of an LFS file, git's sha1 of any other."""
        return self.sha256 or self.oid

    def listed(self) -> dict[str, Any]:
        """The entry as the tree and paths-info routes show it."""
        shown: dict[str, Any] = {
            "type": "file",
            "path": self.path,
            "size": self.size,
            "oid": self.oid,
        }
        if self.sha256:
            lfs = {"oid": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
            shown["lfs"] = lfs
        if self.xet:
            shown["xetHash"] = self.xet
        return shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """One commit: its tree in full, path -> entry."""

    sha: str
    parent: str | None
    title: str
    description: str
    date: str
    tree: Mapping[str, Entry]


@dataclass(kw_only=True)
class Repo:
    """A repository. `refs` holds branches and pull requests (`refs/pr/N`)."""

    kind: Kind
    id: str
    private: bool = False
    gated: bool = False
    created: str
    granted: set[str] = field(default_factory=set)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    history: dict[str, Commit] = field(default_factory=dict)

    def resolve(self, revision: str) -> Commit:
        """The commit of a branch, tag, pull request or (short) sha. Raises `Refusal`."""
        name = "main" if revision == "HEAD" else revision.removeprefix("refs/heads/")
        sha = self.refs.get(name) or self.tags.get(name)
        if sha is None and _SHORT_SHA.fullmatch(revision):
            sha = next((known for known in self.history if known.startswith(revision)), None)
        if sha is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.history[sha]

    def log(self, revision: str) -> list[Commit]:
        """A revision and its ancestors, newest first."""
        found = []
        commit: Commit | None = self.resolve(revision)
        while commit:
            found.append(commit)
            commit = self.history[commit.parent] if commit.parent else None
        return found

    def pull_request(self, revision: str) -> int:
        """Open a pull request at a revision; its number."""
        number = 1 + sum(name.startswith("refs/pr/") for name in self.refs)
        self.refs[f"refs/pr/{number}"] = self.resolve(revision).sha
        return number


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What one commit does: files to add, files and folders to delete."""

    add: tuple[Entry, ...] = ()
    delete: tuple[str, ...] = ()
    delete_folders: tuple[str, ...] = ()

    def applied(self, tree: Mapping[str, Entry]) -> dict[str, Entry]:
        """The tree after the change. Raises `Refusal` where what it deletes is not there."""
        after = dict(tree)
        for path in self.delete:
            if after.pop(path, None) is None:
                raise Refusal(404, f"A file with the name {path} does not exist", "EntryNotFound")
        for folder in self.delete_folders:
            inside = [path for path in after if path.startswith(folder.rstrip("/") + "/")]
            if not inside:
                raise Refusal(404, f"A folder named {folder} does not exist", "EntryNotFound")
            for path in inside:
                del after[path]
        return after | {entry.path: entry for entry in self.add}


class Store:
    """Every repository, and their bytes below `root`, each content once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        self.repos: dict[tuple[Kind, str], Repo] = {}
        for folder in ("blobs", "lfs", "parts"):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def create(self, kind: Kind, repo_id: str, *, private: bool = False) -> Repo:
        """A repository whose first commit holds .gitattributes, as on the Hub.

        Raises `Refusal` where it exists.
        """
        with self.lock:
            if (kind, repo_id) in self.repos:
                raise Refusal(409, f"You already created this {kind} repo: {repo_id}")
            repo = Repo(kind=kind, id=repo_id, private=private, created=now())
            self.repos[kind, repo_id] = repo
            first = Change(add=(self.add_blob(".gitattributes", ATTRIBUTES),))
            self.commit(repo, "main", first, title="initial commit")
            return repo

    def commit(
        self,
        repo: Repo,
        branch: str,
        change: Change,
        *,
        title: str,
        description: str = "",
        parent: str | None = None,
    ) -> Commit:
        """Add a commit to a branch. `parent`, if given, must be the branch's head.

        Raises `Refusal`: 412 where the branch has moved on, 404 where it does not exist.
        """
        with self.lock:
            head = repo.resolve(branch) if repo.history else None
            if parent and not (head and head.sha.startswith(parent)):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            tree = change.applied(head.tree if head else {})
            date = now()
            parent_sha = head.sha if head else None
            names = sorted((path, entry.etag) for path, entry in tree.items())
            facts = [parent_sha, title, description, date, len(repo.history), names]
            sha = hashlib.sha1(json.dumps(facts).encode()).hexdigest()
            repo.history[sha] = Commit(
                sha=sha,
                parent=parent_sha,
                title=title,
                description=description,
                date=date,
                tree=tree,
            )
            repo.refs[branch.removeprefix("refs/heads/")] = sha
            return repo.history[sha]

    def lfs_path(self, sha256: str) -> Path:
        """Where an LFS object lies, or would lie."""
        return self.root / "lfs" / sha256

    def path(self, entry: Entry) -> Path:
        """Where an entry's bytes lie."""
        if entry.sha256:
            return self.lfs_path(entry.sha256)
        return self.root / "blobs" / entry.oid

    def add_blob(self, path: str, data: bytes) -> Entry:
        """Keep a regular file's bytes."""
        entry = Entry(path=path, size=len(data), oid=git_oid(data))
        self.write(self.path(entry), data)
        return entry

    def add_lfs(self, path: str, data: bytes | Path) -> Entry:
        """Keep an LFS file's bytes; of a path, a copy."""
        if isinstance(data, bytes):
            sha256 = hashlib.sha256(data).hexdigest()
            self.write(self.lfs_path(sha256), data)
        else:
            sha256 = sha256_of(data)
            shutil.copyfile(data, self.lfs_path(sha256))
        return self.lfs_entry(path, sha256)

    def lfs_entry(self, path: str, sha256: str, xet: str | None = None) -> Entry:
        """The entry of an LFS object that is here. Raises `Refusal` where it is not."""
        stored = self.lfs_path(sha256)
        if not stored.exists():
            raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
        size = stored.stat().st_size
        text = pointer(sha256, size)
        return Entry(
            path=path,
            size=size,
            oid=git_oid(text),
            sha256=sha256,
            pointer_size=len(text),
            xet=xet,
        )

    def write(self, path: Path, data: bytes) -> None:
        """Write a file so that no reader ever sees half of it."""
        temporary = self.temporary()
        temporary.write_bytes(data)
        temporary.replace(path)

    def temporary(self) -> Path:
        """A new file name, for one thread."""
        return self.root / "parts" / f"{threading.get_ident()}-{os.urandom(6).hex()}"


def git_oid(data: bytes, kind: str = "blob") -> str:
    """The sha1 that git gives an object."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """What git holds in place of an LFS file."""
    lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{sha256}", f"size {size}")
    return "".join(f"{line}\n" for line in lines).encode()


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def now() -> str:
    """The time as the Hub writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
