"""What a merge has to do for each tensor, found out from names, types and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Final

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import UsageError
from onebitfmt.format.dtypes import HALF_AND_SINGLE
from onebitfmt.groups import layer_group
from onebitfmt.matching import model_order
from onebitfmt.merge.experts import ExpertSource

_BLOCK: Final = 1 << 20
_SHOWN: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """A task vector that takes part: the expert's place in the merge and its tensor's name."""

    expert: int
    name: str
    onebit: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A tensor of the merged model.

    `origin` is the base's tensor, if there is one; `start` the selected expert's, if an expert is
    selected; `inputs` are the task vectors merged into it, in the order of the experts. With no
    inputs the tensor is that of `start`, else of the base, as it is.
    """

    name: str
    group: str
    dtype: str
    shape: tuple[int, ...]
    origin: str | None
    start: Input | None
    inputs: tuple[Input, ...]

    @property
    def elements(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    def row_blocks(self) -> list[slice | None]:
        """Rows to be worked on at once, as `row_blocks` gives them."""
        return row_blocks(self.shape)

    def first_elements(self) -> list[int]:
        """The row-major index of the first element of each of those blocks."""
        inner = prod(self.shape[1:])
        return [0 if rows is None else rows.start * inner for rows in self.row_blocks()]


def row_blocks(shape: tuple[int, ...]) -> list[slice | None]:
    """Rows of the first axis in blocks of about 2^20 elements; None for a scalar, which has none.

    The shape alone decides, so that results do not depend on the number of threads.
    """
    if not shape:
        return [None]
    rows = max(1, _BLOCK // max(prod(shape[1:]), 1))
    return [slice(i, min(i + rows, shape[0])) for i in range(0, shape[0], rows)]


def plan_steps(
    base: Checkpoint, experts: Sequence[ExpertSource], select: int | None, merged: Sequence[int]
) -> tuple[dict[str, Step], list[str]]:
    """The steps in model order by tensor name, and remarks on what takes no part.

    The tensors, their types and shapes are those of the selected expert, else of the base. Raises
    `CheckpointError` for an expert of another model, `UsageError` for one that shares no tensor.
    """
    planner = _Planner(base=base, experts=experts, merged=merged, select=select)
    steps = planner.steps()
    for k in merged:
        if k not in planner.met:
            name = experts[k].name
            raise UsageError(f"expert {name} has no task vector for any tensor of {base}")
    return steps, planner.remarks(steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Planner:
    base: Checkpoint
    experts: Sequence[ExpertSource]
    merged: Sequence[int]
    select: int | None
    met: set[int] = field(default_factory=set)

    def steps(self) -> dict[str, Step]:
        """A step for each tensor of the selected expert or the base."""
        by_origin = {k: self._by_origin(k) for k in self.merged}
        reference = None if self.select is None else self.experts[self.select]
        names = model_order(self.base) if reference is None else reference.names()
        return {name: self._step(name, reference, by_origin) for name in names}

    def _by_origin(self, k: int) -> dict[str, list[str]]:
        """For each base tensor the expert's tensors that are fine-tunes of it."""
        found: dict[str, list[str]] = {}
        for name in self.experts[k].names():
            origin = self.experts[k].base_name(name, self.base)
            if origin is not None:
                found.setdefault(origin, []).append(name)
        return found

    def _step(
        self,
        name: str,
        reference: ExpertSource | None,
        by_origin: Mapping[int, Mapping[str, list[str]]],
    ) -> Step:
        if reference is None or self.select is None:
            span = self.base.span(name)
            return self._with_inputs(name, (span.dtype, span.shape), name, None, by_origin)
        start = Input(expert=self.select, name=name, onebit=reference.is_onebit(name))
        origin = reference.base_name(name, self.base)
        return self._with_inputs(name, reference.span(name), origin, start, by_origin)

    def _with_inputs(
        self,
        name: str,
        span: tuple[str, tuple[int, ...]],
        origin: str | None,
        start: Input | None,
        by_origin: Mapping[int, Mapping[str, list[str]]],
    ) -> Step:
        dtype, shape = span
        inputs = []
        for k in self.merged:
            own = _own_name(name, origin, by_origin[k])
            if own is not None and dtype in HALF_AND_SINGLE and self._takes_part(k, own, shape):
                inputs.append(Input(expert=k, name=own, onebit=self.experts[k].is_onebit(own)))
        self.met.update(one.expert for one in inputs)
        if all(self.experts[one.expert].is_same(one.name) for one in inputs):
            inputs = []  # nothing to add: bits such as -0.0 must not pass through a sum
        return Step(
            name=name,
            group=layer_group(name, shape),
            dtype=dtype,
            shape=shape,
            origin=origin,
            start=start,
            inputs=tuple(inputs),
        )

    def _takes_part(self, k: int, name: str, shape: tuple[int, ...]) -> bool:
        expert = self.experts[k]
        return expert.span(name)[1] == shape and expert.has_task_vector(name, self.base)

    def remarks(self, steps: Mapping[str, Step]) -> list[str]:
        """What people should know: tensors that take no part, and why."""
        found = []
        for k in self.merged:
            expert, by_origin = self.experts[k], self._by_origin(k)
            missing, unlike, heads, used = [], [], [], set()
            for step in steps.values():
                own = _own_name(step.name, step.origin, by_origin)
                took = {i.name for i in step.inputs if i.expert == k}
                used |= took | ({own} if own else set())
                if own is None:
                    missing.append(step.name)
                elif not took and not expert.is_same(own):
                    unlike.append(step.name)
                elif own != step.name and own in steps:
                    heads.append(step.name)
            extra = [name for name in expert.names() if name not in used]
            found += _remark(expert.name, missing, "has no such tensor, so it takes no part in")
            found += _remark(expert.name, unlike, "has another shape or type, so no part in")
            found += _remark(expert.name, heads, "has tied weights; those stand in for")
            found += _remark(expert.name, extra, "has tensors that the merged model lacks:")
        return found


def _own_name(name: str, origin: str | None, by_origin: Mapping[str, list[str]]) -> str | None:
    """The expert's tensor that belongs to a tensor of the merged model."""
    candidates = by_origin.get(origin, []) if origin is not None else []
    # The head of a tied model stands in its file as the embedding alone.
    return name if name in candidates else next(iter(candidates), None)


def _remark(expert: str, names: Sequence[str], problem: str) -> list[str]:
    if not names:
        return []
    shown = ", ".join(names[:_SHOWN]) + (f", ... ({len(names)})" if len(names) > _SHOWN else "")
    return [f"{expert} {problem} {shown}"]
