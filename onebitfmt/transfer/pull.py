"""Fetch a collection, an expert or some of its layer groups from the Hub: exactly those files."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from onebitfmt.collection import ROUTER, Collection, is_collection
from onebitfmt.collection_config import CONFIG, EXPERTS, bundle_path
from onebitfmt.container import sha256
from onebitfmt.errors import OutputError, UsageError
from onebitfmt.format.manifest import EXPERT_FOLDER, FileEntry
from onebitfmt.format.manifest_json import load
from onebitfmt.hub.address import HubId, local_path, parse_hub_id
from onebitfmt.hub.snapshot import Preview, Snapshot
from onebitfmt.parallel import Workers
from onebitfmt.transfer.offer import README
from onebitfmt.transfer.remote import (
    RemoteCollection,
    fetch_checked,
    hub_options,
    no_bars,
    own_bars,
    with_revision,
)

# Says from which repository a folder was pulled.
_ORIGIN: Final = Path(".cache", "onebitfmt", "repo")
_MAX_README_BYTES: Final = 16 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class PulledFile:
    """A file by its path in the repository, and its bytes; `cached` where it was here before."""

    path: str
    nbytes: int
    cached: bool

    @staticmethod
    def of(preview: Preview) -> PulledFile:
        """The file of a preview."""
        return PulledFile(path=preview.path, nbytes=preview.nbytes, cached=preview.cached)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulled:
    """What a pull fetched, or would fetch; `path` is the bundle's folder, else the collection's.

    `missing` has for each of `experts` that is not complete the layer groups that are not here,
    and `expert/` where small files are not.
    """

    path: Path
    repo: str
    commit: str
    experts: tuple[str, ...]
    files: tuple[PulledFile, ...]
    missing: Mapping[str, tuple[str, ...]]

    @property
    def fetched(self) -> tuple[PulledFile, ...]:
        """The files that were not here before."""
        return tuple(file for file in self.files if not file.cached)


def pull(
    source: str,
    *,
    groups: Sequence[str] | None = None,
    local_dir: str | Path | None = None,
    force_download: bool = False,
    dry_run: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Pulled:
    """Fetch ns/name[:expert][@revision]: the whole collection, or one expert.

    With `groups`, only manifests and the files of these layer groups; a later pull completes what
    is there. Files lie in the Hub's cache, or as plain files in `local_dir`, where those of an
    earlier commit are removed. Every file's SHA-256 is checked before this returns. A `dry_run`
    moves manifests alone. Safe to repeat after any interruption. Raises `UsageError`, `HubError`,
    `FormatError`, `OutputError`.
    """
    address = _address(source, revision)
    folder = None if local_dir is None else _own_folder(local_path(local_dir), address.repo)
    options = hub_options(token, cache_dir, local_files_only)
    remote = RemoteCollection.open(address.repo, address.revision, options, force=force_download)
    experts = remote.expert_names if address.expert is None else (address.expert,)
    remote.check_groups(experts, groups or ())
    manifests = _manifests(remote, experts, dry_run=dry_run)
    target = remote.snapshot if folder is None else _into(folder, remote.snapshot)
    payload = _payload(remote, experts, groups)
    whole = address.expert is None and groups is None
    if whole:
        payload.update(remote.router_files())
    previews = [*manifests, *_previews(target, payload)]
    readme = _readme(remote, target) if whole else []
    if not dry_run:
        if folder is not None:
            _check_unchanged(target, remote, payload)
            _make_way(target, remote, experts)
        _fetch(target, remote, experts, payload, readme)
    return Pulled(
        path=target.folder / (bundle_path(address.expert) if address.expert else ""),
        repo=target.repo,
        commit=target.commit,
        experts=experts,
        files=tuple(PulledFile.of(preview) for preview in (*previews, *readme)),
        missing=_missing(remote, experts, target.folder, payload if dry_run else ()),
    )


def _address(source: str, revision: str | None) -> HubId:
    address = parse_hub_id(source)
    if address is None:
        raise UsageError(f"{source} is not an id on the Hub: ns/name[:expert][@revision]")
    return with_revision(address, revision)


def _own_folder(path: Path, repo: str) -> Path:
    """A folder to pull into: new, empty, or of an earlier pull of `repo`. Raises `OutputError`."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file; pull into a folder")
    if path.is_dir() and any(path.iterdir()):
        other = (path / CONFIG).is_file() and not is_collection(path)
        origin = path / _ORIGIN
        before = origin.read_text("utf-8") if origin.is_file() else None
        if before not in (None, repo):
            raise OutputError(f"{path} was pulled from {before}; pull into another folder")
        if other or before is None:
            raise OutputError(
                f"{path} is not empty, and no pull made it; pull into another folder, so that "
                "nothing of yours is overwritten"
            )
    return path


# --- what to fetch -------------------------------------------------------------------------------


def _into(folder: Path, snapshot: Snapshot) -> Snapshot:
    """The same commit, for plain files in a folder."""
    return Snapshot.open(
        snapshot.repo, snapshot.commit, snapshot.options, local_dir=folder, force=snapshot.force
    )


