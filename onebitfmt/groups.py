"""Which tensor of a checkpoint belongs to which layer group.

The patterns of `onebitfmt.families` decide, without knowing the architecture; overrides from the
user come on top. A tensor whose name says nothing falls to `other`, which is never one-bit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import lru_cache
from math import prod
from typing import Final

from onebitfmt.errors import UsageError
from onebitfmt.families import FAMILIES, NOT_LINEAR, Rule

GROUPS: Final[tuple[str, ...]] = (
    "attention",
    "mlp",
    "embedding",
    "head",
    "norm",
    "router",
    "other",
)

_LINEAR_GROUPS: Final = frozenset({"attention", "mlp"})
_MIN_ELEMENTS: Final = 4096
_MIN_COLUMNS: Final = 8
_NEAR_NAMES: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Override:
    """Puts every tensor whose full name matches a glob into a group.

    The glob is that of `fnmatch.fnmatchcase`: `*` crosses dots, case counts.
    """

    pattern: str
    group: str


def _compile(patterns: Sequence[str]) -> re.Pattern[str]:
    """Turn patterns of the table into one expression for the whole of a path."""
    globs = (
        re.escape(pattern).replace(r"\*\*", ".*").replace(r"\*", "[^.]*") for pattern in patterns
    )
    return re.compile(rf"(?:.*\.)?(?:{'|'.join(globs)})", re.DOTALL)


_RULES: Final[tuple[tuple[re.Pattern[str], Rule], ...]] = tuple(
    (_compile(rule.patterns), rule) for family in FAMILIES for rule in family.rules
)
_NOT_LINEAR: Final = _compile(NOT_LINEAR)


def _path(name: str) -> str:
    """Drop the components of a name that are numbers: layers and experts then look alike."""
    return ".".join(part for part in name.split(".") if not part.isdecimal())


# A model has thousands of tensors but only dozens of paths.
@lru_cache(maxsize=4096)
def _group_of_path(path: str, ndim: int) -> str:
    for expression, rule in _RULES:
        if rule.ndim in (None, ndim) and expression.fullmatch(path):
            return rule.group
    return "other"


def layer_group(name: str, shape: tuple[int, ...]) -> str:
    """Return the group of a tensor: the first rule of the table that its name meets, or `other`.

    Prefixes and layer numbers do not matter. Of the shape only the number of dimensions counts,
    and only where a name alone means two things.
    """
    return _group_of_path(_path(name), len(shape))


def assign_groups(
    shapes: Mapping[str, tuple[int, ...]], overrides: Sequence[Override] = ()
) -> dict[str, str]:
    """Return the group of every tensor of a checkpoint, in the order of `shapes`.

    Where several overrides match a tensor, the last one wins. Raises `UsageError` when an override
    names an unknown group or matches no tensor, so that a misspelt pattern never passes unseen.
    """
    groups = {name: layer_group(name, shape) for name, shape in shapes.items()}
    for override in overrides:
        if override.group not in GROUPS:
            raise UsageError(
                f"override {override.pattern!r}: unknown group {override.group!r}; "
                f"the groups are {', '.join(GROUPS)}"
            )
        matches = [name for name in groups if fnmatchcase(name, override.pattern)]
        if not matches:
            raise UsageError(_no_match(override.pattern, groups))
        groups.update(dict.fromkeys(matches, override.group))
    return groups


def is_linear_weight(name: str, shape: tuple[int, ...], group: str) -> bool:
    """Tell whether a tensor may be one-bit.

    It may when it is a matrix, or a stack of matrices, of at least 4096 elements in attention or
    MLP. Biases with two dimensions, convolution kernels, tables of relative positions and the
    parts of already quantised weights are none. `group` is the tensor's group as assigned, so an
    override counts.
    """
    if group not in _LINEAR_GROUPS or prod(shape) < _MIN_ELEMENTS:
        return False
    # A vector stays one, however many axes of length 1 it is given.
    if sum(axis > 1 for axis in shape) < 2:
        return False
    # A stack has real columns in its last axis; a convolution has its kernel there.
    if len(shape) > 2 and shape[-1] < _MIN_COLUMNS:
        return False
    return _NOT_LINEAR.fullmatch(_path(name)) is None


def _no_match(pattern: str, names: Iterable[str]) -> str:
    """Word the error for a pattern that matches nothing, with the names nearest to it."""
    samples: dict[str, str] = {}
    for name in names:
        samples.setdefault(_path(name), name)
    wanted = _path(pattern.replace("*", ""))
    # One sample a path, or the nearest names would be one tensor in three layers.
    near = get_close_matches(wanted, samples, n=_NEAR_NAMES, cutoff=0.3)
    hint = f"; near names: {', '.join(samples[path] for path in near)}" if near else ""
    return f"override {pattern!r} matches no tensor{hint}"
