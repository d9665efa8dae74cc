"""Bundles and collections from wherever they are: a local folder, or a Hub id.

A local path comes first. What comes from the Hub lies in its cache afterwards; no byte of it is
used before its SHA-256 held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onebitfmt.bundle import Bundle
from onebitfmt.collection import Collection
from onebitfmt.collection_config import holds_collection
from onebitfmt.errors import HubError, UsageError
from onebitfmt.hub.address import HubId, hub_id, local_path
from onebitfmt.hub.client import DEFAULTS, HubOptions
from onebitfmt.transfer.remote import RemoteCollection, hub_options, with_revision


def open_bundle(
    source: str | Path,
    *,
    groups: Sequence[str] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Bundle:
    """Open a bundle: a folder, or ns/name:expert[@revision] on the Hub.

    A collection of one expert stands for that one. From the Hub, `groups` are the layer groups to
    fetch, by default all; with an empty one the manifest alone. What was fetched before is served,
    too. Raises `FormatError`, `UsageError`, `HubError`.
    """
    options = hub_options(token, cache_dir, local_files_only)
    return open_named_bundle(source, groups=groups, revision=revision, options=options)[1]


def open_named_bundle(
    source: str | Path,
    *,
    groups: Sequence[str] | None = None,
    revision: str | None = None,
    options: HubOptions = DEFAULTS,
) -> tuple[str, Bundle]:
    """As `open_bundle`, with the name of the expert: in its collection, else the bundle's own."""
    address = hub_id(source)
    if address is None:
        _check_no_revision(source, revision)
        return _local_bundle(local_path(source))
    remote = open_remote(with_revision(address, revision), options)
    expert = remote.choose(address.expert)
    remote.fetch(remote.files(expert, groups))
    return expert, remote.collection().bundle(expert)


def open_bundles(
    source: str | Path,
    *,
    groups: Sequence[str] | None = None,
    options: HubOptions = DEFAULTS,
) -> dict[str, Bundle]:
    """The bundles that a source stands for, by name: one, or all of a collection.

    Of several experts, each is asked for those `groups` that it has. Raises as `open_bundle` does.
    """
    address = hub_id(source)
    if address is not None:
        remote = open_remote(address, options)
        experts = remote.expert_names if address.expert is None else (address.expert,)
        fetch_experts(remote, experts, groups)
        collection = remote.collection()
    elif holds_collection(path := local_path(source)):
        collection = Collection.open(path)
        experts = collection.expert_names
    else:
        return dict([_local_bundle(path)])
    return {name: collection.bundle(name) for name in experts}


def open_collection(
    source: str | Path,
    *,
    experts: Sequence[str] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Collection:
    """Open a collection: a folder, or ns/name[@revision] on the Hub.

    From the Hub, `experts` are those to fetch, by default all; with an empty one, config.json and
    router alone. Raises `FormatError`, `UsageError`, `HubError`.
    """
    address = hub_id(source)
    if address is None:
        _check_no_revision(source, revision)
        return Collection.open(local_path(source))
    if address.expert is not None:
        whole = replace(address, expert=None)
        problem = f"give its collection, {whole}, and name the expert apart"
        raise UsageError(f"{source} is one expert; {problem}")
    options = hub_options(token, cache_dir, local_files_only)
    remote = open_remote(with_revision(address, revision), options)
    remote.fetch(remote.router_files())
    fetch_experts(remote, remote.expert_names if experts is None else experts)
    return remote.collection()


def open_remote(address: HubId, options: HubOptions = DEFAULTS) -> RemoteCollection:
    """Open the collection of an id that is no local path. Raises `HubError`."""
    try:
        return RemoteCollection.open(address.repo, address.revision, options)
    except HubError as e:
        if str(address) != address.repo:
            raise
        # It may as well be a mistyped path.
        raise HubError(f"{address}: no such local path; and on the Hub, {e}") from None


def fetch_experts(
    remote: RemoteCollection, experts: Sequence[str], groups: Sequence[str] | None = None
) -> None:
    """Fetch experts whole, or those of `groups` that each has.

    Raises `UsageError`, `HubError`, `FormatError`.
    """
    remote.check_groups(experts, groups or ())
    remote.fetch_manifests(experts)
    files = {}
    for name in experts:
        files.update(remote.files(name, remote.own_groups(name, groups)))
    remote.fetch(files)


def _check_no_revision(source: str | Path, revision: str | None) -> None:
    if revision is not None:
        problem = f"which has no revision {revision!r}; leave it out"
        raise UsageError(f"{source} is a local path, {problem}")


def _local_bundle(path: Path) -> tuple[str, Bundle]:
    if not holds_collection(path):
        bundle = Bundle.open(path)
        return bundle.manifest.expert.name, bundle
    collection = Collection.open(path)
    if len(collection.expert_names) > 1:
        folders = ", ".join(str(path / e.path) for _, e in sorted(collection.experts.items()))
        raise UsageError(f"{path} has several experts; name one of {folders}")
    [name] = collection.expert_names
    return name, collection.bundle(name)
