from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from onebitfmt import __version__
from onebitfmt.errors import HubError
from onebitfmt.hub.client import HubOptions
from onebitfmt.hub.ranges import read_range
from tests.hubserver.faults import Fault

if TYPE_CHECKING:
    from tests.hubserver.hub import Hub

REPO = "ns/model"
NAME = "model.safetensors"
DATA = bytes(range(256)) * 4


@pytest.fixture
def commit(hub: Hub) -> str:
    return hub.commit(REPO, {NAME: DATA, "small.json": b"{}"})


@pytest.mark.parametrize("span", [range(1), range(8, 300), range(1000, 1024)])
@pytest.mark.parametrize("cdn", [False, True])
def test_just_these_bytes_move(hub: Hub, commit: str, span: range, cdn: bool) -> None:
    hub.configure(cdn=cdn)
    hub.forget()
    data = read_range(REPO, commit, NAME, span, HubOptions())
    assert data == DATA[span.start : span.stop]
    assert sum(request.sent for request in hub.requests) <= len(span) + 100
    assert f"onebitfmt/{__version__}" in hub.requests[0].user_agent
    assert not hub.cache.exists()


def test_a_server_that_sends_no_parts_is_not_read_whole(hub: Hub, commit: str) -> None:
    hub.faults.add(Fault(path=NAME, no_range=True))
    with pytest.raises(HubError, match="sends no part"):
        read_range(REPO, commit, NAME, range(8), HubOptions())


def test_failures_are_explained(hub: Hub, commit: str) -> None:
    with pytest.raises(HubError, match="a file is missing"):
        read_range(REPO, commit, "none.safetensors", range(8), HubOptions())
    with pytest.raises(HubError, match="no such repository"):
        read_range("ns/none", commit, NAME, range(8), HubOptions())
    hub.faults.add(Fault(path=NAME, drop_response_after=10))
    with pytest.raises(HubError, match="the connection broke"):
        read_range(REPO, commit, NAME, range(500), HubOptions())
    with pytest.raises(HubError):
        read_range(REPO, commit, NAME, range(1000, 1030), HubOptions())
