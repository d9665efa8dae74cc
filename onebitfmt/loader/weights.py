"""A lazy mapping from tensor names to the tensors of the active expert's model, on a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from threading import RLock
from typing import Final

import torch

from onebitfmt.bundle import Bundle
from onebitfmt.checkpoint import Checkpoint, digest, fingerprint
from onebitfmt.errors import UsageError
from onebitfmt.kernels import gpu
from onebitfmt.loader.base import BaseTensors
from onebitfmt.loader.cache import CacheStats, TensorCache
from onebitfmt.loader.packed import (
    DTYPE_NAMES,
    TORCH_DTYPES,
    PackedMatrix,
    packed_matrices,
    to_bits,
    to_torch,
    torch_device,
    torch_dtype,
)
from onebitfmt.loader.plan import BASE, MERGE, SIGNS, TIED, Step, plan, starts_from_selected
from onebitfmt.merge.engine import Merger
from onebitfmt.merge.experts import ExpertSource
from onebitfmt.merge.recipe import Recipe
from onebitfmt.parallel import Workers
from onebitfmt.source import open_checkpoint

Expert = str | Path | Bundle | ExpertSource
Experts = Mapping[str, Expert] | Sequence[Expert]

# Where one-bit tensors are rebuilt from bits that stay packed. On the CPU they are mapped and the
# kernels of the merge are faster.
REBUILDS_PACKED: Final = frozenset({"cuda", "xpu", "mps"})
# Stands for the expert in cache keys of tensors that are the base's own in every model.
_SHARED: Final = "\0base"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """Counts and bytes: the cache's, tensors rebuilt `on_device`, and what is kept besides."""

    cache: CacheStats
    on_device: int
    packed: int
    base: int


