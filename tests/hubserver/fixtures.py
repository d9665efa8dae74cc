"""The fixtures of the server; tests/conftest.py makes them known everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hubserver import xet
from tests.hubserver.client import pointed_at, without_waiting
from tests.hubserver.hub import Hub
from tests.hubserver.server import HubServer


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on 127.0.0.1, and the huggingface_hub client of this process pointed at it."""
    server = HubServer(tmp_path / "hub-server")
    server.start()
    try:
        served = Hub(server, home=tmp_path / "hub-home", cache=tmp_path / "hub-cache")
        with pointed_at(served, monkeypatch):
            yield served
    finally:
        server.stop()
    assert not server.mistakes, "\n".join(server.mistakes)


@pytest.fixture
def quick_retries(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits a hundredth of its seconds before it tries again."""
    without_waiting(monkeypatch)


@pytest.fixture(scope="session")
def known_xet() -> None:
    """Skips where hf_xet cannot store in a folder; for tests that call `hub.xet()`."""
    if not xet.works():
        pytest.skip("this hf_xet has no local endpoint of the kind known here")
