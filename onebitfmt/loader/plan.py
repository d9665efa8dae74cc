"""What rebuilding a routed model takes: a step a tensor, from manifests alone (design 2.5-2.7).

Nothing is read or computed here, so that costs can be known, and tested, without any weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

from onebitfmt.errors import UsageError
from onebitfmt.format.dtypes import HALF_AND_SINGLE, matrices, nbytes
from onebitfmt.format.manifest import Exact, Manifest, Same, TensorEntry, Terms, Tied
from onebitfmt.matching import model_order
from onebitfmt.merge.recipe import Recipe
from onebitfmt.merge.table import METHODS

BASE: Final = "base"
TIED: Final = "tied"
SIGNS: Final = "signs"
EXPERT: Final = "expert"
MERGE: Final = "merge"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """How one tensor of the model is rebuilt.

    `how` is `base` (the base tensor itself), `tied` (the tensor `source`), `signs` (base and packed
    signs of `inputs`: possible on any device), `expert` (the selected expert's own bits) or `merge`
    (anything else). `source` is the name of the base tensor, if there is one, or the tied tensor's.
    `packed` counts bytes of signs and float32 scales that it needs on the device, `rebuilt` those
    of the result in the expert's dtype.
    """

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    how: str
    inputs: tuple[str, ...]
    source: str | None
    packed: int
    rebuilt: int


def plan(
    manifests: Mapping[str, Manifest], recipe: Recipe, *, select: str | None = None
) -> tuple[Step, ...]:
    """The steps, in model order, to one expert's model or, with `select` None, to the static merge.

    `manifests` are those of all experts in the order of the merge. The model has the tensors of
    the selected expert; without one, those that any expert has. Raises `UsageError` for an unknown
    expert.
    """
    if select is not None and select not in manifests:
        known = ", ".join(manifests)
        raise UsageError(f"no expert {select!r} here; the experts are {known}")
    if select is None:
        names = model_order({n for m in manifests.values() for n in m.tensors})
    else:
        names = model_order(manifests[select].tensors)
    return tuple(_step(name, manifests, recipe, select) for name in names)


def packed_bytes(entry: TensorEntry) -> int:
    """Bytes of a one-bit tensor's signs and float32 scale factors as the kernels take them."""
    if not isinstance(entry.coding, Terms):
        return 0
    stack, height, width = matrices(entry.shape)
    plane = stack * (height * -(-width // 8) + 4 * (height + width))
    return plane * len(entry.coding.terms)


def starts_from_selected(recipe: Recipe) -> bool:
    """True where the selected expert is the start and others are only added to it."""
    return METHODS[recipe.method].routed


def _step(name: str, manifests: Mapping[str, Manifest], recipe: Recipe, select: str | None) -> Step:
    entries = {k: m.tensors[name] for k, m in manifests.items() if name in m.tensors}
    lead = entries[select] if select is not None else next(iter(entries.values()))
    taking = _taking_part(lead, entries, recipe, select)
    how = _how(lead, entries, taking, select if starts_from_selected(recipe) else None)
    source = None if lead.base is None else lead.base.name
    if how == TIED:
        assert isinstance(lead.coding, Tied)
        source = lead.coding.to
    packed = sum(packed_bytes(entries[k]) for k in taking) if how == SIGNS else 0
    return Step(
        tensor=name,
        dtype=lead.dtype,
        shape=lead.shape,
        how=how,
        inputs=taking,
        source=source,
        packed=packed,
        rebuilt=0 if how == TIED else nbytes(lead.dtype, lead.shape),
    )


def _taking_part(
    lead: TensorEntry, entries: Mapping[str, TensorEntry], recipe: Recipe, select: str | None
) -> tuple[str, ...]:
    """Experts whose stored bytes the tensor needs: the selected one, others with a task vector."""
    if METHODS[recipe.method].combine == "none":
        return () if select is None else (select,)
    return tuple(
        k
        for k, entry in entries.items()
        if k == select or (not isinstance(entry.coding, Same) and _comparable(entry, lead))
    )


def _comparable(entry: TensorEntry, lead: TensorEntry) -> bool:
    """True where the entry has a task vector that can be added to the tensor `lead`."""
    if isinstance(entry.coding, Tied):
        return entry.shape == lead.shape
    of_base = entry.base
    return (
        of_base is not None
        and of_base.shape == entry.shape == lead.shape
        and {entry.dtype, of_base.dtype} <= HALF_AND_SINGLE
    )


def _how(
    lead: TensorEntry,
    entries: Mapping[str, TensorEntry],
    taking: tuple[str, ...],
    start: str | None,
) -> str:
    """`start` is the expert that the others are added to, None where all count alike."""
    codings = [entries[k].coding for k in taking]
    if codings and all(isinstance(c, Tied) and c == codings[0] for c in codings):
        return TIED
    if all(isinstance(c, Same) for c in codings):
        of_base = lead.base
        alike = of_base is not None and (of_base.dtype, of_base.shape) == (lead.dtype, lead.shape)
        return BASE if alike else MERGE
    if all(isinstance(c, Terms) for c in codings) and (
        start is not None or len(taking) == len(entries)
    ):
        return SIGNS
    if taking == (start,) and isinstance(codings[0], Exact):
        return EXPERT
    return MERGE


def rebuilt_bytes(steps: tuple[Step, ...]) -> int:
    """Bytes of all tensors that are not the base's own."""
    return sum(s.rebuilt for s in steps if s.how != BASE)


def elements(steps: tuple[Step, ...]) -> int:
    """The number of weights of the model, tied ones once."""
    return sum(prod(s.shape) for s in steps if s.how != TIED)
