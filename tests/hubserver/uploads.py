"""The way in: preupload, LFS objects in one piece or in parts, and the commit itself."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tests.hubserver.exchange import KINDS, Call, Reply
from tests.hubserver.store import Change, Entry, Refusal, sha256_of
from tests.hubserver.xet import received


def preupload(call: Call, kind: str, repo_id: str, revision: str) -> Reply:
    """Which way each file has to go, and what is there already under its name."""
    repo = call.writer(kind, repo_id)
    head = repo.resolve(revision)
    ignored = _ignored(call, head.tree)
    files = []
    for asked in call.json()["files"]:
        path = asked["path"]
        lfs = call.server.settings.is_lfs(path, asked["size"])
        mode = "lfs" if lfs else "regular"
        left_out = any(fnmatch(path.rsplit("/", 1)[-1], pattern) for pattern in ignored)
        shown = {"path": path, "uploadMode": mode, "shouldIgnore": left_out}
        if path in head.tree:
            shown["oid"] = head.tree[path].etag
        files.append(shown)
    return Reply.json({"files": files, "commitOid": head.sha})


def _ignored(call: Call, tree: Mapping[str, Entry]) -> list[str]:
    """The lines of the repository's own .gitignore: plain names and patterns of names."""
    if ".gitignore" not in tree:
        return []
    return call.server.store.path(tree[".gitignore"]).read_text("utf-8").split()


def batch(call: Call, kind: str | None, repo_id: str) -> Reply:
    """Where to send each LFS object; nowhere if it is here already."""
    call.writer(kind or "models", repo_id)
    verify = f"{call.server.url}/{repo_id}.git/info/lfs/objects/verify"
    objects = []
    for asked in call.json()["objects"]:
        shown = {"oid": asked["oid"], "size": asked["size"]}
        if not call.server.store.lfs_path(asked["oid"]).exists():
            upload = _destination(call, asked["oid"], asked["size"])
            shown["actions"] = {"upload": upload, "verify": {"href": verify, "header": {}}}
        objects.append(shown)
    return Reply.json(
        {"transfer": "basic", "objects": objects}, content_type="application/vnd.git-lfs+json"
    )


def _destination(call: Call, sha256: str, size: int) -> dict[str, Any]:
    url, signed = call.server.url, call.server.signature
    part_size = call.server.settings.part_size
    if part_size is None or size <= part_size:
        return {"href": f"{url}/_lfs/put/{sha256}?{signed}", "header": {}}
    # One object may be sent twice at once, as two files of the same content.
    upload = os.urandom(6).hex()
    call.server.uploads[upload] = sha256
    header = {"chunk_size": str(part_size)}
    for number in range(1, math.ceil(size / part_size) + 1):
        header[str(number)] = f"{url}/_lfs/part/{upload}/{number}?{signed}"
    return {"href": f"{url}/_lfs/complete/{upload}?{signed}", "header": header}


def put(call: Call, sha256: str) -> Reply:
    """Receive an LFS object in one piece; what is not of that sha256 is refused."""
    _must_be_signed(call)
    temporary = _received(call)
    if sha256_of(temporary) != sha256:
        temporary.unlink()
        raise Refusal(400, "The object does not have the sha256 that it was announced with")
    temporary.replace(call.server.store.lfs_path(sha256))
    return Reply(headers={"ETag": f'"{sha256}"'})


def put_part(call: Call, upload: str, number: str) -> Reply:
    """Receive one part of an LFS object."""
    _must_be_signed(call)
    temporary = _received(call)
    etag = sha256_of(temporary)[:32]
    temporary.replace(_part(call, upload, int(number)))
    return Reply(headers={"ETag": f'"{etag}"'})


def complete(call: Call, upload: str) -> Reply:
    """Put the parts of an LFS object together."""
    _must_be_signed(call)
    sha256 = call.server.uploads.get(upload)
    if sha256 is None:
        raise Refusal(404, "No such upload")
    whole = call.server.store.temporary()
    digest = hashlib.sha256()
    with whole.open("wb") as out:
        for part in call.json()["parts"]:
            path = _part(call, upload, part["partNumber"])
            data = path.read_bytes()
            path.unlink()
            digest.update(data)
            out.write(data)
    if digest.hexdigest() != sha256:
        whole.unlink()
        raise Refusal(400, "The parts do not make the object that was announced")
    whole.replace(call.server.store.lfs_path(sha256))
    return Reply.json({"success": True})


def verify(call: Call, kind: str | None, repo_id: str) -> Reply:
    """Whether an LFS object has arrived."""
    asked = call.json()
    path = call.server.store.lfs_path(asked["oid"])
    if not path.exists() or path.stat().st_size != asked["size"]:
        raise Refusal(404, "The object has not arrived")
    return Reply.json({})


def commit(call: Call, kind: str, repo_id: str, revision: str) -> Reply:
    """Add one commit, of many files, to a branch or to a new pull request."""
    repo = call.writer(kind, repo_id)
    header, change = _change(call)
    store, pull = call.server.store, None
    with store.lock:
        if call.asked("create_pr"):
            pull = repo.pull_request(header.get("parentCommit") or revision)
            revision = f"refs/pr/{pull}"
        added = store.commit(
            repo,
            revision,
            change,
            title=header.get("summary", ""),
            description=header.get("description", ""),
            parent=header.get("parentCommit"),
        )
    prefix = "" if KINDS[kind] == "model" else f"{kind}/"
    page = f"{call.server.url}/{prefix}{repo_id}"
    shown = {
        "success": True,
        "commitOid": added.sha,
        "commitUrl": f"{page}/commit/{added.sha}",
        "hookOutput": "",
    }
    if pull:
        shown["pullRequestUrl"] = f"{page}/discussions/{pull}"
    return Reply.json(shown)


def _change(call: Call) -> tuple[dict[str, Any], Change]:
    header: dict[str, Any] = {}
    add: list[Entry] = []
    delete: list[str] = []
    folders: list[str] = []
    for line in call.body.read().splitlines():
        item = json.loads(line)
        value = item["value"]
        match item["key"]:
            case "header":
                header = value
            case "file":
                data = base64.b64decode(value["content"])
                add.append(call.server.store.add_blob(value["path"], data))
            case "lfsFile":
                add.append(_lfs_entry(call, value["path"], value["oid"]))
            case "deletedFile":
                delete.append(value["path"])
            case "deletedFolder":
                folders.append(value["path"])
            case key:
                raise Refusal(400, f"Unknown operation: {key}")
    return header, Change(add=tuple(add), delete=tuple(delete), delete_folders=tuple(folders))


def _lfs_entry(call: Call, path: str, sha256: str) -> Entry:
    xet = received(call.server, sha256)
    return call.server.store.lfs_entry(path, sha256, xet)


def _received(call: Call) -> Path:
    temporary = call.server.store.temporary()
    try:
        with temporary.open("wb") as file:
            for block in call.body.blocks():
                file.write(block)
    except BaseException:
        temporary.unlink()
        raise
    return temporary


def _part(call: Call, upload: str, number: int) -> Path:
    return call.server.store.root / "parts" / f"{upload}-{number}"


def _must_be_signed(call: Call) -> None:
    # As with a bucket's presigned URL: the query is the right to write, and a token is not.
    if call.query != call.server.signature or "Authorization" in call.headers:
        raise Refusal(403, "Request has expired or is not signed")
