"""What `convert` is going to do: the coding meant for each tensor, and the files it goes to.

Pure: it looks at names, types and shapes, and compares bytes only to see tied tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Final

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.codecs.sign import SignOptions
from onebitfmt.errors import CheckpointError, UsageError
from onebitfmt.format.dtypes import HALF_AND_SINGLE, matrices
from onebitfmt.format.manifest import EXPERT_FOLDER, SCALE_TENSORS
from onebitfmt.format.manifest_json import is_path, is_tensor_name
from onebitfmt.groups import GROUPS, Override, assign_groups, is_linear_weight
from onebitfmt.matching import match_names, model_order, tied_tensors

# Which layer groups become one-bit (1bit-Merging, section 4: MLP for chat, attention else).
PRESETS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "chat": ("mlp",),
        "math": ("attention",),
        "code": ("attention",),
        "linear": ("attention", "mlp"),
        "none": (),
    }
)
DEFAULT_SHARD_SIZE: Final = 4_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertOptions:
    """How to convert: a preset, globs that add to it and take from it, and the sign coding."""

    preset: str
    onebit: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    groups: tuple[Override, ...] = ()
    sign: SignOptions = field(default_factory=SignOptions)
    shard_size: int = DEFAULT_SHARD_SIZE


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorPlan:
    """What is meant for one tensor; `note` says why it is kept exactly against the preset."""

    name: str
    group: str
    base: str | None
    tied_to: str | None = None
    onebit: bool = False
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FilePlan:
    """The tensors of one group file, in model order."""

    group: str
    tensors: tuple[TensorPlan, ...]


def plan_conversion(
    base: Checkpoint, expert: Checkpoint, options: ConvertOptions
) -> tuple[FilePlan, ...]:
    """The files of the bundle to be, by group and then in model order.

    Raises `UsageError` for an unknown preset and for globs that match nothing, `CheckpointError`
    where base and expert are not related.
    """
    if options.preset not in PRESETS:
        known = ", ".join(PRESETS)
        raise UsageError(f"unknown preset {options.preset!r}; the presets are {known}")
    _check_expert(expert)
    groups = assign_groups({n: expert.span(n).shape for n in expert}, options.groups)
    embeddings = [n for n in expert if groups[n] == "embedding"]
    matches = match_names(base, expert, embeddings)
    tied = tied_tensors(expert, groups)
    wanted = _wanted(expert, groups, options)
    plans = []
    for name in model_order(expert):
        match, tie = matches[name], tied.get(name)
        plans.append(_plan_tensor(base, expert, name, groups[name], match, tie, name in wanted))
    _check_onebit_globs(options, plans)
    return tuple(
        FilePlan(group=group, tensors=tuple(part))
        for group in GROUPS
        for part in _shards([p for p in plans if p.group == group], expert, options)
    )


def _check_expert(expert: Checkpoint) -> None:
    """Refuse early what the format cannot hold."""
    if not len(expert):
        raise CheckpointError(f"{expert}: the checkpoint holds no tensors")
    for name in expert:
        if not is_tensor_name(name):
            problem = "is empty, longer than 1024 bytes, or holds control characters"
            raise CheckpointError(f"{expert}: tensor name {name[:60]!r} {problem}")
    for path in expert.small_files():
        if not is_path(EXPERT_FOLDER + path):
            problem = "cannot stand in a bundle (colon, backslash, control character); rename it"
            raise CheckpointError(f"{expert}: the file name {path!r} {problem}")


def _wanted(
    expert: Checkpoint, groups: Mapping[str, str], options: ConvertOptions
) -> frozenset[str]:
    """The names that preset and globs ask to be one-bit."""
    chosen = PRESETS[options.preset]
    names = {
        name
        for name in expert
        if groups[name] in chosen and is_linear_weight(name, expert.span(name).shape, groups[name])
    }
    names.update(_matching(expert, options.onebit, "--onebit"))
    names.difference_update(_matching(expert, options.exact, "--exact"))
    return frozenset(names)


def _matching(expert: Checkpoint, globs: Sequence[str], option: str) -> set[str]:
    names: set[str] = set()
    for glob in globs:
        found = {name for name in expert if fnmatchcase(name, glob)}
        if not found:
            raise UsageError(f"{option} {glob!r} matches no tensor of {expert}")
        names |= found
    return names


def _plan_tensor(
    base: Checkpoint,
    expert: Checkpoint,
    name: str,
    group: str,
    match: str | None,
    tied_to: str | None,
    wanted: bool,
) -> TensorPlan:
    if tied_to is not None:
        return TensorPlan(name=name, group=group, base=None, tied_to=tied_to)
    note = _obstacle(base, expert, name, match) if wanted else None
    return TensorPlan(name=name, group=group, base=match, onebit=wanted and note is None, note=note)


def _obstacle(base: Checkpoint, expert: Checkpoint, name: str, match: str | None) -> str | None:
    """Why a tensor cannot be one-bit, or None."""
    span = expert.span(name)
    if match is None:
        return "not in the base"
    if base.span(match).shape != span.shape:
        return "another shape than in the base"
    if not {span.dtype, base.span(match).dtype} <= HALF_AND_SINGLE:
        return f"{span.dtype} is not a float of 16 or 32 bits"
    if len(span.shape) < 2 or 0 in span.shape:
        return "not a matrix"
    return None


def _check_onebit_globs(options: ConvertOptions, plans: Sequence[TensorPlan]) -> None:
    """A glob of which nothing can be one-bit is a mistake worth stopping for."""
    for glob in options.onebit:
        found = [p for p in plans if fnmatchcase(p.name, glob)]
        if not any(p.onebit for p in found):
            reason = next((p.note for p in found if p.note), "excluded by --exact, or tied")
            raise UsageError(f"--onebit {glob!r} matches no tensor that can be one-bit ({reason})")


def _shards(
    plans: Sequence[TensorPlan], expert: Checkpoint, options: ConvertOptions
) -> list[list[TensorPlan]]:
    """Cut a group into shards by an upper bound of the stored size, known before coding."""
    shards: list[list[TensorPlan]] = []
    room = 0
    for plan in plans:
        bound = stored_bound(plan, expert, options.sign)
        if not shards or bound > room:
            shards.append([])
            room = options.shard_size
        shards[-1].append(plan)
        room -= bound
    return shards


def stored_bound(plan: TensorPlan, expert: Checkpoint, options: SignOptions) -> int:
    """Bytes that a tensor takes at most: an exact coding is taken to be as large as the tensor."""
    span = expert.span(plan.name)
    if plan.tied_to is not None:
        return 0
    if not plan.onebit:
        return span.end - span.begin
    stack, height, width = matrices(span.shape)
    lengths = {"matrix": 1, "row": height, "column": width}
    scales = sum(lengths[kind] for kind in SCALE_TENSORS[options.scale])
    return options.planes * stack * (height * -(-width // 8) + 4 * scales)
