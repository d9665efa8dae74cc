"""Ctrl-C during a transfer: the client itself would first wait for every file on its way."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from threading import Lock, Thread
from typing import Any, Final, TypeVar

R = TypeVar("R")

_PATIENCE: Final = 2.0
# More than any pause of the client before it tries again.
_HANG_UP_SECONDS: Final = 30.0
_hanging_up: Final = Lock()


def interruptible(work: Callable[[], R]) -> R:
    """work(), in a thread of its own, so that an interrupt of this one ends its transfers.

    They end within a second or two; where the network is silent or the client waits before it tries
    again, once that is over. Nothing new is begun.
    """
    result: Future[R] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    try:
        Thread(target=run, name="onebitfmt-hub", daemon=True).start()
        # A wait without end cannot be interrupted on Windows. Thread.join would not do: after an
        # interrupt it takes the thread for ended.
        while not result.done():
            wait([result], timeout=0.5)
    except BaseException:
        Thread(target=_hang_up, args=(result,), daemon=True).start()
        wait([result], timeout=_PATIENCE)
        raise
    return result.result()


def settle() -> None:
    """Wait until transfers that were interrupted have ended: meanwhile the client is offline."""
    with _hanging_up:
        pass


def _hang_up(result: Future[Any]) -> None:
    from huggingface_hub import close_session

    until = time.monotonic() + _HANG_UP_SECONDS
    with _hanging_up, _no_more_requests():
        while not result.done() and time.monotonic() < until:
            close_session()
            with contextlib.suppress(ImportError):
                from huggingface_hub.utils._xet import abort_xet_session

                abort_xet_session()  # type: ignore[no-untyped-call]
            wait([result], timeout=0.1)


@contextmanager
def _no_more_requests() -> Iterator[None]:
    """The client tries a closed connection again, but not in offline mode; and tells of neither."""
    from huggingface_hub import constants

    log = logging.getLogger("huggingface_hub")
    before, level = constants.HF_HUB_OFFLINE, log.level
    constants.HF_HUB_OFFLINE = True
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        log.setLevel(level)
