"""A collection: several bundles of one base in one folder, with a router and a merge recipe.

::

    DIR/
      config.json            this module's record, strict canonical JSON
      router.safetensors     optional
      experts/NAME.obd/      one bundle an expert

`config.json` alone tells the sizes of all layer groups and the SHA-256 of each manifest, so it is
all that a remote reader fetches first, and it is the root of trust of the rest.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Final

from onebitfmt.bundle import Bundle
from onebitfmt.checkpoint import Checkpoint
from onebitfmt.collection_config import (
    CONFIG,
    CONFIG_ID,
    EXPERTS,
    MAX_CONFIG_BYTES,
    CollectionBase,
    Config,
    ExpertEntry,
    ExpertGroup,
    RouterEntry,
    bundle_path,
    dump_config,
    load_config,
)
from onebitfmt.container import Container, is_plain_file, sha256
from onebitfmt.errors import (
    BaseMismatchError,
    FormatError,
    MissingBundleError,
    UsageError,
)
from onebitfmt.format.dtypes import nbytes
from onebitfmt.format.manifest import FILE_NAME, LayerGroup, Manifest, Terms, coding_name
from onebitfmt.hub.address import HubId, parse_hub_id
from onebitfmt.hub.client import DEFAULTS, HubOptions
from onebitfmt.merge.recipe import Recipe, dump_recipe, parse_recipe
from onebitfmt.routing.identity import base_fingerprint
from onebitfmt.routing.names import MAX_EXPERTS, is_expert_name
from onebitfmt.routing.router import Router
from onebitfmt.source import hub_checkpoint, open_checkpoint
from onebitfmt.staging import check_output, staged

ROUTER: Final = "router.safetensors"

BundleSource = str | Path | Bundle

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_FILE_ID: Final = "OBD-COLL-FILE"
_SUMMARY_ID: Final = "OBD-COLL-SUMMARY"


# --- an open collection --------------------------------------------------------------------------


@dataclass(kw_only=True)
class Collection:
    """An open collection; bundles and router are opened when they are first asked for."""

    path: Path
    config: Config
    recipe: Recipe
    _bundles: dict[str, Bundle] = field(default_factory=dict, repr=False)

    @staticmethod
    def open(path: str | Path) -> Collection:
        """Open a collection folder; of its files only config.json is read.

        Raises `FormatError`.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise MissingBundleError(str(folder))
        file = folder / CONFIG
        if not is_plain_file(file):
            raise FormatError(_FILE_ID, str(file), "no such file; not a collection")
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise FormatError(CONFIG_ID, str(file), f"larger than {MAX_CONFIG_BYTES} bytes")
        config = load_config(file.read_bytes(), str(file))
        recipe = _read_recipe(config, str(file))
        return Collection(path=folder, config=config, recipe=recipe)

    @staticmethod
    def create(
        output: str | Path,
        base: str | Path | Checkpoint,
        bundles: Iterable[BundleSource] | Mapping[str, BundleSource],
        *,
        recipe: Recipe | None = None,
        router: str | Path | Router | None = None,
        overwrite: bool = False,
    ) -> Collection:
        """Write a collection to the folder `output`, whole or not at all, and open it.

        Bundles, folders or open ones, are copied, their files' SHA-256 checked on the way; a
        mapping gives them other names than their own. Raises `BaseMismatchError` for a bundle or
        router of another base, `UsageError`, `FormatError`, `CheckpointError` and `OutputError`.
        """
        target = Path(output)
        of_base = base if isinstance(base, Checkpoint) else open_checkpoint(base)
        experts = _named(bundles)
        own = _opened(router)
        inputs = (of_base.path, *(c.path for c in experts.values()))
        check_output(target, overwrite=overwrite, is_ours=is_collection, inputs=inputs)
        chosen = Recipe() if recipe is None else recipe
        _check_recipe(chosen, experts)
        where = _check_base(of_base, experts)
        if own is not None:
            _check_router(own, where.fingerprint, experts)
        with staged(target) as folder:
            (folder / EXPERTS).mkdir()
            entries = {n: _copy_bundle(c, folder, n) for n, c in sorted(experts.items())}
            stored = None
            if own is not None:
                own.save(folder / ROUTER)
                size = (folder / ROUTER).stat().st_size
                stored = RouterEntry(sha256=sha256(folder / ROUTER), nbytes=size)
            config = Config(base=where, experts=entries, recipe=dump_recipe(chosen), router=stored)
            (folder / CONFIG).write_bytes(dump_config(config))
        return Collection.open(target)

    @property
    def base(self) -> CollectionBase:
        """The base model, as recorded."""
        return self.config.base

    @property
    def experts(self) -> Mapping[str, ExpertEntry]:
        """The experts by name, as recorded."""
        return self.config.experts

    @property
    def expert_names(self) -> tuple[str, ...]:
        """The names of the experts, sorted."""
        return tuple(sorted(self.config.experts))

    @property
    def router(self) -> Path | None:
        """The router's file; None where the collection has no router."""
        return None if self.config.router is None else self.path / ROUTER

    def bundle(self, name: str) -> Bundle:
        """The open bundle of an expert; group files may be missing.

        Raises `UsageError` for an unknown name and `FormatError` for a bundle that is not the one
        recorded.
        """
        if name not in self.config.experts:
            known = ", ".join(self.expert_names)
            raise UsageError(f"{self.path}: no expert {name!r}; the experts are {known}")
        if name not in self._bundles:
            self._bundles[name] = self._open_bundle(self.config.experts[name])
        return self._bundles[name]

    def _open_bundle(self, entry: ExpertEntry) -> Bundle:
        folder = self.path / entry.path
        # Links to folders never, so that nothing outside the collection is read.
        for part in (folder.parent, folder):
            if part.is_symlink():
                raise FormatError(_FILE_ID, str(part), "a link, not a folder")
        bundle = Bundle.open(folder)
        if sha256(folder / FILE_NAME) != entry.sha256:
            raise FormatError(_FILE_ID, str(folder / FILE_NAME), "not the manifest recorded")
        if entry_of(bundle.container, Path(entry.path).stem) != entry:
            problem = f"says of {entry.path} what its manifest does not say"
            raise FormatError(_SUMMARY_ID, str(self.path / CONFIG), problem)
        if bundle.manifest.base.fingerprint != self.base.fingerprint:
            raise FormatError(_FILE_ID, str(folder), "a bundle of another base")
        return bundle

    @cached_property
    def _router(self) -> Router | None:
        entry, path = self.config.router, self.router
        if entry is None or path is None:
            return None
        if not is_plain_file(path):
            raise FormatError(_FILE_ID, str(path), "no such file")
        if path.stat().st_size != entry.nbytes or sha256(path) != entry.sha256:
            raise FormatError(_FILE_ID, str(path), "not the router recorded")
        router = Router.load(path)
        try:
            _check_router(router, self.base.fingerprint, self.config.experts)
        except (UsageError, BaseMismatchError) as e:
            raise FormatError(_FILE_ID, str(path), str(e)) from None
        return router

    def load_router(self) -> Router | None:
        """The router, checked against base and experts; None without one. Raises `FormatError`."""
        return self._router

    def open_base(
        self, base: str | Path | Checkpoint | None = None, *, options: HubOptions = DEFAULTS
    ) -> Checkpoint:
        """The base model: the one given, else the one recorded on the Hub, at its commit.

        Its tensors are compared with those recorded when they are first used. Raises
        `CheckpointError`, `HubError`, and `UsageError` where none is given and none is known.
        """
        if isinstance(base, Checkpoint):
            return base
        if base is not None:
            return open_checkpoint(base, options=options)
        repo, revision = self.base.repo, self.base.revision
        if repo is None:
            problem = "does not know where its base model is; pass it with --base"
            raise UsageError(f"{self.path} {problem}")
        if parse_hub_id(repo) != HubId(repo=repo):
            problem = f"names {repo!r} as its base, which is no model on the Hub"
            raise UsageError(f"{self.path} {problem}; pass the base with --base")
        if revision is not None and not _COMMIT.fullmatch(revision):
            problem = f"names its base at {revision!r}, which is no commit and may change"
            raise UsageError(f"{self.path} {problem}; pass the base with --base")
        return hub_checkpoint(repo, revision, options=options)


