"""The server itself: one thread that listens, one for every connection."""

from __future__ import annotations

import os
import socket
import threading
import traceback
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Final

from tests.hubserver.accounts import Account
from tests.hubserver.faults import Faults
from tests.hubserver.handler import Handler
from tests.hubserver.log import Log
from tests.hubserver.store import Store

TOKEN: Final = "hf_test"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How the server behaves.

    A file is an LFS file by its suffix or from `lfs_threshold` bytes; an empty one never is.
    Larger ones than `part_size` are uploaded in parts. With `cdn`, LFS files are redirected to
    another host name. `page_size` is the number of entries in a page of a tree.
    """

    lfs_suffixes: tuple[str, ...] = (".safetensors", ".bin", ".pt", ".gguf", ".zst", ".npz")
    lfs_threshold: int = 10 << 20
    part_size: int | None = None
    cdn: bool = False
    page_size: int = 1000

    def is_lfs(self, path: str, size: int) -> bool:
        """Whether a file goes to LFS."""
        return size > 0 and (path.endswith(self.lfs_suffixes) or size >= self.lfs_threshold)


class HubServer(ThreadingHTTPServer):
    """A Hub on 127.0.0.1 with one writing token. Serves between `start` and `stop`."""

    # Threads are joined at the end, which `stop` makes sure is soon.
    daemon_threads = False

    def __init__(self, root: Path, settings: Settings | None = None, port: int = 0) -> None:
        self.settings = settings or Settings()
        self.store = Store(root)
        self.accounts = {TOKEN: Account(name="tester")}
        self.faults = Faults()
        self.log = Log()
        self.uploads: dict[str, str] = {}
        self.xet_folder: Path | None = None
        self.signature = f"X-Signature={os.urandom(8).hex()}"
        self.stopping = threading.Event()
        self.connections: set[socket.socket] = set()
        self.mistakes: list[str] = []
        super().__init__(("127.0.0.1", port), Handler)
        # A daemon, so that a test run that is interrupted ends.
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def cdn_url(self) -> str:
        """The same server under another name, to which no client may send a token."""
        return f"http://localhost:{self.server_port}"

    def start(self) -> None:
        """Serve, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Close every connection and wait for every thread."""
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        for connection in list(self.connections):
            self.hang_up(connection)
        self.server_close()

    def opened(self, connection: socket.socket) -> None:
        """Note a connection, so that `stop` can close it."""
        self.connections.add(connection)
        if self.stopping.is_set():
            self.hang_up(connection)

    @staticmethod
    def hang_up(connection: socket.socket) -> None:
        """End a connection, in the middle of whatever goes on."""
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            # The client was faster.
            return

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep a mistake of the server's own, for the tests to report."""
        self.mistakes.append(traceback.format_exc())
