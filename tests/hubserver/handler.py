"""HTTP: reads requests, asks the routes, sends answers, and commits the faults on the way."""

from __future__ import annotations

from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tests.hubserver.body import BLOCK, Body, Dropped
from tests.hubserver.exchange import Call, Reply, Slice
from tests.hubserver.faults import Fault
from tests.hubserver.log import Request
from tests.hubserver.routes import answer
from tests.hubserver.store import Refusal

if TYPE_CHECKING:
    from tests.hubserver.server import HubServer

_NO_FAULT: Final = Fault(path="", times=None)


class Handler(BaseHTTPRequestHandler):
    """One connection of a client, which may carry many requests."""

    server: HubServer
    protocol_version = "HTTP/1.1"
    server_version = "hubserver"
    # Together these take a request from 40 ms to 1 ms: an answer leaves in one packet, at once.
    disable_nagle_algorithm = True
    wbufsize = 64 << 10

    def setup(self) -> None:
        """Note the connection, so that the server can close it."""
        super().setup()
        self.server.opened(self.connection)

    def finish(self) -> None:
        """Forget the connection; the client may have left already."""
        self.server.connections.discard(self.connection)
        try:
            super().finish()
        except OSError:
            self.rfile.close()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def handle(self) -> None:
        """Serve the connection until the client, a fault or the end of the server closes it."""
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def respond(self) -> None:
        """Serve one request."""
        request, fault = self._begin()
        body = Body(self.rfile, self.headers, request, fault, self.server.stopping)
        try:
            if fault.drop_request_after == 0:
                self._reached(fault)
                raise Dropped
            if fault.before:
                fault.before()
            reply = self._reply(body, request, fault)
            # What the route left unread would be taken for the next request.
            for _ in body.blocks():
                pass
            if fault.after:
                fault.after()
            if fault.lose_answer:
                raise Dropped
            self._send(reply, request, fault)
            self.wfile.flush()
        except Dropped:
            self.close_connection = True
            self.server.hang_up(self.connection)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond

    def _begin(self) -> tuple[Request, Fault]:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(method=self.command, path=parts.path, query=parts.query, headers=headers)
        self.server.log.add(request)
        return request, self.server.faults.take(self.command, parts.path) or _NO_FAULT

    def _reply(self, body: Body, request: Request, fault: Fault) -> Reply:
        if fault.status:
            refusal = Refusal(fault.status, fault.message, fault.error_code)
            return Reply.refused(refusal, fault.headers)
        call = Call(
            server=self.server,
            method=self.command,
            query=request.query,
            headers=self.headers,
            body=body,
            ranged=not fault.no_range,
        )
        try:
            return answer(call, request.path)
        except Refusal as refusal:
            return Reply.refused(refusal)

    def _send(self, reply: Reply, request: Request, fault: Fault) -> None:
        request.status = reply.status
        self.send_response(reply.status)
        headers = {
            "Content-Type": reply.content_type,
            "Content-Length": str(reply.nbytes),
            "Last-Modified": formatdate(usegmt=True),
            **reply.headers,
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for block in _faulty(_blocks(reply), reply.nbytes, fault):
            self._send_block(block, request, fault)

    def _send_block(self, block: bytes, request: Request, fault: Fault) -> None:
        limits = [n for n in (fault.drop_response_after, fault.stall_after) if n is not None]
        room = min(limits) - request.sent if limits else len(block)
        part = block[: max(room, 0)]
        request.sent += len(part)
        self.wfile.write(part)
        if fault.slow:
            self.wfile.flush()
            self.server.stopping.wait(fault.slow)
        if limits and room <= len(block):
            self.wfile.flush()
            self._reached(fault)
            if fault.stall_after is not None:
                self.server.stopping.wait()
            raise Dropped

    @staticmethod
    def _reached(fault: Fault) -> None:
        if fault.reached:
            fault.reached()


def _blocks(reply: Reply) -> Iterator[bytes]:
    if isinstance(reply.body, bytes):
        for start in range(0, len(reply.body), BLOCK):
            yield reply.body[start : start + BLOCK]
        return
    yield from _read(reply.body)


def _read(part: Slice) -> Iterator[bytes]:
    with part.path.open("rb") as file:
        file.seek(part.start)
        left = part.stop - part.start
        while left and (block := file.read(min(left, BLOCK))):
            left -= len(block)
            yield block
    if left:
        raise Dropped


def _faulty(blocks: Iterator[bytes], nbytes: int, fault: Fault) -> Iterator[bytes]:
    done = 0
    for block in blocks:
        done += len(block)
        if fault.wrong_bytes and done == nbytes:
            yield block[:-1] + bytes([block[-1] ^ 1])
        else:
            yield block
