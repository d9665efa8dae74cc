from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from onebitfmt.loader.cache import TensorCache


def of(nbytes: int) -> torch.Tensor:
    return torch.zeros(nbytes, dtype=torch.uint8)


def test_a_tensor_is_built_once() -> None:
    cache = TensorCache(100)
    first = cache.get("a", lambda: of(40))
    assert cache.get("a", lambda: of(1)) is first
    assert (cache.stats.built, cache.stats.hits, cache.stats.held) == (1, 1, 40)


def test_the_least_recently_used_goes_first() -> None:
    cache = TensorCache(100)
    for key in "ab":
        cache.get(key, lambda: of(40))
    cache.get("a", lambda: of(40))
    cache.get("c", lambda: of(40))
    assert cache.stats.evicted == 1
    assert cache.stats.held == 80
    cache.get("a", lambda: of(40))
    assert cache.stats.built == 3
    cache.get("b", lambda: of(40))
    assert cache.stats.built == 4


def test_what_is_larger_than_the_budget_is_not_kept() -> None:
    cache = TensorCache(100)
    assert cache.get("a", lambda: of(101)).nbytes == 101
    assert cache.stats.held == 0
    assert cache.stats.built_bytes == 101


def test_clearing_forgets_everything() -> None:
    cache = TensorCache(100)
    cache.get("a", lambda: of(40))
    cache.clear()
    assert cache.stats.held == 0
    cache.get("a", lambda: of(40))
    assert cache.stats.built == 2


def test_a_failure_is_not_kept() -> None:
    cache = TensorCache(100)

    def fail() -> torch.Tensor:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.get("a", fail)
    assert cache.get("a", lambda: of(1)).nbytes == 1


def test_threads_that_want_the_same_wait_for_the_first() -> None:
    cache = TensorCache(100)
    started = threading.Barrier(4)
    builds = []

    def build() -> torch.Tensor:
        builds.append(1)
        time.sleep(0.02)
        return of(10)

    def ask(_: int) -> torch.Tensor:
        started.wait()
        return cache.get("a", build)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert len(builds) == 1
    assert all(t is found[0] for t in found)


def test_threads_never_hold_more_than_the_budget() -> None:
    cache = TensorCache(100)

    def ask(i: int) -> bool:
        cache.get(i % 13, lambda: of(7 + i % 5))
        return cache.stats.held <= 100

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(400)))
