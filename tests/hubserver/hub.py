"""A Hub for a test: the server, what it holds, what reached it, and how to reach it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tests.hubserver.accounts import Account, Role
from tests.hubserver.faults import Faults
from tests.hubserver.log import Request
from tests.hubserver.server import TOKEN, HubServer, Settings
from tests.hubserver.store import Change, Commit, Entry, Repo

_NOT_INHERITED: Final = re.compile(r"HF_|HUGGING|TRANSFORMERS_|.*_PROXY$", re.IGNORECASE)


class Hub:
    """A server, and shortcuts into it. Repository ids are those of models."""

    def __init__(self, server: HubServer, *, home: Path, cache: Path) -> None:
        self.server = server
        self.home = home
        self.cache = cache
        self.token = TOKEN
        self._xet = False

    @property
    def url(self) -> str:
        """The endpoint."""
        return self.server.url

    @property
    def faults(self) -> Faults:
        """The faults to inject."""
        return self.server.faults

    # What the repositories hold.

    def create(self, repo: str, *, private: bool = False, gated: bool = False) -> Repo:
        """Make a repository. Its first commit holds .gitattributes."""
        made = self.server.store.create("model", repo, private=private)
        made.gated = gated
        return made

    def repo(self, repo: str) -> Repo:
        """A repository; KeyError where there is none."""
        return self.server.store.repos["model", repo]

    def exists(self, repo: str) -> bool:
        """Whether there is such a repository."""
        return ("model", repo) in self.server.store.repos

    def commit(
        self,
        repo: str,
        files: Mapping[str, bytes | Path],
        *,
        revision: str = "main",
        message: str = "a commit",
        delete: Collection[str] = (),
    ) -> str:
        """Commit straight into the store; makes the repository and the branch where missing."""
        target = self.repo(repo) if self.exists(repo) else self.create(repo)
        target.refs.setdefault(revision, target.refs["main"])
        added = tuple(self._entry(path, data) for path, data in files.items())
        change = Change(add=added, delete=tuple(delete))
        return self.server.store.commit(target, revision, change, title=message).sha

    def _entry(self, path: str, data: bytes | Path) -> Entry:
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        if self.server.settings.is_lfs(path, size):
            return self.server.store.add_lfs(path, data)
        content = data if isinstance(data, bytes) else data.read_bytes()
        return self.server.store.add_blob(path, content)

    def tag(self, repo: str, name: str, revision: str = "main") -> None:
        """Tag a revision."""
        self.repo(repo).tags[name] = self.head(repo, revision)

    def head(self, repo: str, revision: str = "main") -> str:
        """The commit sha of a revision."""
        return self.repo(repo).resolve(revision).sha

    def commits(self, repo: str, revision: str = "main") -> list[Commit]:
        """A revision's history, newest first; the last one is the initial commit."""
        return self.repo(repo).log(revision)

    def files(self, repo: str, revision: str = "main") -> dict[str, Path]:
        """Path in the repository -> where its bytes lie. Includes .gitattributes."""
        tree = self.repo(repo).resolve(revision).tree
        return {path: self.server.store.path(tree[path]) for path in sorted(tree)}

    def entry(self, repo: str, path: str, revision: str = "main") -> Entry:
        """What a file is listed as."""
        return self.repo(repo).resolve(revision).tree[path]

    def read(self, repo: str, path: str, revision: str = "main") -> bytes:
        """A file's bytes, as they would be served."""
        return self.files(repo, revision)[path].read_bytes()

    def replace(self, repo: str, path: str, data: bytes, revision: str = "main") -> None:
        """Swap a file's stored bytes; every listing stays as it was.

        All files of the same content change, wherever they are.
        """
        self.server.store.write(self.files(repo, revision)[path], data)

    # Who may do what.

    def add_token(self, token: str, *, role: Role = "write", member: bool = True) -> str:
        """One more token. Who is not a member sees no private repository and writes nothing."""
        account = Account(name=token.replace("_", "-"), role=role, member=member)
        self.server.accounts[token] = account
        return token

    # What reached the server.

    @property
    def requests(self) -> list[Request]:
        """Every request so far, in order."""
        return self.server.log.all()

    def matching(self, path: str, method: str | None = None) -> list[Request]:
        """The requests of a method whose path matches a regular expression."""
        return [
            request
            for request in self.requests
            if method in (None, request.method) and re.search(path, request.path)
        ]

    @property
    def sent(self) -> int:
        """Bytes of bodies that the server has sent."""
        return sum(request.sent for request in self.requests)

    @property
    def received(self) -> int:
        """Bytes of bodies that the server has received."""
        return sum(request.received for request in self.requests)

    def forget(self) -> None:
        """Clear the requests."""
        self.server.log.clear()

    # How it behaves, and how to reach it.

    def configure(self, **settings: Any) -> Settings:
        """Change some `Settings`."""
        self.server.settings = replace(self.server.settings, **settings)
        return self.server.settings

    def xet(self, on: bool = True) -> None:
        """Offer Xet, to subprocesses started from now on (see `xet.works`)."""
        self._xet = on
        self.server.xet_folder = self.server.store.root / "xet" if on else None
        if self.server.xet_folder:
            self.server.xet_folder.mkdir(exist_ok=True)

    def environment(self, **extra: str) -> dict[str, str]:
        """The whole environment of a subprocess whose Hub is this server."""
        inherited = {k: v for k, v in os.environ.items() if not _NOT_INHERITED.match(k)}
        return inherited | self.variables() | extra

    def variables(self) -> dict[str, str]:
        """The variables that point a client at this server."""
        found = {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(self.home),
            "HF_HUB_CACHE": str(self.cache),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return found if self._xet else found | {"HF_HUB_DISABLE_XET": "1"}
