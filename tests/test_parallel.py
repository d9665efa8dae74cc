from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from onebitfmt.parallel import Workers, available_cores

PATIENCE = 20.0


class Gate:
    """An event that fails the test instead of waiting for ever."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def open(self) -> None:
        self._event.set()

    def wait(self) -> None:
        assert self._event.wait(PATIENCE)


class Counted:
    """Numbers from zero; `taken` tells how many were asked for."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        while True:
            self.taken += 1
            yield self.taken - 1


def square(n: int) -> int:
    return n * n


@pytest.mark.parametrize("jobs", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_results_are_those_of_map(count: int, jobs: int) -> None:
    with Workers(jobs) as workers:
        assert list(workers.map(square, range(count))) == [n * n for n in range(count)]


def test_order_is_kept_when_the_first_ends_last() -> None:
    gate = Gate()
    ended = []

    def work(n: int) -> int:
        if n == 0:
            gate.wait()
        ended.append(n)
        if n == 3:
            gate.open()
        return n

    with Workers(2) as workers:
        assert list(workers.map(work, range(6))) == list(range(6))
    assert ended.index(0) > ended.index(3)


def test_tasks_run_side_by_side() -> None:
    meeting = threading.Barrier(3, timeout=PATIENCE)
    with Workers(3) as workers:
        assert sorted(workers.map(lambda _: meeting.wait(), range(3))) == [0, 1, 2]


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_look_ahead_is_bounded(jobs: int) -> None:
    source = Counted()
    with Workers(jobs) as workers:
        results = workers.map(square, source)
        assert source.taken == 0
        for n in range(50):
            assert next(results) == n * n
            assert source.taken <= n + 1 + 2 * jobs
        assert source.taken >= 50 + jobs
        results.close()  # type: ignore[attr-defined]


def test_the_first_error_in_order_is_raised() -> None:
    gate = Gate()

    def work(n: int) -> int:
        if n == 1:
            gate.wait()
            raise ValueError("one")
        if n == 2:
            gate.open()
            raise KeyError("two")
        return n

    with Workers(2) as workers:
        results = workers.map(work, range(9))
        assert next(results) == 0
        with pytest.raises(ValueError, match="one"):
            next(results)
        with pytest.raises(StopIteration):
            next(results)


def test_an_error_cancels_what_has_not_begun() -> None:
    source, begun, release = Counted(), [], Gate()

    def work(n: int) -> None:
        begun.append(n)
        if n == 0:
            raise ValueError("zero")
        release.wait()

    with Workers(1) as workers:
        timer = threading.Timer(0.3, release.open)
        timer.start()
        with pytest.raises(ValueError, match="zero"):
            list(workers.map(work, source))
        timer.join()
        assert workers.submit(lambda: "still usable").result(PATIENCE) == "still usable"
    assert begun in ([0], [0, 1])
    assert source.taken == 3


def test_an_error_is_raised_only_when_running_tasks_have_ended() -> None:
    begun, ended, release = Gate(), [], Gate()

    def work(n: int) -> None:
        if n == 0:
            begun.wait()
            raise ValueError("zero")
        begun.open()
        release.wait()
        ended.append(n)

    with Workers(2) as workers:
        timer = threading.Timer(0.2, release.open)
        timer.start()
        with pytest.raises(ValueError, match="zero"):
            list(workers.map(work, range(2)))
        assert ended == [1]
        timer.join()


def test_an_error_of_the_source_is_raised() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    with Workers(2) as workers, pytest.raises(OSError, match="no more"):
        list(workers.map(square, source()))


def test_abandoning_the_results_ends_the_work() -> None:
    running, ended = [], []

    def work(n: int) -> int:
        running.append(n)
        ended.append(n)
        return n

    def abandon() -> None:
        with Workers(2) as workers:
            results = workers.map(work, Counted())
            assert next(results) == 0
            results.close()  # type: ignore[attr-defined]
            assert sorted(running) == sorted(ended)
            assert len(running) <= 6

    thread = threading.Thread(target=abandon, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert ended


def test_results_that_are_never_asked_for_start_nothing() -> None:
    source = Counted()
    with Workers(2) as workers:
        del workers
        results = Workers(1).map(square, source)
        del results
    assert source.taken == 0


def test_leaving_the_pool_cancels_what_has_not_begun() -> None:
    begun, release = Gate(), Gate()

    def block() -> None:
        begun.open()
        release.wait()

    with Workers(1) as workers:
        first, second = workers.submit(block), workers.submit(block)
        begun.wait()
        timer = threading.Timer(0.2, release.open)
        timer.start()
    timer.join()
    assert first.result() is None
    with pytest.raises(CancelledError):
        second.result(PATIENCE)


def test_an_error_passes_through_the_pool() -> None:
    with pytest.raises(RuntimeError, match="mine"), Workers(1):
        raise RuntimeError("mine")


@pytest.mark.parametrize("jobs", [None, 0])
def test_by_default_there_is_a_thread_for_each_core(jobs: int | None) -> None:
    with Workers(jobs) as workers:
        assert workers.jobs == available_cores()


def test_available_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 5, 7}, raising=False)
    assert available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1
