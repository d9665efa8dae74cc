"""What a Hub repository holds at its head, before something is pushed to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onebitfmt.collection_config import CONFIG, Config, load_config
from onebitfmt.errors import FormatError, HubError, UnsupportedError, UsageError
from onebitfmt.hub.client import HubOptions, explained, hub_api
from onebitfmt.hub.places import git_name
from onebitfmt.hub.snapshot import Snapshot
from onebitfmt.transfer.offer import README, Upload

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A repository at one commit; `head` is None where it does not exist.

    `branch` is False where the revision asked for does not exist; it starts at the head of main.
    """

    repo: str
    head: str | None = None
    branch: bool = True
    private: bool = False
    files: Mapping[str, RepoFile] = field(default_factory=dict)
    config: Config | None = None
    readme: str | None = None

    @staticmethod
    def open(repo: str, revision: str | None, options: HubOptions) -> Target:
        """Look at the head of a repository. Raises `HubError`, `UsageError`."""
        from huggingface_hub.errors import (
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        api = hub_api(options)
        branch = True
        with explained(repo, revision):
            try:
                info = api.model_info(repo, revision=revision)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return Target(repo=repo, branch=revision is None)
            except RevisionNotFoundError:
                branch = False
                info = api.model_info(repo)
            assert info.sha is not None
            files = dict(_listing(repo, info.sha, options))
        return Target(
            repo=repo,
            head=info.sha,
            branch=branch,
            private=bool(info.private),
            files=files,
            config=_config(repo, info.sha, files, options),
            readme=_readme(repo, info.sha, files, options),
        )

    def holds(self, path: str, file: Upload) -> bool:
        """True where the repository has this very file."""
        there = self.files.get(path)
        if there is None or there.size != file.nbytes:
            return False
        if there.lfs is not None:
            return bool(there.lfs.sha256 == file.sha256)
        return bool(there.blob_id == git_name(file.read()))


def check_published(
    repo: str, commit: str, wanted: Mapping[str, Upload], options: HubOptions
) -> None:
    """See that a commit lists every file as sent; a .gitignore there can leave some out.

    Raises `HubError`.
    """
    with explained(repo, commit):
        listed = dict(_listing(repo, commit, options))
    now = Target(repo=repo, head=commit, files=listed)
    for path, file in wanted.items():
        if not now.holds(path, file):
            raise HubError(
                f"{repo}@{commit}: {path} is not there as it was sent; if the repository has a "
                ".gitignore that leaves it out, remove that and push again"
            )


def _listing(repo: str, commit: str, options: HubOptions) -> Iterator[tuple[str, RepoFile]]:
    from huggingface_hub.hf_api import RepoFile

    for entry in hub_api(options).list_repo_tree(repo, recursive=True, revision=commit):
        if isinstance(entry, RepoFile):
            yield entry.path, entry


def _read(repo: str, commit: str, path: str, options: HubOptions) -> bytes:
    snapshot = Snapshot.open(repo, commit, options)
    snapshot.fetch([path])
    snapshot.check_listed(path)
    return (snapshot.folder / path).read_bytes()


def _config(
    repo: str, commit: str, files: Mapping[str, RepoFile], options: HubOptions
) -> Config | None:
    if CONFIG not in files:
        return None
    try:
        return load_config(_read(repo, commit, CONFIG, options), f"{repo}/{CONFIG}")
    except UnsupportedError:
        raise
    except FormatError as e:
        raise UsageError(
            f"{repo} holds something else: its {CONFIG} is not that of a collection ({e}); push to "
            "a repository of its own"
        ) from None


def _readme(
    repo: str, commit: str, files: Mapping[str, RepoFile], options: HubOptions
) -> str | None:
    if README not in files:
        return None
    return decoded(_read(repo, commit, README, options), f"{repo}/{README}")


def decoded(data: bytes, where: str) -> str:
    """The text of a README, its line ends as they are. Raises `UsageError`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{where} is not UTF-8 text; correct or remove it") from None
