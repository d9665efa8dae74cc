"""Every fault, as the huggingface_hub client meets it; and that a repeat succeeds."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, get_session, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from tests.hubserver.faults import Fault, Faults
from tests.hubserver.hub import Hub
from tests.hubserver.log import Request
from tests.hubserver.server import HubServer

REPO = "ns/model"
DATA = random.Random(0).randbytes(500_000)
GET_FILE = r"/resolve/.*a\.bin"

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture(autouse=True)
def repo(hub: Hub) -> None:
    hub.commit(REPO, {"a.bin": DATA})
    hub.forget()


def download() -> bytes:
    return Path(hf_hub_download(REPO, "a.bin")).read_bytes()


def upload(data: bytes = DATA[::-1]) -> str:
    add = CommitOperationAdd("b.bin", data)
    return HfApi().create_commit(REPO, [add], commit_message="one").oid


def gets(hub: Hub) -> list[Request]:
    return hub.matching(GET_FILE, "GET")


def test_a_fault_hits_some_requests() -> None:
    faults = Faults()
    twice = faults.add(Fault(path="/a", method="GET", skip=1, times=2))
    always = faults.add(Fault(path="/a$", times=None))
    taken = [faults.take("GET", "/a/b") for _ in range(4)]
    assert taken == [None, twice, twice, None]
    assert faults.take("PUT", "/a/b") is None
    assert [faults.take("PUT", "/a") for _ in range(2)] == [always, always]
    assert (faults.hits(twice), faults.hits(always)) == (2, 2)
    faults.clear()
    assert faults.take("PUT", "/a") is None


def test_a_passing_error_is_tried_again(hub: Hub) -> None:
    hub.faults.add(Fault(path="/commit/", status=503))
    hub.faults.add(Fault(path="/_lfs/put", status=502, times=2))
    with pytest.raises(HfHubHTTPError) as refused:
        upload()
    # The commit itself is the one request that the client does not repeat.
    assert refused.value.response.status_code == 503
    puts = hub.matching("/_lfs/put")
    assert [(request.status, request.received) for request in puts] == [
        (502, len(DATA)),
        (502, len(DATA)),
        (200, len(DATA)),
    ]
    assert upload() == hub.head(REPO)
    assert len(hub.matching("/_lfs/put")) == 3


def test_a_refusal_carries_its_words_and_headers(hub: Hub) -> None:
    fault = Fault(
        path="/commit/",
        status=403,
        message="Private repository storage limit reached",
        error_code="StorageLimit",
        headers={"X-Request-Id": "the-request"},
    )
    hub.faults.add(fault)
    with pytest.raises(HfHubHTTPError, match="storage limit") as refused:
        upload()
    assert refused.value.response.headers["X-Error-Code"] == "StorageLimit"
    assert refused.value.request_id == "the-request"


def test_a_download_that_breaks_off_goes_on_where_it_was(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.faults.add(Fault(path=GET_FILE, method="GET", drop_response_after=123_456))
    assert download() == DATA
    assert [(request.range, request.sent) for request in gets(hub)] == [
        (None, 123_456),
        ("bytes=120000-", len(DATA) - 120_000),
    ]


def test_a_server_that_ignores_the_range_sends_all(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.faults.add(Fault(path=GET_FILE, method="GET", drop_response_after=123_456))
    hub.faults.add(Fault(path=GET_FILE, method="GET", no_range=True))
    assert download() == DATA
    assert [(request.status, request.sent) for request in gets(hub)] == [
        (200, 123_456),
        (200, len(DATA)),
    ]


def test_a_download_that_always_breaks_off_fails(hub: Hub) -> None:
    fault = hub.faults.add(Fault(path=GET_FILE, method="GET", drop_response_after=0, times=None))
    with pytest.raises(httpx.RemoteProtocolError):
        download()
    assert hub.faults.hits(fault) == 6
    hub.faults.clear()
    assert download() == DATA


@pytest.mark.parametrize("nbytes", [0, 100_000])
def test_an_upload_that_breaks_off_starts_again(hub: Hub, nbytes: int) -> None:
    reached: list[int] = []
    hub.faults.add(
        Fault(path="/_lfs/put", drop_request_after=nbytes, reached=lambda: reached.append(nbytes))
    )
    assert upload() == hub.head(REPO)
    first, second = hub.matching("/_lfs/put")
    assert (first.status, second.status, second.received) == (0, 200, len(DATA))
    assert nbytes - 65536 < first.received <= nbytes
    assert reached == [nbytes]
    assert hub.read(REPO, "b.bin") == DATA[::-1]
    assert not list((hub.server.store.root / "parts").iterdir())


def test_an_answer_may_be_lost(hub: Hub) -> None:
    hub.faults.add(Fault(path="/commit/", lose_answer=True))
    with pytest.raises(httpx.RemoteProtocolError):
        upload()
    assert hub.read(REPO, "b.bin") == DATA[::-1]
    head = hub.head(REPO)
    assert upload() == head


def test_wrong_bytes_of_the_right_size(hub: Hub) -> None:
    hub.faults.add(Fault(path=GET_FILE, method="GET", wrong_bytes=True))
    got = download()
    assert got != DATA
    assert (len(got), got[:-1]) == (len(DATA), DATA[:-1])
    assert hub.read(REPO, "a.bin") == DATA


def test_silence_ends_in_a_timeout_or_with_the_server(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    reached = threading.Event()
    hub.faults.add(Fault(path=GET_FILE, method="GET", stall_after=1000, reached=reached.set))
    assert download() == DATA
    assert reached.is_set()
    assert gets(hub)[0].sent == 1000


def test_slow(hub: Hub) -> None:
    hub.faults.add(Fault(path=GET_FILE, method="GET", slow=0.02))
    hub.faults.add(Fault(path="/_lfs/put", slow=0.02))
    start = time.perf_counter()
    assert download() == DATA
    upload()
    # Eight blocks of 64 kB in each direction.
    assert time.perf_counter() - start > 2 * 8 * 0.02


def test_hooks_run_before_and_after(hub: Hub) -> None:
    seen: list[str] = []
    hub.faults.add(
        Fault(
            path="/commit/",
            before=lambda: seen.append(hub.commit(REPO, {"c.txt": b"theirs"})),
            after=lambda: seen.append(hub.head(REPO)),
        )
    )
    parent = hub.head(REPO)
    add = CommitOperationAdd("b.txt", b"mine")
    with pytest.raises(HfHubHTTPError) as refused:
        HfApi().create_commit(REPO, [add], commit_message="late", parent_commit=parent)
    assert refused.value.response.status_code == 412
    assert seen == [hub.head(REPO)] * 2
    assert "b.txt" not in hub.files(REPO)


def test_a_status_is_used_once_a_request(hub: Hub) -> None:
    hub.faults.add(Fault(path=GET_FILE, method="GET", status=429, headers={"Retry-After": "0"}))
    assert download() == DATA
    assert [request.status for request in gets(hub)] == [429, 200]


def test_requests_are_counted_by_the_byte(hub: Hub) -> None:
    upload()
    assert hub.received == sum(request.received for request in hub.requests)
    (put,) = hub.matching("/_lfs/put", "PUT")
    (commit,) = hub.matching("/commit/", "POST")
    assert (put.received, put.sent, put.status) == (len(DATA), 0, 200)
    assert commit.received == int(commit.headers["content-length"])
    assert commit.query == ""
    hub.forget()
    download()
    head, get = hub.matching(GET_FILE)
    assert (head.method, head.sent, get.method, get.sent) == ("HEAD", 0, "GET", len(DATA))
    assert hub.sent == len(DATA)


def test_a_server_that_has_stopped_refuses_and_leaves_no_thread(tmp_path: Path) -> None:
    server = HubServer(tmp_path)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        assert get_session().get(f"{server.url}/api/agent-harnesses").status_code == 200
        server.stop()
        with pytest.raises(httpx.NetworkError):
            get_session().get(f"{server.url}/api/agent-harnesses")
    assert not [t for t in threading.enumerate() if "process_request_thread" in t.name]


def test_the_client_is_as_before_after_the_test(tmp_path: Path) -> None:
    from huggingface_hub import constants, hf_api

    from tests.hubserver.client import pointed_at

    def state() -> tuple[Any, ...]:
        return (constants.ENDPOINT, constants.HF_HUB_CACHE, hf_api.api.endpoint)

    before = state()
    server = HubServer(tmp_path)
    other = Hub(server, home=tmp_path / "home", cache=tmp_path / "cache")
    with pytest.MonkeyPatch.context() as patch, pointed_at(other, patch):
        assert state() == (other.url, str(other.cache), other.url)
        assert hf_hub_url("ns/x", "y").startswith(other.url)
    assert state() == before
    server.server_close()


def test_offline_stops_every_request(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineModeIsEnabled):
        HfApi().model_info(REPO)
    assert hub.requests == []
