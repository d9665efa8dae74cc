"""Where the base model of what is pushed is on the Hub: a repository at one commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from onebitfmt.bundle import name_in
from onebitfmt.collection_config import Config
from onebitfmt.errors import BaseMismatchError, HubError, UsageError
from onebitfmt.hub.address import HubId, parse_hub_id
from onebitfmt.hub.client import HubOptions, explained, hub_api
from onebitfmt.transfer.offer import Offer

_BASE_FIX: Final = "say where it is on the Hub with --base-model-id ns/name[@revision]"


def with_base(config: Config, offer: Offer, given: str | None, hub: HubOptions) -> Config:
    """The config with its base's place on the Hub, at one commit.

    `given` is ns/name[@revision]; without it the recorded place is taken. Raises `UsageError` where
    none is known, `BaseMismatchError` where the one given has other tensors, `HubError`.
    """
    known = None
    if config.base.repo is not None:
        known = HubId(repo=config.base.repo, revision=config.base.revision)
    if given is None and known is None:
        raise UsageError(f"{offer.path}: its base model was a local folder; {_BASE_FIX}")
    found = known if given is None else parse_hub_id(given)
    if found is None or found.expert is not None or parse_hub_id(str(found)) is None:
        raise UsageError(f"{given or known}: not a model on the Hub; {_BASE_FIX}")
    commit = _commit(found, hub)
    if given is not None:
        _check_base(f"{found.repo}@{commit}", offer, _tensors(found.repo, commit, hub))
    base = replace(config.base, repo=found.repo, revision=commit)
    return replace(config, base=base)


def _commit(base: HubId, hub: HubOptions) -> str:
    try:
        with explained(base.repo, base.revision):
            commit = hub_api(hub).model_info(base.repo, revision=base.revision).sha
    except HubError as e:
        raise HubError(f"the base model, {e}; or {_BASE_FIX}") from None
    assert commit is not None
    return commit


def _tensors(repo: str, commit: str, hub: HubOptions) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of a model's tensors, from the headers of its files."""
    from huggingface_hub.errors import SafetensorsParsingError

    api = hub_api(hub)
    found = {}
    with explained(repo, commit):
        for file in api.list_repo_tree(repo, revision=commit):
            if not file.path.endswith(".safetensors") or file.path.startswith("consolidated"):
                continue
            try:
                header = api.parse_safetensors_file_metadata(repo, file.path, revision=commit)
            except SafetensorsParsingError as e:
                raise UsageError(f"{repo}: {file.path} is no safetensors file ({e})") from None
            for name, info in header.tensors.items():
                found[name] = (str(info.dtype), tuple(info.shape))
    if not found:
        raise UsageError(f"{repo} has no safetensors weights; {_BASE_FIX}")
    return found


def _check_base(
    where: str, offer: Offer, tensors: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    """Compare names, types and shapes: what can be told without the weights."""
    for bundle in offer.bundles.values():
        for entry in bundle.manifest.tensors.values():
            if entry.base is None:
                continue
            name = name_in(tensors, entry.base.name)
            if name is None or tensors[name] != (entry.base.dtype, entry.base.shape):
                raise BaseMismatchError(
                    f"{where} is not the base of {bundle.path}: its {entry.base.name} is another "
                    f"or missing; {_BASE_FIX} [{BaseMismatchError.id}]"
                )
