"""Where the base model of what is pushed is on the Hub: a repository at one commit.

Of a base that is given by id, names, types and shapes of all tensors are compared with those
recorded, and the digests of a few: enough to tell a fine-tune from its base, without its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Final

from blake3 import blake3

from onebitfmt.bundle import Bundle, name_in
from onebitfmt.collection_config import Config
from onebitfmt.errors import BaseMismatchError, HubError, UsageError
from onebitfmt.format.manifest import BaseTensor, Same, Terms
from onebitfmt.hub.address import HubId, parse_hub_id
from onebitfmt.hub.client import HubOptions, explained, hub_api
from onebitfmt.hub.ranges import read_range
from onebitfmt.transfer.offer import Offer

_BASE_FIX: Final = "say where it is on the Hub with --base-model-id ns/name[@revision]"
_SAMPLES: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tensor:
    """A tensor of a model on the Hub; `begin` and `end` count from the end of its file's header."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Model:
    """A model on the Hub, known by the headers of its files."""

    repo: str
    commit: str
    tensors: Mapping[str, _Tensor]

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit}"


def with_base(config: Config, offer: Offer, given: str | None, hub: HubOptions) -> Config:
    """The config with its base's place on the Hub, at one commit.

    `given` is ns/name[@revision]; without it the recorded place is taken. Raises `UsageError` where
    none is known, `BaseMismatchError` where the one given is another model, `HubError`.
    """
    found = _known(config, offer) if given is None else _given(given)
    commit = _commit(found, hub)
    if given is not None:
        model = _Model(repo=found.repo, commit=commit, tensors=_tensors(found.repo, commit, hub))
        for bundle in offer.bundles.values():
            _check_headers(model, bundle)
        # All are of one base, by its fingerprint.
        _check_values(model, next(iter(offer.bundles.values())), hub)
    base = replace(config.base, repo=found.repo, revision=commit)
    return replace(config, base=base)


def _given(text: str) -> HubId:
    found = parse_hub_id(text)
    if found is None or found.expert is not None:
        raise UsageError(f"--base-model-id {text}: not a model on the Hub (ns/name[@revision])")
    return found


def _known(config: Config, offer: Offer) -> HubId:
    repo, revision = config.base.repo, config.base.revision
    if repo is None:
        raise UsageError(f"{offer.path}: its base model was a local folder; {_BASE_FIX}")
    if parse_hub_id(repo) != HubId(repo=repo):
        raise UsageError(f"{offer.path}: its base model {repo!r} is not on the Hub; {_BASE_FIX}")
    return HubId(repo=repo, revision=revision)


def _commit(base: HubId, hub: HubOptions) -> str:
    try:
        with explained(base.repo, base.revision):
            commit = hub_api(hub).model_info(base.repo, revision=base.revision).sha
    except HubError as e:
        raise HubError(f"the base model, {e}; or {_BASE_FIX}") from None
    assert commit is not None
    return commit


def _tensors(repo: str, commit: str, hub: HubOptions) -> dict[str, _Tensor]:
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
                begin, end = info.data_offsets
                found[name] = _Tensor(
                    file=file.path, dtype=str(info.dtype), shape=tuple(info.shape), begin=begin,
                    end=end,
                )  # fmt: skip
    if not found:
        raise UsageError(f"{repo} has no safetensors weights; {_BASE_FIX}")
    return found


# --- is it the base? -----------------------------------------------------------------------------


def _check_headers(model: _Model, bundle: Bundle) -> None:
    for entry in bundle.manifest.tensors.values():
        if entry.base is None:
            continue
        name = name_in(model.tensors, entry.base.name)
        found = None if name is None else model.tensors[name]
        if found is None or (found.dtype, found.shape) != (entry.base.dtype, entry.base.shape):
            raise _mismatch(model, bundle, f"its {entry.base.name} is another or missing")


def _check_values(model: _Model, bundle: Bundle, hub: HubOptions) -> None:
    for wanted in _samples(bundle):
        name = name_in(model.tensors, wanted.name)
        assert name is not None  # its header has been checked
        if blake3(_bytes(model, model.tensors[name], hub)).hexdigest() != wanted.digest:
            raise _mismatch(model, bundle, f"its {wanted.name} holds other values")


def _samples(bundle: Bundle) -> list[BaseTensor]:
    """The smallest tensors that the fine-tuning changed, and the smallest that is one-bit."""
    changed = [
        (prod(entry.shape), isinstance(entry.coding, Terms), entry.base)
        for entry in bundle.manifest.tensors.values()
        if entry.base is not None and not isinstance(entry.coding, Same)
    ]
    changed.sort(key=lambda item: item[0])
    onebit = [item for item in changed if item[1]]
    return [base for _, _, base in [*changed[:_SAMPLES], *onebit[:1]]]


def _bytes(model: _Model, tensor: _Tensor, hub: HubOptions) -> bytes:
    length = read_range(model.repo, model.commit, tensor.file, range(8), hub)
    start = 8 + int.from_bytes(length, "little")
    span = range(start + tensor.begin, start + tensor.end)
    return read_range(model.repo, model.commit, tensor.file, span, hub) if span else b""


def _mismatch(model: _Model, bundle: Bundle, problem: str) -> BaseMismatchError:
    return BaseMismatchError(
        f"{model} is not the base of {bundle.path}: {problem}; {_BASE_FIX} [{BaseMismatchError.id}]"
    )
