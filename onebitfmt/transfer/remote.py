"""A collection in a Hub repository: which files belong to what, and how to get just those.

config.json is the root of trust: it has the SHA-256 of every manifest, and a manifest has that of
every file of its bundle. Both are small and come through the Hub's cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from onebitfmt.collection import ROUTER, Collection
from onebitfmt.collection_config import (
    CONFIG,
    MAX_CONFIG_BYTES,
    Config,
    ExpertEntry,
    load_config,
)
from onebitfmt.errors import FormatError, HubError, UnsupportedError, UsageError
from onebitfmt.format.limits import MAX_MANIFEST_BYTES
from onebitfmt.format.manifest import FILE_NAME, FileEntry, Manifest
from onebitfmt.format.manifest_json import load
from onebitfmt.hub.address import HubId, local_path
from onebitfmt.hub.client import DEFAULTS, HubOptions
from onebitfmt.hub.snapshot import Snapshot

_PUBLISH: Final = "publish one with: obd push DIR ns/name"


@dataclass(kw_only=True)
class RemoteCollection:
    """A collection at one commit of a repository; of its files only config.json has been read.

    `config_cached` is False where config.json was downloaded just now.
    """

    snapshot: Snapshot
    config: Config
    config_cached: bool = True
    _manifests: dict[str, Manifest] = field(default_factory=dict, repr=False)

    @staticmethod
    def open(
        repo: str,
        revision: str | None = None,
        options: HubOptions = DEFAULTS,
        *,
        force: bool = False,
    ) -> RemoteCollection:
        """Resolve the revision, once, and read config.json. Raises `HubError`."""
        snapshot = Snapshot.open(repo, revision, options, force=force)
        file = snapshot.folder / CONFIG
        cached = file.is_file() and not force
        try:
            with no_bars():
                snapshot.fetch([CONFIG], {CONFIG: MAX_CONFIG_BYTES})
            snapshot.check_listed(CONFIG)
            config = load_config(file.read_bytes(), f"{snapshot}/{CONFIG}")
        except UnsupportedError:
            raise
        except FormatError as e:
            raise HubError(f"{snapshot} is not a collection ({e.problem}); {_PUBLISH}") from None
        except HubError as e:
            if snapshot.listed(CONFIG) is False:
                raise HubError(f"{e}, so it is not a collection; {_PUBLISH}") from None
            raise
        return RemoteCollection(snapshot=snapshot, config=config, config_cached=cached)

    def __str__(self) -> str:
        """The repository and its commit."""
        return str(self.snapshot)

    @property
    def expert_names(self) -> tuple[str, ...]:
        """The names of the experts, sorted."""
        return tuple(sorted(self.config.experts))

    def entry(self, expert: str) -> ExpertEntry:
        """What config.json says of an expert. Raises `UsageError` for an unknown name."""
        if expert not in self.config.experts:
            known = ", ".join(self.expert_names)
            repo = self.snapshot.repo
            raise UsageError(f"{repo}: no expert {expert!r}; the experts are {known}")
        return self.config.experts[expert]

    def choose(self, expert: str | None) -> str:
        """The expert that is named, else the only one. Raises `UsageError` where there are more."""
        if expert is None and len(self.config.experts) > 1:
            repo = self.snapshot.repo
            ids = ", ".join(f"{repo}:{name}" for name in self.expert_names)
            raise UsageError(f"{repo} has several experts; name one of {ids}")
        name = self.expert_names[0] if expert is None else expert
        self.entry(name)
        return name

    def manifest_path(self, expert: str) -> str:
        """Where an expert's manifest lies in the repository."""
        return f"{self.entry(expert).path}/{FILE_NAME}"

    def manifest(self, expert: str) -> Manifest:
        """An expert's manifest, checked against config.json.

        Raises `UsageError`, `HubError`, `FormatError`.
        """
        self.fetch_manifests([expert])
        return self._manifests[expert]

    def fetch_manifests(self, experts: Iterable[str]) -> None:
        """Fetch the manifests of several experts at once; raises as `manifest` does."""
        paths = {n: self.manifest_path(n) for n in experts if n not in self._manifests}
        with no_bars():
            self.snapshot.fetch(paths.values(), dict.fromkeys(paths.values(), MAX_MANIFEST_BYTES))
        self.snapshot.check({path: self.entry(name).sha256 for name, path in paths.items()})
        for name, path in paths.items():
            data = (self.snapshot.folder / path).read_bytes()
            self._manifests[name] = load(data, f"{self}/{path}")

    def files(self, expert: str, groups: Sequence[str] | None = None) -> dict[str, FileEntry]:
        """The manifest and files of an expert, by their path in the repository.

        With `groups`, the files of these layer groups alone. Raises `UsageError` for an unknown
        group, else as `manifest` does.
        """
        entry = self.entry(expert)
        self.check_groups([expert], groups or ())
        manifest = self.manifest(expert)
        wanted: Iterable[str] = manifest.files
        if groups is not None:
            wanted = [f for g in manifest.groups if g.name in groups for f in g.files]
        path = self.manifest_path(expert)
        size = (self.snapshot.folder / path).stat().st_size
        return {
            path: FileEntry(size=size, sha256=entry.sha256),
            **{f"{entry.path}/{f}": manifest.files[f] for f in wanted},
        }

    def check_groups(self, experts: Iterable[str], groups: Iterable[str]) -> None:
        """See that each group is one of these experts'. Raises `UsageError`."""
        known = dict.fromkeys(g.name for name in experts for g in self.entry(name).groups)
        if unknown := [group for group in groups if group not in known]:
            repo = self.snapshot.repo
            raise UsageError(
                f"{repo}: no layer group {unknown[0]!r}; the groups are {', '.join(known)}"
            )

    def own_groups(self, expert: str, groups: Sequence[str] | None) -> list[str] | None:
        """Those of the groups that an expert has; None stands for all of it."""
        if groups is None:
            return None
        own = {group.name for group in self.entry(expert).groups}
        return [group for group in groups if group in own]

    def router_files(self) -> dict[str, FileEntry]:
        """The router's file, where there is a router."""
        router = self.config.router
        return {ROUTER: FileEntry(size=router.nbytes, sha256=router.sha256)} if router else {}

    def config_files(self) -> dict[str, FileEntry]:
        """config.json as it has been read."""
        data = (self.snapshot.folder / CONFIG).read_bytes()
        return {CONFIG: FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())}

    def fetch(self, files: Mapping[str, FileEntry]) -> None:
        """Fetch files and check their SHA-256; a wrong one is removed. Raises `HubError`."""
        fetch_checked(self.snapshot, files)

    def collection(self) -> Collection:
        """The collection of what has been fetched."""
        return Collection.open(self.snapshot.folder)


