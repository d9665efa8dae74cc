"""One request and its answer, as the routes see them: no sockets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from tests.hubserver.accounts import Account
from tests.hubserver.store import Kind, Refusal, Repo

if TYPE_CHECKING:
    from tests.hubserver.body import Body
    from tests.hubserver.server import HubServer

KINDS: Mapping[str, Kind] = {"models": "model", "datasets": "dataset", "spaces": "space"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Bytes `start` to `stop` of a file."""

    path: Path
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What the server answers."""

    status: int = 200
    body: bytes | Slice = b""
    content_type: str = "application/octet-stream"
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Length of the body."""
        if isinstance(self.body, bytes):
            return len(self.body)
        return self.body.stop - self.body.start

    @staticmethod
    def json(
        value: object,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Reply:
        """A JSON answer."""
        body = json.dumps(value).encode()
        return Reply(status=status, body=body, content_type=content_type, headers=headers or {})

    @staticmethod
    def refused(refusal: Refusal, headers: Mapping[str, str] | None = None) -> Reply:
        """An error as the Hub words it: in JSON and in two headers."""
        words = {"X-Error-Message": refusal.message, **(headers or {})}
        if refusal.code:
            words["X-Error-Code"] = refusal.code
        return Reply.json({"error": refusal.message}, status=refusal.status, headers=words)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What a route needs to answer one request."""

    server: HubServer
    method: str
    query: str
    headers: Message
    body: Body
    ranged: bool = True

    def asked(self, name: str) -> str | None:
        """The last value of a query parameter."""
        values = parse_qs(self.query).get(name)
        return values[-1] if values else None

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body.read() or b"{}")

    def account(self) -> Account | None:
        """Who asks: None without a token. Raises `Refusal` for a token that nobody has."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return None
        account = self.server.accounts.get(token)
        if account is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return account

    def reader(self, kind: str, repo_id: str) -> Repo:
        """A repository that may be seen by who asks. Raises `Refusal`."""
        account = self.account()
        repo = self.server.store.repos.get((KINDS[kind], repo_id))
        if repo is None or (repo.private and not (account and account.member)):
            raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")
        return repo

    def writer(self, kind: str, repo_id: str) -> Repo:
        """A repository that may be changed by who asks. Raises `Refusal`."""
        repo = self.reader(kind, repo_id)
        self.must_write()
        return repo

    def must_write(self) -> Account:
        """Who asks, if they may write. Raises `Refusal`."""
        account = self.account()
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        if not account.may_write:
            raise Refusal(403, "You don't have the required permissions for this operation")
        return account

    def range(self, size: int) -> tuple[int, int] | None:
        """Start and stop of the bytes asked for; None for all. Raises `Refusal` (416)."""
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not self.ranged or not found or not (found[1] or found[2]):
            return None
        if found[1]:
            start = int(found[1])
            stop = min(int(found[2]) + 1, size) if found[2] else size
        else:
            start, stop = max(size - int(found[2]), 0), size
        if start >= stop:
            raise Refusal(416, "Range Not Satisfiable")
        return start, stop
