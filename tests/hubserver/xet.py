"""The Xet lane: the client's own hf_xet, storing its chunks in a local folder.

Private details of hf_xet 1.8 (its `local://` endpoint and the layout of its shards), so tests of
this lane ask `works` first and skip where the answer is no.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.hubserver.exchange import Call, Reply
from tests.hubserver.store import Refusal, sha256_of

if TYPE_CHECKING:
    from tests.hubserver.server import HubServer

_HEADER: Final = 48
_RECORD: Final = 48
_END: Final = b"\xff" * 32
_HAS_VERIFICATION: Final = 0x80000000
_HAS_SHA256: Final = 0x40000000

_STORE: Final = """
import sys, hf_xet
endpoint, path = sys.argv[1:]
with hf_xet.XetSession().new_upload_commit(endpoint=endpoint) as commit:
    commit.start_upload_file(path)
"""
_FETCH: Final = """
import sys, hf_xet
endpoint, name, size, path = sys.argv[1:]
with hf_xet.XetSession().new_file_download_group(endpoint=endpoint) as group:
    group.start_download_file(hf_xet.XetFileInfo(name, int(size)), path)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class XetFile:
    """One file of a shard."""

    sha256: str | None
    hash: str
    size: int


def token(call: Call, kind: str, repo_id: str, right: str, revision: str) -> Reply:
    """Where the chunks are stored, and the right to read or write them."""
    if right == "write":
        call.writer(kind, repo_id)
    else:
        call.reader(kind, repo_id)
    folder = call.server.xet_folder
    if folder is None:
        raise Refusal(404, "Xet is not enabled on this server")
    expires = int(time.time()) + 3600
    address = f"local://{folder}"
    shown = {"casUrl": address, "accessToken": "xet", "exp": expires}
    headers = {
        "X-Xet-Cas-Url": address,
        "X-Xet-Access-Token": "xet",
        "X-Xet-Token-Expiration": str(expires),
    }
    return Reply.json(shown, headers=headers)


def received(server: HubServer, sha256: str) -> str | None:
    """The Xet hash of an object that came through this lane, whose bytes are made an LFS object."""
    if server.xet_folder is None:
        return None
    found = next((file for file in stored(server.xet_folder) if file.sha256 == sha256), None)
    if found is None:
        return None
    path = server.store.lfs_path(sha256)
    if not path.exists():
        _fetch(server.xet_folder, found, path)
    return found.hash


def stored(folder: Path) -> list[XetFile]:
    """Every file that the shards below a folder name."""
    shards = [path.read_bytes() for path in sorted(folder.rglob("shards/*.mdb"))]
    return [file for shard in shards for file in _files(shard)]


def _files(shard: bytes) -> Iterator[XetFile]:
    position = _HEADER
    while shard[position : position + 32] != _END:
        name = shard[position : position + 32]
        flags, segments = struct.unpack_from("<II", shard, position + 32)
        position += _RECORD
        size = 0
        for _ in range(segments):
            (nbytes,) = struct.unpack_from("<I", shard, position + 36)
            size += nbytes
            position += _RECORD
        if flags & _HAS_VERIFICATION:
            position += _RECORD * segments
        sha256 = None
        if flags & _HAS_SHA256:
            sha256 = _text(shard[position : position + 32])
            position += _RECORD
        yield XetFile(sha256=sha256, hash=_text(name), size=size)


def _text(digest: bytes) -> str:
    # Four little-endian words, each printed as a number.
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", digest))


@functools.cache
def works() -> bool:
    """Whether the hf_xet of this environment stores in a folder, in a way known here."""
    if importlib.util.find_spec("hf_xet") is None:
        return False
    with tempfile.TemporaryDirectory() as temporary:
        folder, original, copy = (Path(temporary) / name for name in ("xet", "a", "b"))
        folder.mkdir()
        original.write_bytes(bytes(range(256)) * 1000)
        try:
            _in_a_process(_STORE, f"local://{folder}", str(original))
            (file,) = stored(folder)
            _fetch(folder, file, copy)
        except (subprocess.CalledProcessError, ValueError, OSError, struct.error):
            return False
        return file.sha256 == sha256_of(original) == sha256_of(copy)


def _fetch(folder: Path, file: XetFile, to: Path) -> None:
    # The client's process holds the index's lock: read a copy.
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        shutil.copytree(folder / "xet" / "xorbs", copy / "xet" / "xorbs")
        _in_a_process(_FETCH, f"local://{copy}", file.hash, str(file.size), str(to))


def _in_a_process(code: str, *arguments: str) -> None:
    # hf_xet starts threads that stay, and keeps logs in the client's home.
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-c", code, *arguments]
        environment = os.environ | {"HF_HOME": home}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
