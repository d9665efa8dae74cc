"""Prepare the task vectors of a tensor: what to trim or drop is settled before blocks are merged.

Thresholds and norms belong to a whole tensor, or the whole model; with them known, every block
can be merged by itself, in any order and by any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import RLock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.merge.dare import Drop, drop, inverse_density, sum_ratio
from onebitfmt.merge.experts import ExpertSource
from onebitfmt.merge.masks import mask_key
from onebitfmt.merge.plan import Input, Step, row_blocks
from onebitfmt.merge.recipe import Recipe
from onebitfmt.merge.table import METHODS
from onebitfmt.merge.ties import PRESETS
from onebitfmt.merge.trim import Part, Run, Trim, at_least, largest, trim

Array = NDArray[Any]
# flat float32 task vector, index of its first element -> what is left of it
Sparsify = Callable[[Array, int], Array]

# Task vectors of a tensor that are decoded once and held, though several passes need them.
_HELD_ELEMENTS: Final = 1 << 24


@dataclass(kw_only=True)
class ModelTrims:
    """Thresholds over whole experts, found once; safe for several threads."""

    base: Checkpoint
    experts: Sequence[ExpertSource]
    _found: dict[tuple[int, str, float], Trim | None] = field(default_factory=dict)
    _lock: RLock = field(default_factory=RLock)

    def of(self, expert: int, preset: str, density: float, run: Run) -> Trim | None:
        """The trim of an expert's whole task vector; tied tensors count once."""
        key = (expert, preset, density)
        with self._lock:
            if key not in self._found:
                self._found[key] = self._trim(expert, preset, density, run)
            return self._found[key]

    def _trim(self, expert: int, preset: str, density: float, run: Run) -> Trim | None:
        source = self.experts[expert]
        tied = source.tied()
        parts: list[Part] = []
        elements = 0
        for name in source.names():
            if name in tied or not source.has_task_vector(name, self.base):
                continue
            shape = source.span(name)[1]
            parts += [
                partial(read_task_vector, source, name, self.base, rows)
                for rows in row_blocks(shape)
            ]
            elements += int(np.prod(shape, dtype=np.int64))
        return at_least(parts, PRESETS[preset].position(elements, density), run)


def read_task_vector(
    source: ExpertSource, name: str, base: Checkpoint, rows: slice | None
) -> Array:
    """A task vector that is known to exist, flat."""
    values = source.task_vector(name, base, rows)
    assert values is not None  # `Step.inputs` are those that have one
    return values.reshape(-1)


@dataclass(kw_only=True)
class Vectors:
    """The task vectors of one tensor, block by block, held where they are small enough."""

    step: Step
    base: Checkpoint
    experts: Sequence[ExpertSource]
    _held: dict[tuple[int, int], Array] = field(default_factory=dict)

    def parts(self, one: Input) -> list[Part]:
        """Something to call for each block of `Step.row_blocks`."""
        return [partial(self.read, one, i) for i in range(len(self.step.row_blocks()))]

    def read(self, one: Input, block: int) -> Array:
        """A block of a task vector, flat float32; not to be written to."""
        key = (one.expert, block)
        if (held := self._held.get(key)) is not None:
            return held
        rows = self.step.row_blocks()[block]
        values = read_task_vector(self.experts[one.expert], one.name, self.base, rows)
        if self.step.elements <= _HELD_ELEMENTS and one is not self.step.start:
            self._held[key] = values
        return values


@dataclass(frozen=True, kw_only=True, slots=True)
class Sparsifier:
    """Settles, for a recipe, what happens to each task vector of a tensor."""

    recipe: Recipe
    names: Sequence[str]
    model_trims: ModelTrims

    def settle(self, vectors: Vectors, run: Run) -> list[Sparsify | None]:
        """For each input of the tensor what to do to its blocks; None leaves them as they are."""
        return [self._settle(vectors, one, run) for one in vectors.step.inputs]

    def leaves_whole(self, step: Step, one: Input) -> bool:
        """True where a task vector is merged without trimming or dropping."""
        method = METHODS[self.recipe.method]
        exempt = PRESETS[self.recipe.preset].exempt_onebit and one.onebit
        if method.sparsify == "none" or (method.sparsify == "trim" and exempt):
            return True
        return self.recipe.density_of(step.group) >= 1.0

    def _settle(self, vectors: Vectors, one: Input, run: Run) -> Sparsify | None:
        step = vectors.step
        if self.leaves_whole(step, one):
            return None
        density = self.recipe.density_of(step.group)
        if density <= 0.0:
            return _nothing
        if METHODS[self.recipe.method].sparsify == "drop":
            return self._dropped(vectors, one, density, run)
        return self._trimmed(vectors, one, density, run)

    def _trimmed(self, vectors: Vectors, one: Input, density: float, run: Run) -> Sparsify | None:
        preset = PRESETS[self.recipe.preset]
        elements = vectors.step.elements
        if preset.whole_model:
            cut = self.model_trims.of(one.expert, self.recipe.preset, density, run)
        elif elements == 0:
            cut = None
        elif preset.count is not None:
            cut = largest(vectors.parts(one), elements, preset.count(elements, density), run)
        else:
            cut = at_least(vectors.parts(one), preset.position(elements, density), run)
        if cut is None:
            return None
        if not self.recipe.rescales:
            return lambda values, first: trim(values, cut, first)
        factor = self._ratio(vectors, one, lambda values, first: trim(values, cut, first), run)
        return lambda values, first: trim(values, cut, first) * np.float32(factor)

    def _dropped(self, vectors: Vectors, one: Input, density: float, run: Run) -> Sparsify:
        key = mask_key(self.recipe.seed, self.names[one.expert], vectors.step.name)
        plain = Drop(key=key, density=density)
        if not self.recipe.rescales:
            factor = 1.0
        elif self.recipe.preset == "mergekit":
            factor = self._ratio(vectors, one, lambda v, first: drop(v, plain, first), run)
        else:
            factor = inverse_density(density)
        scaled = Drop(key=key, density=density, factor=factor)
        return lambda values, first: drop(values, scaled, first)

    def _ratio(self, vectors: Vectors, one: Input, sparsify: Sparsify, run: Run) -> float:
        before = vectors.parts(one)
        firsts = vectors.step.first_elements()
        after = [
            partial(lambda part, first: sparsify(part(), first), part, first)
            for part, first in zip(before, firsts, strict=True)
        ]
        return sum_ratio(before, after, run)


def _nothing(values: Array, first: int) -> Array:
    return np.zeros_like(values)
