"""The requests that reached the server, and the bytes of their bodies."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class Request:
    """One request. Filled in while it is handled, before its last byte leaves.

    `path` holds no query; `received` and `sent` count bytes of bodies; `headers` has small
    names. `status` is 0 until an answer begins.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    status: int = 0
    received: int = 0
    sent: int = 0

    @property
    def user_agent(self) -> str:
        """The `User-Agent` header."""
        return self.headers.get("user-agent", "")

    @property
    def range(self) -> str | None:
        """The `Range` header."""
        return self.headers.get("range")


class Log:
    """Requests in the order in which they came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[Request] = []

    def add(self, request: Request) -> None:
        """Note a request that begins."""
        with self._lock:
            self._requests.append(request)

    def clear(self) -> None:
        """Forget them all."""
        with self._lock:
            self._requests.clear()

    def all(self) -> list[Request]:
        """A copy of the list."""
        with self._lock:
            return list(self._requests)
