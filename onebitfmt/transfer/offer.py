"""What a local bundle or collection has to publish: its files and its config.json."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from onebitfmt.bundle import Bundle
from onebitfmt.collection import ROUTER, Collection, entry_of
from onebitfmt.collection_config import (
    CONFIG,
    CollectionBase,
    Config,
    RouterEntry,
    bundle_path,
)
from onebitfmt.errors import BaseMismatchError, MissingBundleError, UsageError
from onebitfmt.format.manifest import FILE_NAME
from onebitfmt.merge.recipe import Recipe, dump_recipe
from onebitfmt.routing.names import is_expert_name

README: Final = "README.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A file to publish: where it is or what it holds, bytes, and the SHA-256 it must have."""

    content: Path | bytes
    nbytes: int
    sha256: str

    @staticmethod
    def of(data: bytes) -> Upload:
        """A file of these bytes."""
        return Upload(content=data, nbytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def read(self) -> bytes:
        """All its bytes."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """The experts of a folder, by name; `whole` where the folder is a collection of its own."""

    path: Path
    config: Config
    bundles: Mapping[str, Bundle]
    whole: bool

    @staticmethod
    def open(path: Path) -> Offer:
        """Open a bundle or a collection of which all files are there.

        Raises `FormatError`, `UsageError`.
        """
        if not path.is_dir():
            raise MissingBundleError(str(path))
        if (path / FILE_NAME).is_file() or not (path / CONFIG).is_file():
            offer = _of_bundle(Bundle.open(path))
        else:
            offer = _of_collection(Collection.open(path))
        for bundle in offer.bundles.values():
            bundle.container.check_complete()
        return offer

    @property
    def router(self) -> RouterEntry | None:
        """The collection's router."""
        return self.config.router

    def files(self) -> dict[str, Upload]:
        """The files to publish, by their path in the repository."""
        found = {}
        for name, bundle in self.bundles.items():
            folder = bundle_path(name)
            entry = self.config.experts[name]
            manifest = bundle.path / FILE_NAME
            found[f"{folder}/{FILE_NAME}"] = Upload(
                content=manifest, nbytes=manifest.stat().st_size, sha256=entry.sha256
            )
            for relative, file in bundle.manifest.files.items():
                found[f"{folder}/{relative}"] = Upload(
                    content=bundle.path / relative, nbytes=file.size, sha256=file.sha256
                )
        if self.router is not None:
            found[ROUTER] = Upload(
                content=self.path / ROUTER, nbytes=self.router.nbytes, sha256=self.router.sha256
            )
        return found

    def config_with(self, published: Config | None) -> Config:
        """The config.json to publish where the repository has this one.

        A collection takes the place of the published one; a bundle is added to it, or takes the
        place of the expert of its name. Raises `BaseMismatchError`.
        """
        if published is None:
            return self.config
        ours, theirs = self.config.base, published.base
        same = ours.fingerprint == theirs.fingerprint
        # Where the base is need not be said again with every push.
        base = theirs if same and ours.repo is None else ours
        if self.whole:
            return replace(self.config, base=base)
        if not same:
            raise BaseMismatchError(
                f"{self.path} was made against {ours}, but the collection there has {theirs}; push "
                f"it to another repository [{BaseMismatchError.id}]"
            )
        return replace(published, base=base, experts={**published.experts, **self.config.experts})


def _of_collection(collection: Collection) -> Offer:
    collection.load_router()
    bundles = {name: collection.bundle(name) for name in collection.expert_names}
    return Offer(path=collection.path, config=collection.config, bundles=bundles, whole=True)


def _of_bundle(bundle: Bundle) -> Offer:
    name, base = bundle.manifest.expert.name, bundle.manifest.base
    if not is_expert_name(name):
        raise UsageError(
            f"{bundle.path}: {name!r} cannot name an expert of a collection (letters, digits, '.', "
            "'_', '-'); give it another name with: obd collect BASE NAME=BUNDLE -o DIR"
        )
    config = Config(
        base=CollectionBase(fingerprint=base.fingerprint, repo=base.repo, revision=base.revision),
        experts={name: entry_of(bundle.container, name)},
        recipe=dump_recipe(Recipe()),
    )
    return Offer(path=bundle.path, config=config, bundles={name: bundle}, whole=False)
