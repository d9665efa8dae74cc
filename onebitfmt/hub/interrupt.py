"""Ctrl-C during a transfer: the client itself would first wait for every file on its way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any, Final, TypeVar

R = TypeVar("R")

_PATIENCE: Final = 1.0
# Longer than all pauses of the client; other users of its connections in this process suffer, too.
_HANG_UP_SECONDS: Final = 30.0


def interruptible(work: Callable[[], R]) -> R:
    """work(), in a thread of its own, so that an interrupt of this one ends its transfers.

    They end within a second; where the network is silent or the client waits before it tries again,
    once that is over.
    """
    result: Future[R] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    Thread(target=run, name="onebitfmt-hub", daemon=True).start()
    try:
        # A wait without end cannot be interrupted on Windows. Thread.join would not do: after an
        # interrupt it takes the thread for ended.
        while not result.done():
            wait([result], timeout=0.5)
    except BaseException:
        Thread(target=_hang_up, args=(result,), daemon=True).start()
        wait([result], timeout=_PATIENCE)
        raise
    return result.result()


def _hang_up(result: Future[Any]) -> None:
    """Close connections until the transfers give up: each may try again with a new one."""
    from huggingface_hub import close_session

    until = time.monotonic() + _HANG_UP_SECONDS
    while not result.done() and time.monotonic() < until:
        close_session()
        with contextlib.suppress(ImportError):
            from huggingface_hub.utils._xet import abort_xet_session

            abort_xet_session()  # type: ignore[no-untyped-call]
        wait([result], timeout=0.1)
