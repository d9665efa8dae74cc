from __future__ import annotations

import _thread
import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants, get_session
from huggingface_hub.errors import OfflineModeIsEnabled

from onebitfmt.hub import interrupt
from onebitfmt.hub.interrupt import interruptible, settle
from tests.hubserver.faults import Fault

if TYPE_CHECKING:
    from tests.hubserver.hub import Hub

REPO = "ns/model"

FETCH = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from onebitfmt.hub.snapshot import Snapshot
try:
    Snapshot.open("ns/model").fetch(["a.bin", "b.bin", "config.json"])
except KeyboardInterrupt:
    print("interrupted")
"""


def test_the_result_and_the_error_are_those_of_the_work() -> None:
    error = ValueError("words")

    def fail() -> None:
        raise error

    assert interruptible(lambda: 3) == 3
    with pytest.raises(ValueError, match="words") as caught:
        interruptible(fail)
    assert caught.value is error


def test_after_an_interrupt_nothing_more_is_asked(hub: Hub) -> None:
    log = logging.getLogger("huggingface_hub")
    before = constants.HF_HUB_OFFLINE, log.level
    ended: list[BaseException] = []

    def work() -> None:
        _thread.interrupt_main()
        while not constants.HF_HUB_OFFLINE:
            time.sleep(0.01)
        try:
            get_session().get(hub.url)
        except OfflineModeIsEnabled as error:
            ended.append(error)
            raise

    with pytest.raises(KeyboardInterrupt):
        interruptible(work)
    assert len(ended) == 1
    assert hub.requests == []
    until = time.monotonic() + 5
    while (constants.HF_HUB_OFFLINE, log.level) != before and time.monotonic() < until:
        time.sleep(0.01)
    assert (constants.HF_HUB_OFFLINE, log.level) == before


@pytest.mark.skipif(sys.platform == "win32", reason="no signal to send")
def test_an_interrupt_ends_a_download(hub: Hub) -> None:
    # At this speed the file would take some minutes.
    hub.commit(REPO, {"a.bin": bytes(20_000_000), "b.bin": b"b" * 1000, "config.json": b"{}"})
    begun = threading.Event()
    hub.faults.add(Fault(path=r"a\.bin", method="GET", slow=0.5, before=begun.set, times=None))
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH],
        env=hub.environment(PYTHONPATH=root),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert begun.wait(30)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (out, err, process.returncode) == ("interrupted\n", "", 0)
    assert time.monotonic() - start < 5
    assert not list(hub.cache.rglob("*.incomplete"))
    assert not list(hub.cache.rglob("snapshots/*/a.bin"))


def test_what_follows_an_interrupt_waits_for_its_end() -> None:
    waiting = threading.Thread(target=settle)
    with interrupt._hanging_up:
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(10)
    assert not waiting.is_alive()