def _manifests(remote: RemoteCollection, experts: Sequence[str], *, dry_run: bool) -> list[Preview]:
    """Fetch config.json and manifests; tells which of them were here before.

    After a dry run they are here: a pull finds them.
    """
    config = remote.config_files()[CONFIG]
    first = Preview(path=CONFIG, nbytes=config.size, cached=remote.config_cached)
    with no_bars():
        previews = remote.snapshot.preview([remote.manifest_path(name) for name in experts])
    remote.fetch_manifests(experts)
    if not dry_run or remote.snapshot.force:
        return [first, *previews]
    return [replace(preview, cached=True) for preview in (first, *previews)]


def _payload(
    remote: RemoteCollection, experts: Sequence[str], groups: Sequence[str] | None
) -> dict[str, FileEntry]:
    files: dict[str, FileEntry] = {}
    for name in experts:
        files.update(remote.files(name, remote.own_groups(name, groups)))
        del files[remote.manifest_path(name)]
    return files


def _previews(target: Snapshot, payload: Mapping[str, FileEntry]) -> list[Preview]:
    with no_bars():
        previews = target.preview(payload)
    if target.local_dir is None or target.force:
        return previews
    # Files of an earlier commit that did not change are here, too.
    asked = {file.path: payload[file.path] for file in previews if not file.cached}
    same = set(_unchanged(target.local_dir, asked))
    return [replace(file, cached=file.cached or file.path in same) for file in previews]


def _readme(remote: RemoteCollection, target: Snapshot) -> list[Preview]:
    # What the user wrote there stays.
    if not remote.snapshot.listed(README) or target.edited(README):
        return []
    with no_bars():
        return target.preview([README])


# --- fetching ------------------------------------------------------------------------------------


def _fetch(
    target: Snapshot,
    remote: RemoteCollection,
    experts: Iterable[str],
    payload: Mapping[str, FileEntry],
    readme: Sequence[Preview],
) -> None:
    with own_bars():
        limits = {path: file.size for path, file in payload.items()}
        names = [file.path for file in readme]
        target.fetch([*payload, *names], {**limits, **dict.fromkeys(names, _MAX_README_BYTES)})
    target.check({path: file.sha256 for path, file in payload.items()})
    for file in readme:
        target.check_listed(file.path)
    # In a folder, manifests come last: without them nothing half fetched can be opened.
    with no_bars():
        paths = {remote.manifest_path(name): name for name in experts}
        fetch_checked(target, {path: remote.files(n, ())[path] for path, n in paths.items()})
        fetch_checked(target, remote.config_files())
    collection = Collection.open(target.folder)
    for name in experts:
        collection.bundle(name)


def _check_unchanged(
    target: Snapshot, remote: RemoteCollection, payload: Mapping[str, FileEntry]
) -> None:
    """Refuse to overwrite or remove what somebody changed. Raises `OutputError`."""
    if target.force:
        return
    wanted = {ROUTER: None, **remote.config_files(), **payload}
    for path, file in wanted.items():
        if target.edited(path) and (file is None or sha256(target.folder / path) != file.sha256):
            raise OutputError(
                f"{target.folder / path} is not as it was pulled; move it away, pull into another "
                "folder, or overwrite it with --force-download"
            )


def _make_way(target: Snapshot, remote: RemoteCollection, experts: Sequence[str]) -> None:
    """Remove what is left of another commit, manifests first: no mixture can be opened."""
    folder = target.folder
    (folder / _ORIGIN).parent.mkdir(parents=True, exist_ok=True)
    (folder / _ORIGIN).write_text(target.repo, "utf-8")
    _unless(folder / CONFIG, remote.config_files()[CONFIG].sha256)
    router = remote.config.router
    _unless(folder / ROUTER, router.sha256 if router else None)
    keep: set[str] = set()
    for name, entry in remote.config.experts.items():
        path = remote.manifest_path(name)
        _unless(folder / path, entry.sha256)
        if (folder / path).is_file():
            listed = load((folder / path).read_bytes(), path).files
            keep.update((path, *(f"{entry.path}/{file}" for file in listed)))
        elif name in experts:
            files = {f"{entry.path}/{f}": e for f, e in remote.manifest(name).files.items()}
            keep.update(_unchanged(folder, files))
    target.remove_stale(EXPERTS, keep)


def _unchanged(folder: Path, files: Mapping[str, FileEntry]) -> list[str]:
    here = [path for path in files if (folder / path).is_file()]
    with Workers() as workers:
        digests = workers.map(lambda path: sha256(folder / path), here)
        return [p for p, d in zip(here, digests, strict=True) if d == files[p].sha256]


def _unless(path: Path, digest: str | None) -> None:
    """Remove a file of another SHA-256."""
    if path.is_file() and (digest is None or sha256(path) != digest):
        path.unlink()


def _missing(
    remote: RemoteCollection, experts: Iterable[str], folder: Path, planned: Container[str]
) -> dict[str, tuple[str, ...]]:
    missing: dict[str, tuple[str, ...]] = {}
    for name in experts:
        manifest, parent = remote.manifest(name), remote.entry(name).path
        gone = {
            file
            for file in manifest.files
            if f"{parent}/{file}" not in planned and not (folder / parent / file).is_file()
        }
        parts = [group.name for group in manifest.groups if not gone.isdisjoint(group.files)]
        if any(file.startswith(EXPERT_FOLDER) for file in gone):
            parts.append(EXPERT_FOLDER)
        if parts:
            missing[name] = tuple(parts)
    return missing
