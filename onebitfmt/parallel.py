"""One thread pool for work on blocks and chunks; the kernels in it hold no GIL."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def available_cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """A pool of threads that gives results in order and never runs far ahead of the consumer."""

    def __init__(self, jobs: int | None = None) -> None:
        """`jobs` threads; by default one for each available core."""
        self.jobs = jobs or available_cores()
        self._pool = ThreadPoolExecutor(self.jobs, thread_name_prefix="onebitfmt")

    def __enter__(self) -> Workers:
        """Give the pool itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Cancel what has not begun and wait for what has."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, function: Callable[[], R]) -> Future[R]:
        """Run a function in the pool."""
        return self._pool.submit(function)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """function(item) for each item, in order; at most two tasks a thread are held at a time.

        When a task fails, those not yet begun are cancelled and its error is raised.
        """
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(self._pool.submit(function, item))
                if len(pending) > 2 * self.jobs:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            # Tasks still running read buffers that the caller is about to release.
            for future in pending:
                if not future.cancelled():
                    future.exception()
