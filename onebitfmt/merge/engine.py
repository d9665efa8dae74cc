"""The engine: one base, open experts and a recipe become a model, tensor by tensor.

With task vectors d_j of the merged experts and their merge t, a tensor is base + lambda * t. With
a selected expert k it is base + (d_k + lambda * t) where d_k is one-bit, and expert k's tensor +
lambda * t where that is kept exactly. All of it in float32, rounded once to the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebitfmt.checkpoint import Checkpoint, Tensor
from onebitfmt.codecs.floats import from_float32, to_float32
from onebitfmt.errors import UsageError
from onebitfmt.merge import fast
from onebitfmt.merge.average import average
from onebitfmt.merge.experts import ExpertSource, flat_blocks
from onebitfmt.merge.lookup import Elementwise
from onebitfmt.merge.plan import Input, Step, plan_steps
from onebitfmt.merge.recipe import Recipe
from onebitfmt.merge.sparsify import ModelTrims, Sparsifier, Sparsify, Vectors
from onebitfmt.merge.table import METHODS, Method
from onebitfmt.merge.task_arithmetic import add_up, mean_divisor
from onebitfmt.merge.ties import PRESETS, elect, votes
from onebitfmt.merge.trim import Run
from onebitfmt.parallel import Workers

Array = NDArray[Any]


class Merger:
    """A merged model whose tensors are made when they are asked for.

    The tensors are those of the selected expert, else of the base: names, types and shapes. The
    routed methods (`onebit_merging`, `select`) merge the other experts into the selected one;
    without one they merge all into the base, or give the base. Every tensor is a function of the
    inputs alone: the same bits whole or in blocks, with any number of threads, in any order.
    """

    def __init__(self, base: Checkpoint, experts: Sequence[ExpertSource], recipe: Recipe) -> None:
        """Plan the merge; reads no weights.

        Raises `UsageError` where recipe and experts do not fit together, `CheckpointError` for an
        expert of another model.
        """
        self.base = base
        # By name, since sums in float32 depend on the order and callers list experts in any.
        self.experts = tuple(sorted(experts, key=lambda expert: expert.name))
        self.recipe = recipe
        self._names = [expert.name for expert in self.experts]
        _check_names(self._names, recipe)
        self._lock = RLock()
        self._majority: bool | None = None
        self._trims = ModelTrims(base=base, experts=self.experts)
        method = METHODS[recipe.method]
        self._select = None if recipe.select is None else self._names.index(recipe.select)
        merged = [k for k in range(len(experts)) if not (method.routed and k == self._select)]
        merged = [] if method.combine == "none" else merged
        self._steps, self._notes = plan_steps(base, self.experts, self._select, merged)
        self.names: list[str] = list(self._steps)

    def select(self, expert: str | None) -> Merger:
        """The same merge with another selected expert, or none; open files are shared.

        Raises `UsageError` for an unknown one.
        """
        other = Merger(self.base, self.experts, self.recipe.with_select(expert))
        other._trims = self._trims
        return other

    @property
    def selected(self) -> ExpertSource | None:
        """The selected expert."""
        return None if self._select is None else self.experts[self._select]

    def notes(self) -> list[str]:
        """What was skipped or treated specially, for people."""
        return list(self._notes)

    def step(self, name: str) -> Step:
        """What the merge does for a tensor. Raises `UsageError` for an unknown name."""
        try:
            return self._steps[name]
        except KeyError:
            raise UsageError(f"the merged model has no tensor {name!r}") from None

    def span(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Dtype and shape of a merged tensor. Raises `UsageError` for an unknown name."""
        step = self.step(name)
        return step.dtype, step.shape

    def inputs(self, name: str) -> list[str]:
        """The experts whose task vectors are merged into a tensor, without the selected one."""
        return [self._names[one.expert] for one in self._merged(self.step(name)).inputs]

    # --- tensors ---------------------------------------------------------------------------------

    def tensor(self, name: str) -> Tensor:
        """A merged tensor as bit patterns. Raises `FormatError`, `BaseMismatchError`."""
        step = self._merged(self.step(name))
        if not step.inputs:
            return self._untouched(step)
        block = self._prepared(step, map)
        parts = [block(i) for i in range(len(step.row_blocks()))]
        flat = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return Tensor(dtype=step.dtype, bits=flat.reshape(step.shape))

    def blocks(self, name: str, workers: Workers) -> Iterator[Array]:
        """A merged tensor as flat blocks of bit patterns in row-major order, in bounded memory."""
        step = self._merged(self.step(name))
        if step.inputs:
            yield from workers.map(self._prepared(step, workers.map), range(len(step.row_blocks())))
        elif step.start is not None:
            yield from self.experts[step.start.expert].blocks(step.start.name, self.base, workers)
        else:
            yield from flat_blocks(self._untouched(step).bits)

    def release(self, name: str) -> None:
        """Let go of the memory pages of a tensor's inputs."""
        step = self.step(name)
        for one in (*step.inputs, *(() if step.start is None else (step.start,))):
            self.experts[one.expert].release(one.name, self.base)
        if step.origin is not None:
            self.base.release(step.origin)

    def rule(self, name: str) -> tuple[tuple[str, ...], Elementwise] | None:
        """The merge of a tensor all of whose inputs are one-bit, if it is a rule on single weights.

        Gives the experts' names in order, the selected one included, and the rule on their task
        vectors, whose result is added to the base. None where the general path is needed, or
        nothing is merged.
        """
        step = self._merged(self.step(name))
        start = self._added(step)
        if not step.inputs or (start is not None and not start.onebit):
            return None
        rule = self._rule(step)
        return None if rule is None else (self._in_order(step, start), rule)

    # --- how -------------------------------------------------------------------------------------

    @property
    def _method(self) -> Method:
        return METHODS[self.recipe.method]

    def _added(self, step: Step) -> Input | None:
        """The selected expert's tensor where the others are merged into it."""
        return step.start if self._method.routed else None

    def _scale(self, step: Step) -> float:
        return self.recipe.lambda_of(step.group, onebit=any(one.onebit for one in step.inputs))

    def _merged(self, step: Step) -> Step:
        """The step without inputs that count for nothing: the expert then keeps its own bits."""
        if self._added(step) is not None and step.inputs and self._scale(step) == 0.0:
            return replace(step, inputs=())
        return step

    def _weights(self, step: Step) -> list[np.float32]:
        return [
            np.float32(self.recipe.weights.get(self._names[one.expert], 1.0)) for one in step.inputs
        ]

    def _untouched(self, step: Step) -> Tensor:
        if step.start is not None:
            return self.experts[step.start.expert].tensor(step.start.name, self.base)
        assert step.origin is not None  # without a selected expert tensors are the base's
        return self.base.tensor(step.origin)

    def _sparsifier(self) -> Sparsifier:
        return Sparsifier(recipe=self.recipe, names=self._names, model_trims=self._trims)

    def _prepared(self, step: Step, run: Run) -> Callable[[int], Array]:
        """What gives the merged bits of each block of a tensor, once trimming is settled."""
        start = self._added(step)
        for one in (*step.inputs, *(() if start is None else (start,))):
            self.experts[one.expert].check_base(one.name, self.base)
        rule = self._rule(step)
        if rule is not None:
            inputs = self._inputs_in_order(step, start)
            planes = [self.experts[one.expert].planes(one.name) for one in inputs]
            return partial(fast.block, step, planes, rule, self._origin(step))
        vectors = Vectors(step=step, base=self.base, experts=self.experts)
        settled = self._sparsifier().settle(vectors, run)
        return partial(self._block, vectors, settled)

    def _block(self, vectors: Vectors, settled: Sequence[Sparsify | None], i: int) -> Array:
        step = vectors.step
        start = self._added(step)
        origin = self._origin(step)
        with np.errstate(all="ignore"):
            merged = self._combine(step, self._sparse(vectors, settled, i))
            merged = merged * np.float32(self._scale(step))
            if start is not None and start.onebit:
                merged = vectors.read(start, i) + merged
            value = origin(step.row_blocks()[i])
            return from_float32(
                to_float32(value.bits.reshape(-1), value.dtype) + merged, step.dtype
            )

    def _origin(self, step: Step) -> Callable[[slice | None], Tensor]:
        """What the merged task vector is added to, by rows of the first axis."""
        start = self._added(step)
        if start is not None and not start.onebit:
            return partial(self.experts[start.expert].tensor, start.name, self.base)
        assert step.origin is not None  # a task vector has its base tensor
        whole = self.base.tensor(step.origin)
        return lambda rows: whole if rows is None else replace(whole, bits=whole.bits[rows])

    def _sparse(self, vectors: Vectors, settled: Sequence[Sparsify | None], i: int) -> list[Array]:
        first = vectors.step.first_elements()[i]
        found = []
        for one, sparsify in zip(vectors.step.inputs, settled, strict=True):
            values = vectors.read(one, i)
            found.append(values if sparsify is None else sparsify(values, first))
        return found

    def _combine(self, step: Step, vectors: Sequence[Array]) -> Array:
        weights = self._weights(step)
        if self._method.combine == "mean":
            return average(vectors, weights)
        if self._method.combine == "sum":
            return add_up(vectors, weights, normalize=self.recipe.normalizes)
        majority = self._majority_plus if PRESETS[self.recipe.preset].majority else None
        return elect(vectors, weights, normalize=self.recipe.normalizes, majority=majority)

    def _majority_plus(self) -> bool:
        """The sign that wins over the whole model; asked only where votes cancel out."""
        with self._lock:
            if self._majority is None:
                self._majority = sum(self._votes(step) for step in self._steps.values()) > 0
            return self._majority

    def _votes(self, step: Step) -> int:
        if not step.inputs:
            return 0
        vectors = Vectors(step=step, base=self.base, experts=self.experts)
        # Not with the pool: this runs inside one of its threads.
        settled = self._sparsifier().settle(vectors, map)
        weights = self._weights(step)
        blocks = range(len(step.row_blocks()))
        return sum(votes(self._sparse(vectors, settled, i), weights) for i in blocks)

    # --- merges that look at single weights ------------------------------------------------------

    def _inputs_in_order(self, step: Step, start: Input | None) -> list[Input]:
        """All one-bit inputs in the order of the experts."""
        known = list(step.inputs)
        if start is not None and start.onebit:
            known.append(start)
        return sorted(known, key=lambda one: one.expert)

    def _in_order(self, step: Step, start: Input | None) -> tuple[str, ...]:
        return tuple(self._names[one.expert] for one in self._inputs_in_order(step, start))

    def _rule(self, step: Step) -> Elementwise | None:
        sparsifier = self._sparsifier()
        elects = self._method.combine == "elect"
        whole = all(one.onebit and sparsifier.leaves_whole(step, one) for one in step.inputs)
        if not whole or (elects and PRESETS[self.recipe.preset].majority):
            return None
        start = self._added(step)
        inputs = self._inputs_in_order(step, start)
        given = dict(zip((one.expert for one in step.inputs), self._weights(step), strict=True))
        weights = tuple(float(given.get(one.expert, 1.0)) for one in inputs)
        shares, divisor = None, 1.0
        if elects and not self.recipe.normalizes:
            shares = (0.0,) * len(inputs)
        elif elects and any(weight != 1.0 for weight in weights):
            shares = weights
        elif not elects and self.recipe.normalizes:
            divisor = float(mean_divisor(self._weights(step)))
        return Elementwise(
            weights=weights,
            select=inputs.index(start) if start in inputs else None,
            elect=elects,
            shares=shares,
            divisor=divisor,
            scale=self._scale(step),
        )


def _check_names(names: Sequence[str], recipe: Recipe) -> None:
    if not names:
        raise UsageError("a merge needs at least one expert")
    if len(set(names)) != len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two experts are called {double!r}; give them names of their own")
    known = ", ".join(names)
    if recipe.select is not None and recipe.select not in names:
        raise UsageError(f"the selected expert {recipe.select!r} is not among {known}")
    for name in recipe.weights:
        if name not in names:
            raise UsageError(f"the recipe has a weight for {name!r}, which is not among {known}")