def _read_recipe(config: Config, where: str) -> Recipe:
    """The recipe of a config.json that may come from a stranger."""
    # An alias of YAML lets a short text stand for an endless one; we never write any.
    if any(sign in config.recipe for sign in "&*"):
        raise FormatError(CONFIG_ID, where, "the recipe has anchors or aliases")
    try:
        recipe = parse_recipe(config.recipe, "recipe")
        _check_recipe(recipe, config.experts)
    except UsageError as e:
        raise FormatError(CONFIG_ID, where, str(e)) from None
    return recipe


def is_collection(path: Path) -> bool:
    """True for a folder whose config.json is that of a collection."""
    try:
        load_config((path / CONFIG).read_bytes())
    except (OSError, FormatError):
        return False
    return True


# --- making one ----------------------------------------------------------------------------------


def _named(
    bundles: Iterable[BundleSource] | Mapping[str, BundleSource],
) -> dict[str, Container]:
    if isinstance(bundles, Mapping):
        pairs = [(str(name), _container(source)) for name, source in bundles.items()]
    else:
        opened = [_container(source) for source in bundles]
        pairs = [(container.manifest.expert.name, container) for container in opened]
    if not 1 <= len(pairs) <= MAX_EXPERTS:
        raise UsageError(f"a collection has 1 to {MAX_EXPERTS} experts, not {len(pairs)}")
    experts: dict[str, Container] = {}
    for name, container in pairs:
        if not is_expert_name(name):
            raise UsageError(
                f"{container.path}: {name!r} cannot name a folder of a collection (letters, "
                "digits, '.', '_', '-'); give another name: NAME=BUNDLE"
            )
        # File systems that ignore case would mix the two.
        if name.lower() in {known.lower() for known in experts}:
            raise UsageError(
                f"two experts are called {name!r}; give one of them another name: NAME=BUNDLE"
            )
        container.check_complete()
        experts[name] = container
    return experts