def fetch_checked(snapshot: Snapshot, files: Mapping[str, FileEntry]) -> None:
    """Fetch files of a snapshot and check their SHA-256; a wrong one is removed.

    Raises `HubError`.
    """
    with own_bars():
        snapshot.fetch(files, {path: file.size for path, file in files.items()})
    snapshot.check({path: file.sha256 for path, file in files.items()})


@contextmanager
def no_bars() -> Iterator[None]:
    """The Hub's client draws no progress bars: for small files, and for questions."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    # What the environment says counts, and trying to overrule it warns.
    free = constants.HF_HUB_DISABLE_PROGRESS_BARS is None
    with disable_progress_bars() if free else nullcontext():
        yield


@contextmanager
def own_bars() -> Iterator[None]:
    """Bars that the Hub's client leaves open are closed here: else they are drawn at the end."""
    from huggingface_hub.utils.tqdm import tqdm

    before = list(getattr(tqdm, "_instances", ()))
    try:
        yield
    finally:
        for bar in list(getattr(tqdm, "_instances", ())):
            # All kinds of bars of the process are in the same set.
            if isinstance(bar, tqdm) and bar not in before:
                bar.close()


def with_revision(address: HubId, revision: str | None) -> HubId:
    """The id at a revision that is given besides it. Raises `UsageError` where the two differ."""
    if revision is None or revision == address.revision:
        return address
    if address.revision is not None:
        raise UsageError(f"{address} names a revision, and {revision!r} is another; give one")
    return replace(address, revision=revision)


def hub_options(
    token: str | bool | None, cache_dir: str | Path | None, local_files_only: bool
) -> HubOptions:
    """How to reach the Hub, from the options that all functions take."""
    folder = None if cache_dir is None else local_path(cache_dir)
    return HubOptions(token=token, cache_dir=folder, local_files_only=local_files_only)
