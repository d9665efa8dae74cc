"""Tensors kept within a byte budget, each built once however many threads ask for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from threading import Lock

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheStats:
    """Counts since the beginning; `held` and `built_bytes` are bytes."""

    built: int = 0
    built_bytes: int = 0
    hits: int = 0
    evicted: int = 0
    held: int = 0


class TensorCache:
    """Least recently used tensors go first when the bytes held exceed the budget."""

    def __init__(self, budget: int) -> None:
        """`budget` in bytes; a single larger tensor is handed out and not kept."""
        self.budget = budget
        self._lock = Lock()
        self._gates: dict[Hashable, Lock] = {}
        self._tensors: OrderedDict[Hashable, torch.Tensor] = OrderedDict()
        self._stats = CacheStats()

    @property
    def stats(self) -> CacheStats:
        """A snapshot of the counters."""
        with self._lock:
            return self._stats

    def get(self, key: Hashable, build: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The tensor kept under `key`, else the one that `build` makes now.

        Of threads that ask for the same key at once, one builds and the others wait for it.
        """
        with self._lock:
            if (found := self._find(key)) is not None:
                return found
            gate = self._gates.setdefault(key, Lock())
        with gate:
            with self._lock:
                if (found := self._find(key)) is not None:
                    return found
            try:
                built = build()
                with self._lock:
                    self._keep(key, built)
            finally:
                with self._lock:
                    self._gates.pop(key, None)
        return built

    def clear(self) -> None:
        """Forget every tensor."""
        with self._lock:
            self._tensors.clear()
            self._stats = replace(self._stats, held=0)

    def _find(self, key: Hashable) -> torch.Tensor | None:
        found = self._tensors.get(key)
        if found is not None:
            self._tensors.move_to_end(key)
            self._stats = replace(self._stats, hits=self._stats.hits + 1)
        return found

    def _keep(self, key: Hashable, built: torch.Tensor) -> None:
        s = self._stats
        # What a slower thread built twice replaces the first.
        before = self._tensors.pop(key, None)
        held = s.held - (0 if before is None else before.nbytes) + built.nbytes
        self._tensors[key] = built
        evicted = 0
        while held > self.budget:
            _, dropped = self._tensors.popitem(last=False)
            held -= dropped.nbytes
            evicted += 1
        self._stats = replace(
            s,
            built=s.built + 1,
            built_bytes=s.built_bytes + built.nbytes,
            evicted=s.evicted + evicted,
            held=held,
        )
