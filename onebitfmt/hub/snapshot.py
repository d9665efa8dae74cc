"""One commit of a Hub repository: fetch exactly the files named, and check them."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

from onebitfmt.container import sha256
from onebitfmt.errors import HubError, UsageError
from onebitfmt.hub.address import local_path
from onebitfmt.hub.client import DEFAULTS, HubOptions, explained, hub_api
from onebitfmt.hub.failures import download_step
from onebitfmt.hub.interrupt import interruptible
from onebitfmt.hub.places import Places, git_names, pointer_name
from onebitfmt.parallel import Workers

R = TypeVar("R")

# Failures of the Hub that pass, and the seconds before each further try.
_PASSING: Final = frozenset({500, 502, 503, 504})
_PAUSES: Final = (1.0, 2.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """A file of a repository, its bytes, and whether it is here already."""

    path: str
    nbytes: int
    cached: bool


@dataclass(kw_only=True)
class Snapshot:
    """One commit of a repository, read through the Hub cache, or into a folder of its own.

    With `force` each file is downloaded anew, once.
    """

    repo: str
    commit: str
    options: HubOptions
    local_dir: Path | None = None
    force: bool = False
    _renewed: set[str] = field(default_factory=set, init=False, repr=False)

    @staticmethod
    def open(
        repo: str,
        revision: str | None = None,
        options: HubOptions = DEFAULTS,
        *,
        local_dir: Path | None = None,
        force: bool = False,
    ) -> Snapshot:
        """Resolve a branch, tag or commit, once: all that follows is of that commit.

        Where the Hub cannot be reached, it is the commit of the last time. Raises `HubError`, and
        `UsageError` for `force` where nothing may be downloaded.
        """
        if force and options.offline:
            raise UsageError(f"{repo}: offline, nothing is downloaded anew; {download_step()}")
        with explained(repo, revision):
            found = hub_api(options).resolve_revision(
                repo,
                revision=revision,
                cache_dir=options.cache_dir,
                local_files_only=options.offline,
            )
        folder = None if local_dir is None else local_path(local_dir).resolve()
        return Snapshot(
            repo=repo, commit=found.resolved, options=options, local_dir=folder, force=force
        )

    def __str__(self) -> str:
        """The id of the commit."""
        return f"{self.repo}@{self.commit}"

    @property
    def folder(self) -> Path:
        """Where the files lie: a folder of the cache, or `local_dir`."""
        return self._places.folder

    def listed(self, name: str) -> bool | None:
        """Whether the commit has the file; None before the first download brought its listing."""
        listing = self._places.listing()
        return None if listing is None else name in listing

    @cached_property
    def _places(self) -> Places:
        from huggingface_hub import constants

        cache = local_path(self.options.cache_dir or constants.HF_HUB_CACHE).resolve()
        return Places(repo=self.repo, commit=self.commit, cache_dir=cache, local_dir=self.local_dir)

    def edited(self, name: str) -> bool:
        """True for a file of `local_dir` that is not as a download put it there."""
        return self._places.edited(name)

    # --- fetching --------------------------------------------------------------------------------

    def fetch(self, names: Iterable[str], limits: Mapping[str, int] = MappingProxyType({})) -> None:
        """Download exactly these files; no request is made where the cache has them all.

        Files that are larger than their limit are refused before a byte moves. Raises `HubError`,
        also where the commit lacks a file.
        """
        wanted = [name for name in self._plain(names) if self._needs(name)]
        if wanted and not self.options.offline:
            self._check_sizes({name: limits[name] for name in wanted if name in limits})
            self._download([glob.escape(name) for name in wanted], None)
        self._see(wanted)
        self._renewed.update(wanted)

    def _check_sizes(self, limits: Mapping[str, int]) -> None:
        if not limits:
            return
        listing = self._places.listing()
        if listing is None:
            self._download([], None)  # Brings the listing alone.
            listing = self._places.listing() or {}
        for name, limit in limits.items():
            if name in listing and listing[name].size > limit:
                raise HubError(
                    f"{self}: {name} has {listing[name].size} bytes, more than the {limit} that it "
                    "may have; nothing was downloaded: tell the owner"
                )

    def fetch_matching(self, allow: list[str], ignore: list[str]) -> Path:
        """Download the files that match `allow` but not `ignore`, in which * crosses slashes.

        Gives `folder`. Raises `HubError`.
        """
        self._download(allow, ignore)
        return self.folder

    def preview(self, names: Iterable[str]) -> list[Preview]:
        """What a fetch of these files would download; none of their bytes move.

        Raises `HubError`, also where the commit lacks one.
        """
        wanted = self._plain(names)
        here = {name for name in wanted if not self._must_renew(name) and self._places.holds(name)}
        asked = [name for name in wanted if name not in here]
        if asked and self.options.offline:
            self._see(asked)
        known = {p.path: p for p in self._dry_run(asked)} if asked else {}
        for name in asked:
            if name not in known:
                raise HubError(self._lacks(name))
        return [known[name] if name in known else self._seen(name) for name in wanted]

    def _plain(self, names: Iterable[str]) -> list[str]:
        found = list(dict.fromkeys(names))
        for name in found:
            self._places.path(name)
        return found

    def _must_renew(self, name: str) -> bool:
        return self.force and name not in self._renewed

    def _needs(self, name: str) -> bool:
        # In a folder of its own the client finds, without a request, what was edited since.
        if self.local_dir is not None and name not in self._renewed:
            return True
        return self._must_renew(name) or not self._places.holds(name)

    def _see(self, names: Iterable[str]) -> None:
        for name in names:
            if not self._places.holds(name):
                raise HubError(self._missing(name))

    def _seen(self, name: str) -> Preview:
        size = self._places.path(name).stat().st_size
        return Preview(path=name, nbytes=size, cached=True)

    def _download(self, allow: list[str], ignore: list[str] | None) -> None:
        self._call(
            lambda: hub_api(self.options).snapshot_download(
                self.repo,
                revision=self.commit,
                cache_dir=self.options.cache_dir,
                local_dir=self.local_dir,
                allow_patterns=allow,
                ignore_patterns=ignore,
                force_download=self.force,
                local_files_only=self.options.offline,
            )
        )

    def _dry_run(self, names: list[str]) -> list[Preview]:
        # Of the cache, also for a folder of its own, in which a dry run would make folders.
        found = self._call(
            lambda: hub_api(self.options).snapshot_download(
                self.repo,
                revision=self.commit,
                cache_dir=self.options.cache_dir,
                allow_patterns=[glob.escape(name) for name in names],
                force_download=self.force,
                dry_run=True,
            )
        )
        # Such a folder is filled from files of the cache, but not from blobs of other commits.
        elsewhere = self.local_dir is not None
        return [
            Preview(
                path=f.filename,
                nbytes=f.file_size or 0,
                cached=not f.will_download
                and not (elsewhere and not (self._places.snapshot / f.filename).is_file()),
            )
            for f in found
        ]

    def _call(self, work: Callable[[], R]) -> R:
        from huggingface_hub.errors import HfHubHTTPError

        with explained(self.repo, self.commit):
            for pause in _PAUSES:
                try:
                    return interruptible(work)
                except HfHubHTTPError as error:
                    # The client tries most requests again by itself, but not the one for a file.
                    if error.response.status_code not in _PASSING:
                        raise
                time.sleep(pause)
            return interruptible(work)

    def _lacks(self, name: str) -> str:
        return f"{self} has no file {name}"

    def _missing(self, name: str) -> str:
        if self.listed(name) is False:
            return self._lacks(name)
        place = "the Hub cache" if self.local_dir is None else str(self.local_dir)
        if self.options.offline:
            return f"{self}: {name} is not in {place}; {download_step()}"
        return (
            f"{self}: {name} is not in {place}: the Hub cannot be reached, or another pull is at "
            "work there; try again later"
        )

    # --- checking --------------------------------------------------------------------------------

    def check(self, digests: Mapping[str, str]) -> None:
        """Compare fetched files with their SHA-256, in hexadecimal; a wrong one is removed.

        Raises `HubError`.
        """
        paths = [self._places.path(name) for name in digests]
        with explained(self.repo, self.commit), Workers() as workers:
            found = list(workers.map(sha256, paths))
        wrong = [n for n, digest in zip(digests, found, strict=True) if digest != digests[n]]
        for name, digest in zip(digests, found, strict=True):
            if name in wrong and self._is_as_listed(name, digest):
                raise HubError(
                    f"{self}: {name} is as the commit lists it, but not as its manifest says; tell "
                    "the owner"
                )
        self._refuse(wrong, digests)

    def _is_as_listed(self, name: str, digest: str) -> bool:
        """True where the owner, not the transfer, is at fault; others may share the bytes."""
        listed = (self._places.listing() or {}).get(name)
        return listed is not None and listed.blob_id == pointer_name(digest, listed.size)

    def check_listed(self, name: str) -> None:
        """Compare a small file, whose digest nobody states, with what the commit lists.

        Where no listing was kept, all is fine. A wrong file is removed. Raises `HubError`.
        """
        listed = (self._places.listing() or {}).get(name)
        if listed is None:
            return
        with explained(self.repo, self.commit):
            data = self._places.path(name).read_bytes()
        if listed.blob_id not in git_names(data):
            self._refuse([name], {})

    def _refuse(self, wrong: list[str], digests: Mapping[str, str]) -> None:
        if not wrong:
            return
        listed = self._places.listing() or {}
        for name in wrong:
            git_name = [listed[name].blob_id] if name in listed else []
            self._places.remove(name, [*git_name, digests[name]] if name in digests else git_name)
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise HubError(
            f"{self}: wrong bytes in {wrong[0]}{more}; removed: run the command again, and where "
            "that does not help, tell the owner"
        )

    def remove_stale(self, folder: str, keep: Collection[str]) -> None:
        """Remove from a folder of `local_dir` what an earlier download put there, but for `keep`.

        In the cache, nothing.
        """
        if self.local_dir is not None:
            self._places.remove_stale(folder, keep)
