"""Publish a bundle or a collection to a Hub repository: in one commit, or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from onebitfmt.collection import ROUTER
from onebitfmt.collection_config import (
    CONFIG,
    EXPERTS,
    Config,
    bundle_path,
    dump_config,
    load_config,
)
from onebitfmt.container import is_plain_file
from onebitfmt.errors import FormatError, HubError, UsageError
from onebitfmt.hub.address import local_path, parse_hub_id
from onebitfmt.hub.client import HubOptions, explained, hub_api
from onebitfmt.hub.interrupt import interruptible
from onebitfmt.report.quantities import count
from onebitfmt.transfer.base_reference import with_base
from onebitfmt.transfer.card import model_card
from onebitfmt.transfer.offer import README, Offer, Upload
from onebitfmt.transfer.target import Target, check_published, decoded
from onebitfmt.verbs.verify import verify, verify_bytes

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd

# Given the number of bytes to check, opens a display that takes them as they are done.
Checking = Callable[[int], AbstractContextManager[Callable[[int], None]]]


_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PushedFile:
    """A file of the commit, by its path in the repository; `there` where it was there already."""

    path: str
    nbytes: int
    there: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Pushed:
    """What a push did, or would do where `commit` is None.

    `commit` is the head where there was nothing to change, and then `changed` is False.
    """

    repo: str
    created: bool
    private: bool
    changed: bool
    files: tuple[PushedFile, ...]
    deleted: tuple[str, ...]
    notes: tuple[str, ...] = ()
    commit: str | None = None
    url: str | None = None
    pull_request: str | None = None

    @property
    def sent(self) -> int:
        """Bytes of the files that are not there yet."""
        return sum(file.nbytes for file in self.files if not file.there)


@dataclass(frozen=True, kw_only=True, slots=True)
class PushOptions:
    """Where and how to commit; `message` is the title of the commit."""

    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    message: str | None = None
    base_model_id: str | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Refuse what excludes another."""
        if self.create_pr and self.revision not in (None, "main"):
            raise UsageError("a pull request goes to main; drop --revision or --create-pr")
        if self.revision is not None and _COMMIT.fullmatch(self.revision):
            raise UsageError(f"{self.revision} is a commit, which cannot change; name a branch")


def push(
    source: str | Path,
    repo: str,
    options: PushOptions | None = None,
    *,
    token: str | bool | None = None,
    jobs: int | None = None,
    checking: Checking | None = None,
) -> Pushed:
    """Publish a bundle or a collection folder to the repository `repo` (ns/name).

    All is checked first: every digest, the base's place on the Hub, what the repository holds. The
    files that it lacks are uploaded, then one commit makes them visible, on condition that nobody
    committed meanwhile. A bundle is added to the repository's collection; a collection takes its
    place. Safe to repeat after any interruption. Raises `FormatError`, `UsageError`, `HubError` and
    `BaseMismatchError`.
    """
    wanted = options or PushOptions()
    hub = HubOptions(token=token)
    target_id = _repo_id(repo)
    offer = Offer.open(local_path(source))
    _check_access(token, dry_run=wanted.dry_run)
    target = Target.open(target_id, wanted.revision, hub)
    _check_visibility(target, private=wanted.private)
    config = with_base(offer.config_with(target.config), offer, wanted.base_model_id, hub)
    _check_config(target, config)
    _verify(offer, jobs, checking)
    uploads = {
        **offer.files(),
        CONFIG: Upload.of(dump_config(config)),
        README: Upload.of(_card(offer, target, config).encode()),
    }
    _check_ours(target, uploads)
    pushed = replace(
        _compare(target, uploads, _outdated(offer, target, uploads)),
        private=target.private or (target.head is None and wanted.private),
        notes=tuple(_notes(offer, target, config)),
    )
    if wanted.dry_run:
        return pushed
    if not pushed.changed:
        with explained(target.repo, wanted.revision):
            _make_branch(target, wanted, hub)
        url = f"{hub_api(hub).endpoint}/{target.repo}/commit/{target.head}"
        return replace(pushed, commit=target.head, url=url)
    commit = _commit(target, pushed, uploads, wanted, hub)
    check_published(target.repo, commit.oid, uploads, hub)
    return replace(pushed, commit=commit.oid, url=commit.commit_url, pull_request=commit.pr_url)


# --- checking ------------------------------------------------------------------------------------


def _repo_id(text: str) -> str:
    parsed = parse_hub_id(text)
    if parsed is None or parsed.expert is not None or parsed.revision is not None:
        raise UsageError(f"{text} is not a repository (ns/name)")
    return parsed.repo


def _check_access(token: str | bool | None, *, dry_run: bool) -> None:
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        raise HubError("nothing can be pushed offline; unset HF_HUB_OFFLINE")
    if not dry_run and not token and get_token() is None:
        raise HubError("not logged in to the Hub; log in with `hf auth login`, or set HF_TOKEN")


def _check_visibility(target: Target, *, private: bool) -> None:
    if private and target.head is not None and not target.private:
        raise UsageError(
            f"{target.repo} exists and is public; --private is for new repositories: change the "
            "visibility in its settings, or drop --private"
        )