def _container(source: BundleSource) -> Container:
    return source.container if isinstance(source, Bundle) else Container.open(Path(source))


def _opened(router: str | Path | Router | None) -> Router | None:
    return router if router is None or isinstance(router, Router) else Router.load(router)


def _check_recipe(recipe: Recipe, experts: Iterable[str]) -> None:
    named = {recipe.select, *recipe.weights} - {None}
    if unknown := sorted(str(name) for name in named.difference(experts)):
        raise UsageError(f"the recipe names expert {unknown[0]!r}, which the collection lacks")


def _check_base(base: Checkpoint, experts: Mapping[str, Container]) -> CollectionBase:
    found = base_fingerprint(base)
    for container in experts.values():
        recorded = container.manifest.base
        if recorded.fingerprint != found:
            raise BaseMismatchError(
                f"{container.path} was made against {recorded}, but the base given is {base} "
                f"(fingerprint {found[:12]}) [{BaseMismatchError.id}]"
            )
    sources = [container.manifest.base for container in experts.values()]
    known = next((b for b in sources if b.repo is not None), None)
    if base.repo is not None or known is None:
        return CollectionBase(fingerprint=found, repo=base.repo, revision=base.revision)
    return CollectionBase(fingerprint=found, repo=known.repo, revision=known.revision)


def _check_router(router: Router, fingerprint: str, experts: Iterable[str]) -> None:
    if unknown := sorted(set(router.labels).difference(experts)):
        raise UsageError(f"the router knows expert {unknown[0]!r}, which the collection lacks")
    if router.spec.base not in (None, fingerprint):
        raise BaseMismatchError(
            f"the router was trained on the base with fingerprint {str(router.spec.base)[:12]}, "
            f"but the collection's base has {fingerprint[:12]} [{BaseMismatchError.id}]"
        )


def _copy_bundle(container: Container, folder: Path, name: str) -> ExpertEntry:
    manifest = container.manifest
    target = folder / bundle_path(name)
    for relative, file in manifest.files.items():
        copy = target / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(container.path / relative, copy)
        if sha256(copy) != file.sha256:
            where = str(container.path / relative)
            raise FormatError("OBD-DIR-SHA256", where, "damaged: its SHA-256 differs")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(container.path / FILE_NAME, target / FILE_NAME)
    return entry_of(container, name)


def entry_of(container: Container, name: str) -> ExpertEntry:
    """What config.json says of a bundle, from its manifest alone."""
    manifest = container.manifest
    expert = manifest.expert
    return ExpertEntry(
        path=bundle_path(name),
        sha256=sha256(container.path / FILE_NAME),
        nbytes=container.nbytes,
        dtype=expert.dtype,
        groups=tuple(_group(manifest, group) for group in manifest.groups),
        repo=expert.repo,
        revision=expert.revision,
        license=expert.license,
    )


def _group(manifest: Manifest, group: LayerGroup) -> ExpertGroup:
    entries = [t for t in manifest.tensors.values() if t.group == group.name]
    return ExpertGroup(
        name=group.name,
        nbytes=sum(manifest.files[f].size for f in group.files),
        full=sum(nbytes(t.dtype, t.shape) for t in entries),
        elements=sum(prod(t.shape) for t in entries),
        onebit=sum(prod(t.shape) for t in entries if isinstance(t.coding, Terms)),
        codings=dict(Counter(coding_name(t.coding) for t in entries)),
        relative_squared_error=manifest.metadata.get(f"{group.name}.relative_squared_error"),
    )
