"""The body of a request: counted, and cut off where a fault says so."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message
from io import BufferedIOBase
from threading import Event
from typing import Final

from tests.hubserver.faults import Fault
from tests.hubserver.log import Request

BLOCK: Final = 64 << 10


class Dropped(Exception):
    """The connection closes here."""


class Body:
    """Reads a body of known length or of HTTP chunks, once."""

    def __init__(
        self,
        stream: BufferedIOBase,
        headers: Message,
        request: Request,
        fault: Fault,
        stopping: Event,
    ) -> None:
        self._stream = stream
        self._chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
        self._left = int(headers.get("Content-Length") or 0)
        self._request = request
        self._fault = fault
        self._stopping = stopping

    def read(self) -> bytes:
        """All that is left of the body. Raises `Dropped`."""
        return b"".join(self.blocks())

    def blocks(self) -> Iterator[bytes]:
        """The body in pieces of at most 64 kB. Raises `Dropped`."""
        self._check(self._request.received)
        for block in self._raw():
            self._check(self._request.received + len(block))
            self._request.received += len(block)
            if self._fault.slow:
                self._stopping.wait(self._fault.slow)
            yield block

    def _check(self, nbytes: int) -> None:
        limit = self._fault.drop_request_after
        if limit is not None and nbytes >= limit:
            if self._fault.reached:
                self._fault.reached()
            raise Dropped

    def _raw(self) -> Iterator[bytes]:
        if not self._chunked:
            yield from self._exactly(self._left)
            self._left = 0
            return
        while size := int(self._stream.readline().split(b";")[0], 16):
            yield from self._exactly(size)
            self._stream.readline()
        self._stream.readline()
        self._chunked = False

    def _exactly(self, nbytes: int) -> Iterator[bytes]:
        while nbytes:
            block = self._stream.read(min(nbytes, BLOCK))
            if not block:
                raise Dropped
            nbytes -= len(block)
            yield block