def _verify(offer: Offer, jobs: int | None, checking: Checking | None) -> None:
    total = sum(verify_bytes(bundle, with_base=False) for bundle in offer.bundles.values())
    with checking(total) if checking else nullcontext() as done:
        for bundle in offer.bundles.values():
            findings = verify(bundle.path, jobs=jobs, progress=done).findings
            if findings:
                first = findings[0]
                problem = (
                    f"damaged, so nothing was sent ({count(len(findings), 'fault')}; the first: "
                    f"{first.message.removesuffix(f' [{first.id}]')})"
                )
                raise FormatError(first.id, str(bundle.path), problem)


# --- what to commit ------------------------------------------------------------------------------


def _card(offer: Offer, target: Target, config: Config) -> str:
    own = offer.path / README
    existing = target.readme
    # A link could publish any file of this machine.
    if offer.whole and existing is None and is_plain_file(own):
        existing = decoded(own.read_bytes(), str(own))
    return model_card(config, target.repo, existing)


def _outdated(offer: Offer, target: Target, uploads: Mapping[str, Upload]) -> tuple[str, ...]:
    """Files of the repository that no longer belong to its collection."""
    before = target.config
    if before is None:
        return ()
    names = {*offer.bundles, *before.experts} if offer.whole else set(offer.bundles)
    folders = tuple(f"{bundle_path(name)}/" for name in names)
    found = [p for p in target.files if p.startswith(folders) and p not in uploads]
    if offer.whole and before.router and ROUTER in target.files and ROUTER not in uploads:
        found.append(ROUTER)
    return tuple(sorted(found))


def _notes(offer: Offer, target: Target, config: Config) -> Iterator[str]:
    before = target.config
    if before is None:
        return
    new = sorted(set(config.experts).difference(before.experts))
    if new and not offer.whole and config.router is not None:
        yield (
            f"the router there does not know {', '.join(new)}: asked for by name, and merged into "
            "the others"
        )
    ours, theirs = config.base, before.base
    if (ours.repo, ours.revision) != (theirs.repo, theirs.revision) and theirs.repo is not None:
        yield f"the base was {theirs.repo}@{theirs.revision}, and is {ours.repo}@{ours.revision}"


def _check_ours(target: Target, uploads: Mapping[str, Upload]) -> None:
    """Refuse to overwrite files of a repository that holds no collection."""
    if target.config is not None:
        return
    for path, upload in uploads.items():
        if path != README and path in target.files and not target.holds(path, upload):
            raise UsageError(
                f"{target.repo} holds something else: {path}, but no collection; push to a "
                "repository of its own"
            )


def _check_config(target: Target, config: Config) -> None:
    """See that readers will accept what is about to be published."""
    try:
        load_config(dump_config(config))
    except FormatError as e:
        raise UsageError(f"{target.repo}: would not be a valid collection: {e.problem}") from None


def _compare(target: Target, uploads: Mapping[str, Upload], deleted: tuple[str, ...]) -> Pushed:
    files = tuple(
        PushedFile(path=path, nbytes=upload.nbytes, there=target.holds(path, upload))
        for path, upload in sorted(uploads.items())
    )
    return Pushed(
        repo=target.repo,
        created=target.head is None,
        private=target.private,
        changed=bool(deleted) or not all(file.there for file in files),
        files=files,
        deleted=deleted,
    )


# --- committing ----------------------------------------------------------------------------------


def _commit(
    target: Target,
    pushed: Pushed,
    uploads: Mapping[str, Upload],
    wanted: PushOptions,
    hub: HubOptions,
) -> CommitInfo:
    from huggingface_hub import CommitOperationDelete

    api = hub_api(hub)
    changed = {file.path: uploads[file.path] for file in pushed.files if not file.there}
    with explained(target.repo, wanted.revision):
        additions = list(_additions(changed))
        deletions = [CommitOperationDelete(path_in_repo=path) for path in pushed.deleted]
        if target.head is None:
            # Not `exist_ok`: one that appeared meanwhile may hold what must not be replaced.
            api.create_repo(target.repo, private=wanted.private)
        _make_branch(target, wanted, hub)
        parent = target.head or api.model_info(target.repo).sha
        return interruptible(
            lambda: api.create_commit(
                target.repo,
                [*additions, *deletions],
                commit_message=wanted.message or _message(changed, pushed.deleted),
                revision=wanted.revision,
                create_pr=wanted.create_pr,
                parent_commit=parent,
            )
        )


def _make_branch(target: Target, wanted: PushOptions, hub: HubOptions) -> None:
    if wanted.revision is not None and not target.branch:
        hub_api(hub).create_branch(target.repo, branch=wanted.revision, exist_ok=True)


def _additions(changed: Mapping[str, Upload]) -> Iterable[CommitOperationAdd]:
    from huggingface_hub import CommitOperationAdd

    for path, upload in changed.items():
        addition = CommitOperationAdd(path_in_repo=path, path_or_fileobj=upload.content)
        # The client has just read the file: another chance to see that it did not change.
        if addition.upload_info.sha256.hex() != upload.sha256:
            raise FormatError("OBD-DIR-SHA256", str(upload.content), "changed while it was read")
        yield addition


def _message(changed: Mapping[str, Upload], deleted: tuple[str, ...]) -> str:
    """A title such as `Experts chat, math as one-bit task vectors`."""
    prefix = f"{EXPERTS}/"
    names = {
        path.removeprefix(prefix).partition(".obd/")[0]
        for path in (*changed, *deleted)
        if path.startswith(prefix)
    }
    if not names:
        return "Update the collection"
    listed = ", ".join(sorted(names))
    return f"Update expert{'s' if len(names) > 1 else ''} {listed}"