class RoutedWeights(Mapping[str, torch.Tensor]):
    """The tensors of the active expert's merged model, each rebuilt when it is first asked for.

    A tensor has the bits that `obd merge` writes for the active expert, on `device`. Rebuilt
    tensors are kept within a byte budget, least recently used ones go first. On a GPU one-bit
    tensors are rebuilt from bits that stay packed there. The base is never changed, so that
    switching back gives the same bits. Safe to use from several threads.
    """

    def __init__(
        self,
        base: str | Path | Checkpoint,
        experts: Experts,
        recipe: Recipe,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        budget: int | None = None,
        keep_base: str = "device",
    ) -> None:
        """`experts` are bundles or checkpoints, open or as paths; a mapping gives them names.

        Floats are rebuilt in the expert's own dtype and then converted to `dtype`. `budget` is by
        default what the largest of the models needs. `keep_base` tells where base tensors stay
        between uses: on the `device`, in `cpu` memory, or on `disk` (mapped, and read again).

        No expert is active at first: that is the static merge of all. Raises `UsageError`,
        `CheckpointError`, `FormatError`.
        """
        self.base = base if isinstance(base, Checkpoint) else open_checkpoint(base)
        self.recipe = recipe
        self.device = torch_device(device)
        self.dtype = torch_dtype(dtype)
        self._sources = {s.name: s for s in _sources(experts)}
        self._mergers: dict[str | None, Merger] = {}
        self._plans: dict[str | None, dict[str, Step]] = {}
        self._active: str | None = None
        self._lock = RLock()
        self._bases = BaseTensors(self.base, self.device, keep_base)
        self._packed: dict[tuple[str, str], tuple[PackedMatrix, ...]] = {}
        self._on_device = 0
        largest = max(map(self.model_bytes, self.experts)) if budget is None else budget
        self._cache = TensorCache(largest)

    # --- the mapping ------------------------------------------------------------------------------

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts' names, in the order of the merge."""
        return tuple(self._sources)

    @property
    def active(self) -> str | None:
        """The expert whose model the mapping shows; None for the static merge of all."""
        return self._active

    @property
    def budget(self) -> int:
        """The most bytes of rebuilt tensors that are kept."""
        return self._cache.budget

    @property
    def stats(self) -> Stats:
        """A snapshot of the counters."""
        with self._lock:
            packed = sum(m.nbytes for stack in self._packed.values() for m in stack)
            on_device = self._on_device
        return Stats(
            cache=self._cache.stats, on_device=on_device, packed=packed, base=self._bases.nbytes
        )

    def activate(self, expert: str | None) -> None:
        """Show another expert's model; nothing is rebuilt yet. Raises `UsageError`."""
        self.steps(expert)
        self._active = expert

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensor(name, self._active)

    def __contains__(self, name: object) -> bool:
        return name in self.steps(self._active)

    def __iter__(self) -> Iterator[str]:
        return iter(self.steps(self._active))

    def __len__(self) -> int:
        return len(self.steps(self._active))

    # --- whole models -----------------------------------------------------------------------------

    def steps(self, expert: str | None) -> Mapping[str, Step]:
        """How each tensor of an expert's model is rebuilt, in model order."""
        with self._lock:
            if expert not in self._plans:
                self._plans[expert] = self._planned(expert)
            return self._plans[expert]

    def model_bytes(self, expert: str | None) -> int:
        """Bytes, in the dtype used here, of an expert's tensors that are not the base's own."""
        return sum(
            self._final(TORCH_DTYPES[s.dtype]).itemsize * prod(s.shape)
            for s in self.steps(expert).values()
            if s.how not in (BASE, TIED)
        )

    def materialize(self, *, jobs: int | None = None) -> None:
        """Rebuild every tensor of the active model now, in `jobs` threads."""
        expert = self._active
        with Workers(jobs) as workers:
            for _ in workers.map(lambda name: self.tensor(name, expert), self.steps(expert)):
                pass

    def digest(self) -> str:
        """One digest of the active model: names, types, shapes and bits of all tensors.

        It is the fingerprint (spec section 7) of the checkpoint that `obd merge` writes.
        """
        expert = self._active
        rows = {}
        for name in self.steps(expert):
            tensor = self.tensor(name, expert)
            rows[name] = (DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), digest(to_bits(tensor)))
        return fingerprint(rows)

    def clear(self) -> None:
        """Forget all rebuilt tensors; packed bits and base tensors stay."""
        self._cache.clear()

    def _merger(self, expert: str | None) -> Merger:
        with self._lock:
            if expert is not None and expert not in self._sources:
                known = ", ".join(self._sources)
                raise UsageError(f"no expert {expert!r} here; the experts are {known}")
            if expert not in self._mergers:
                if self._mergers:
                    merger = next(iter(self._mergers.values())).select(expert)
                else:
                    recipe = self.recipe.with_select(expert)
                    merger = Merger(self.base, list(self._sources.values()), recipe)
                self._mergers[expert] = merger
            return self._mergers[expert]

    def _planned(self, expert: str | None) -> dict[str, Step]:
        merger = self._merger(expert)
        bundles = {name: s.bundle for name, s in self._sources.items()}
        manifests = {name: b.manifest for name, b in bundles.items() if b is not None}
        known: dict[str, Step] = {}
        if len(manifests) == len(bundles):
            known = {s.tensor: s for s in plan(manifests, self.recipe, select=expert)}
        steps = {}
        for name in merger.names:
            dtype, shape = merger.span(name)
            step = known.get(name)
            # The merge has the last word: it also finds tensors that go by another name elsewhere.
            if (
                step is None
                or (step.dtype, step.shape) != (dtype, shape)
                or any(name not in manifests[k].tensors for k in merger.inputs(name))
            ):
                step = Step(
                    tensor=name, dtype=dtype, shape=shape, how=MERGE, inputs=self.experts,
                    source=None, packed=0, rebuilt=TORCH_DTYPES[dtype].itemsize * prod(shape),
                )  # fmt: skip
            steps[name] = step
        return steps

    # --- one tensor -------------------------------------------------------------------------------

    def tensor(self, name: str, expert: str | None) -> torch.Tensor:
        """A tensor of any expert's model, whichever is active. Raises `KeyError` for its name."""
        steps = self.steps(expert)
        step = steps[name]
        if step.how == TIED and step.source is not None and step.source in steps:
            return self.tensor(step.source, expert)
        if step.how == BASE and self._base_is_right(step, expert):
            return self._shared(step)
        return self._cache.get((expert, name), lambda: self._build(step, expert))

    def _shared(self, step: Step) -> torch.Tensor:
        """The base's own tensor: kept by policy where it needs no conversion, else in the cache."""
        assert step.source is not None
        source = step.source
        final = self._final(TORCH_DTYPES[step.dtype])
        if self._bases.stays and final == TORCH_DTYPES[step.dtype]:
            return self._bases.tensor(source)
        return self._cache.get((_SHARED, source), lambda: self._bases.tensor(source).to(final))

    def _build(self, step: Step, expert: str | None) -> torch.Tensor:
        # A model may run in inference mode, but tensors made in it could not be trained on later.
        with torch.inference_mode(False), torch.no_grad():
            found = None
            if step.how == SIGNS and self.device.type in REBUILDS_PACKED:
                found = self._from_packed(step, expert)
            if found is None:
                found = to_torch(self._merger(expert).tensor(step.tensor)).to(self.device)
                self._bases.release(step.source)
            return found.to(self._final(found.dtype))

    def _from_packed(self, step: Step, expert: str | None) -> torch.Tensor | None:
        """A tensor all of whose inputs are one-bit, rebuilt on the device; None where not here."""
        inputs, rule = step.inputs, None
        merger, routed = self._merger(expert), starts_from_selected(self.recipe)
        if routed and expert is not None and (len(inputs) == 1 or not merger.inputs(step.tensor)):
            inputs = (expert,)
        elif (found := merger.rule(step.tensor)) is not None:
            inputs, rule = found
        else:
            return None
        if not self._base_is_right(step, expert) or step.source is None:
            return None
        kernels = gpu.choose(self.device)
        dtype = TORCH_DTYPES[step.dtype]
        stacks = [self._planes(name, step.tensor) for name in inputs]
        base = self._bases.tensor(step.source).reshape(-1, *step.shape[-2:])
        out = torch.empty(base.shape, dtype=dtype, device=self.device)
        for s in range(base.shape[0]):
            planes = [(m[s].bits, m[s].rows, m[s].columns) for m in stacks]
            if rule is None:
                kernels.unpack_add(base[s], *planes[0], dtype=dtype, out=out[s])
            else:
                kernels.merge_add(base[s], planes, rule, dtype=dtype, out=out[s])
        with self._lock:
            self._on_device += 1
        return out.reshape(step.shape)

    def _planes(self, expert: str, name: str) -> tuple[PackedMatrix, ...]:
        key = (expert, name)
        with self._lock:
            if key in self._packed:
                return self._packed[key]
        bundle = self._sources[expert].bundle
        assert bundle is not None
        packed = packed_matrices(bundle, name, self.device)
        with self._lock:
            return self._packed.setdefault(key, packed)

    def _base_is_right(self, step: Step, expert: str | None) -> bool:
        """True where every bundle that the tensor comes from was made against this base tensor.

        Where not, the general path is taken, which refuses the base and says why.
        """
        names = step.inputs or ((expert,) if expert is not None else self.experts)
        for name in names:
            bundle = self._sources[name].bundle
            entry = None if bundle is None else bundle.manifest.tensors.get(step.tensor)
            if entry is None or entry.base is None or not self._bases.holds(entry.base):
                return False
        return True

    def _final(self, dtype: torch.dtype) -> torch.dtype:
        return self.dtype if self.dtype is not None and dtype.is_floating_point else dtype


def _sources(experts: Experts) -> list[ExpertSource]:
    if isinstance(experts, Mapping):
        found = [_source(expert, name) for name, expert in experts.items()]
    else:
        found = [_source(expert, None) for expert in experts]
    names = [s.name for s in found]
    if not found or len(set(names)) != len(names):
        raise UsageError(f"experts need names of their own, and at least one; got {names}")
    return found


def _source(expert: Expert, name: str | None) -> ExpertSource:
    if isinstance(expert, ExpertSource):
        return expert
    if isinstance(expert, Bundle):
        own = name or expert.manifest.expert.name
        return ExpertSource(name=own, bundle=expert, checkpoint=None)
    return ExpertSource.open(expert, name=name)
