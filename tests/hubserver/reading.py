"""The way out: what a commit holds, and the bytes of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from tests.hubserver.card_rules import metadata
from tests.hubserver.exchange import Call, Reply, Slice
from tests.hubserver.store import Entry, Refusal, Repo, git_oid, pointer

_TRUE = ("true", "1", "True")


def info(call: Call, kind: str, repo_id: str, revision: str = "main") -> Reply:
    """A repository at a revision: its commit, its files and what its card says."""
    repo = call.reader(kind, repo_id)
    commit = repo.resolve(revision)
    blobs = call.asked("blobs") in _TRUE
    card = _card(call, commit.tree)
    return Reply.json(
        {
            "_id": "0",
            "id": repo_id,
            "modelId": repo_id,
            "author": repo_id.split("/")[0],
            "sha": commit.sha,
            "private": repo.private,
            "gated": "auto" if repo.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": card.get("tags", []),
            "library_name": card.get("library_name"),
            "pipeline_tag": card.get("pipeline_tag"),
            "cardData": card,
            "lastModified": commit.date,
            "createdAt": repo.created,
            "siblings": [_sibling(commit.tree[path], blobs) for path in sorted(commit.tree)],
        }
    )


def _sibling(entry: Entry, blobs: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"rfilename": entry.path}
    if blobs:
        shown |= {"size": entry.size, "blobId": entry.oid}
        if entry.sha256:
            shown["lfs"] = {
                "sha256": entry.sha256,
                "size": entry.size,
                "pointerSize": entry.pointer_size,
            }
    return shown


def _card(call: Call, tree: Mapping[str, Entry]) -> dict[str, Any]:
    if "README.md" not in tree:
        return {}
    text = call.server.store.path(tree["README.md"]).read_text(encoding="utf-8")
    return metadata(text)


def tree(call: Call, kind: str, repo_id: str, revision: str, folder: str | None = None) -> Reply:
    """The files and folders in a folder, or in all folders below it; in pages."""
    repo = call.reader(kind, repo_id)
    files = repo.resolve(revision).tree
    prefix = folder.strip("/") + "/" if folder and folder.strip("/") else ""
    shown = _listing(files, prefix, recursive=call.asked("recursive") in _TRUE)
    if prefix and not shown:
        raise Refusal(404, f'{folder} does not exist on "{revision}"', "EntryNotFound")
    start = int(call.asked("cursor") or 0)
    stop = start + call.server.settings.page_size
    headers = {}
    if stop < len(shown):
        headers["Link"] = f'<{_next_page(call, kind, repo_id, revision, prefix, stop)}>; rel="next"'
    return Reply.json(shown[start:stop], headers=headers)


def _listing(files: Mapping[str, Entry], prefix: str, *, recursive: bool) -> list[dict[str, Any]]:
    folders: dict[str, None] = {}
    shown = []
    for path in sorted(files):
        if not path.startswith(prefix):
            continue
        *parents, _ = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parents) + 1 if recursive else min(len(parents), 1) + 1):
            folders[prefix + "/".join(parents[:depth])] = None
        if recursive or not parents:
            shown.append(files[path].listed())
    return [_folder(path) for path in folders] + shown


def _folder(path: str) -> dict[str, Any]:
    oid = git_oid(path.encode(), "tree")
    return {"type": "directory", "path": path, "size": 0, "oid": oid}


def _next_page(call: Call, kind: str, repo_id: str, revision: str, prefix: str, cursor: int) -> str:
    query = {name: values[-1] for name, values in parse_qs(call.query).items()}
    query["cursor"] = str(cursor)
    path = f"/api/{kind}/{repo_id}/tree/{quote(revision, safe='')}/{quote(prefix)}"
    return f"{call.server.url}{path.rstrip('/')}?{urlencode(query)}"


def paths_info(call: Call, kind: str, repo_id: str, revision: str) -> Reply:
    """What some paths are; those that do not exist are left out."""
    body = call.body.read()
    if "json" in call.headers.get("Content-Type", ""):
        paths = json.loads(body)["paths"]
    else:
        paths = parse_qs(body.decode()).get("paths", [])
    files = call.reader(kind, repo_id).resolve(revision).tree
    names: Sequence[str] = [paths] if isinstance(paths, str) else paths
    shown = []
    for name in names:
        if name in files:
            shown.append(files[name].listed())
        elif any(path.startswith(name.rstrip("/") + "/") for path in files):
            shown.append(_folder(name))
    return Reply.json(shown)


def resolve(call: Call, kind: str | None, repo_id: str, revision: str, path: str) -> Reply:
    """A file's bytes, or where the CDN has them."""
    repo = call.reader(kind or "models", repo_id)
    _must_have_access(call, repo)
    commit = repo.resolve(revision)
    entry = commit.tree.get(path)
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    if entry is None:
        return Reply.refused(Refusal(404, "Entry not found", "EntryNotFound"), headers)
    stored = call.server.store.path(entry)
    headers["ETag"] = f'"{entry.etag}"'
    if entry.sha256:
        headers |= {"X-Linked-Etag": f'"{entry.etag}"', "X-Linked-Size": str(entry.size)}
        if entry.xet:
            route = f"/api/{kind or 'models'}/{repo_id}/xet-read-token/{commit.sha}"
            headers |= {
                "X-Xet-Hash": entry.xet,
                "X-Xet-Refresh-Route": call.server.url + route,
            }
        if call.server.settings.cdn:
            location = f"{call.server.cdn_url}/_cdn/{entry.sha256}?{call.server.signature}"
            return Reply(status=302, headers=headers | {"Location": location})
    return _file(call, stored, headers)


def raw(call: Call, kind: str | None, repo_id: str, revision: str, path: str) -> Reply:
    """What git holds of a file: of an LFS file, its pointer."""
    repo = call.reader(kind or "models", repo_id)
    _must_have_access(call, repo)
    entry = repo.resolve(revision).tree.get(path)
    if entry is None:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    if entry.sha256:
        return Reply(body=pointer(entry.sha256, entry.size), content_type="text/plain")
    return _file(call, call.server.store.path(entry), {"ETag": f'"{entry.oid}"'})


def cdn(call: Call, sha256: str) -> Reply:
    """An LFS object, for who holds a signed address."""
    path = call.server.store.lfs_path(sha256)
    if call.query != call.server.signature or "Authorization" in call.headers:
        raise Refusal(403, "Request has expired or is not signed")
    if not path.exists():
        raise Refusal(404, "No such object")
    return _file(call, path, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})


def _must_have_access(call: Call, repo: Repo) -> None:
    if not repo.gated:
        return
    account = call.account()
    if account is None:
        message = f"Access to model {repo.id} is restricted. You must have access to it and be "
        message += "authenticated to access it. Please log in."
        raise Refusal(401, message, "GatedRepo")
    if not account.member and account.name not in repo.granted:
        message = f"Access to model {repo.id} is restricted and you are not in the authorized list."
        raise Refusal(403, message, "GatedRepo")


def _file(call: Call, path: Path, headers: Mapping[str, str]) -> Reply:
    size = path.stat().st_size
    try:
        asked = call.range(size)
    except Refusal as refusal:
        return Reply.refused(refusal, {"Content-Range": f"bytes */{size}"})
    if asked is None:
        return Reply(body=Slice(path=path, start=0, stop=size), headers=headers)
    start, stop = asked
    return Reply(
        status=206,
        body=Slice(path=path, start=start, stop=stop),
        headers={**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"},
    )
