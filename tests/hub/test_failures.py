"""Every failure as the true client meets it, over HTTP where that can be."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import CommitOperationAdd, constants, get_session
from huggingface_hub.errors import XetDownloadError

from onebitfmt.errors import HubError
from onebitfmt.hub.client import DEFAULTS, HubOptions, explained, hub_api
from onebitfmt.hub.failures import explanation, without_secrets
from tests.hubserver.faults import Fault

if TYPE_CHECKING:
    from tests.hubserver.hub import Hub

REPO = "ns/model"
LOGIN = "hf auth login"
AGAIN = "run the command again"

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture(autouse=True)
def repo(hub: Hub) -> str:
    return hub.commit(REPO, {"a.bin": b"a" * 100_000, "config.json": b"{}"})


def pull(options: HubOptions = DEFAULTS, repo: str = REPO, revision: str | None = None) -> None:
    api = hub_api(options)
    with explained(repo, revision):
        found = api.resolve_revision(repo, revision=revision)
        api.snapshot_download(repo, revision=found.resolved, allow_patterns="a.bin")


def push(options: HubOptions = DEFAULTS, parent: str | None = None, readme: bytes = b"") -> None:
    files = {"b.bin": b"b" * 1000} | ({"README.md": readme} if readme else {})
    with explained(REPO):
        hub_api(options).create_commit(
            REPO,
            [CommitOperationAdd(name, data) for name, data in files.items()],
            commit_message="one",
            parent_commit=parent,
        )


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(HubError) as caught:
        work()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


# --- what the Hub refuses ------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, False])
def test_no_such_repository(token: bool | None) -> None:
    text = refusal(lambda: pull(HubOptions(token=token), "ns/none"))
    assert text == f"ns/none: no such repository, or it is private: log in with: {LOGIN}"


def test_a_private_repository(hub: Hub) -> None:
    hub.repo(REPO).private = True
    assert "or it is private" in refusal(lambda: pull(HubOptions(token=False)))
    pull()


@pytest.mark.parametrize("token", ["hf_stranger", False])
def test_a_gated_repository(hub: Hub, token: str | bool) -> None:
    hub.add_token("hf_stranger", member=False)
    hub.repo(REPO).gated = True
    assert "gated: ask for access" in refusal(lambda: pull(HubOptions(token=token)))


@pytest.mark.parametrize("revision", ["v9", "0" * 40])
def test_no_such_revision(revision: str) -> None:
    assert f"has no revision '{revision}'" in refusal(lambda: pull(revision=revision))


@pytest.mark.parametrize("repo", ["a--b/model", "a/b/c"])
def test_no_id(repo: str) -> None:
    assert "not a Hub id ns/name" in refusal(lambda: pull(repo=repo))


def test_a_bad_token() -> None:
    text = refusal(lambda: pull(HubOptions(token="hf_nonsense")))
    assert "does not accept the token" in text
    assert LOGIN in text
    assert "nonsense" not in text


@pytest.mark.parametrize("token", ["hf_non\nsense", "hf_nons\u00e9nse"])
def test_a_token_that_no_header_can_hold(token: str) -> None:
    text = refusal(lambda: pull(HubOptions(token=token)))
    assert "characters that no token has" in text
    assert "non" not in text.replace("no token", "")


def test_no_saved_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "no token is saved" in refusal(lambda: pull(HubOptions(token=True)))


def test_a_token_that_may_not_write(hub: Hub) -> None:
    hub.add_token("hf_reader", role="read")
    text = refusal(lambda: push(HubOptions(token="hf_reader")))
    assert "no right to this" in text
    assert "may write" in text


def test_a_commit_in_between(hub: Hub, repo: str) -> None:
    hub.commit(REPO, {"c.txt": b"c"})
    text = refusal(lambda: push(parent=repo))
    assert text == f"{REPO}: someone else committed in between; {AGAIN}"


def test_front_matter_that_the_hub_refuses() -> None:
    text = refusal(lambda: push(readme=b"---\nbase_model: /home/me/base\n---\n"))
    assert "the Hub's client refuses" in text


@pytest.mark.parametrize(
    ("status", "said", "words"),
    [
        (400, "odd", "status 400 (odd)"),
        (402, "pay", "over a limit of the Hub (pay)"),
        (403, "Private repository storage limit reached", "over a limit of the Hub"),
        (403, "Forbidden", "no right to this (Forbidden)"),
        (403, "Access to this resource is disabled.", "the repository is disabled"),
        (409, "exists", "in conflict with what is there (exists); run the command again"),
        (413, "too large", "over a limit of the Hub (too large)"),
        (429, "slow down", "too many requests (slow down)"),
        (500, "oops", "fails with status 500 (oops); try again later"),
        (503, "busy", "fails with status 503 (busy); try again later"),
        (507, "full", "over a limit of the Hub (full)"),
        (407, "who", "the proxy wants a password (who)"),
        (418, "", "answers with status 418"),
    ],
)
def test_each_status(hub: Hub, status: int, said: str, words: str) -> None:
    fault = Fault(path="/commit/|/api/models/", status=status, message=said, times=None)
    hub.faults.add(fault)
    assert words in refusal(push)
    assert hub.faults.hits(fault) >= 1


def test_an_error_while_resolving_is_the_one_told(hub: Hub) -> None:
    hub.faults.add(Fault(path="/api/models/", status=503, times=None))
    assert "fails with status 503" in refusal(pull)


def test_an_error_while_downloading_is_the_one_told(hub: Hub) -> None:
    hub.faults.add(Fault(path="/resolve/", method="HEAD", status=500, times=None))
    assert "fails with status 500" in refusal(pull)


def test_no_signature_is_told(hub: Hub) -> None:
    hub.configure(cdn=True)
    said = f"{hub.server.cdn_url}/a.bin?{hub.server.signature} has expired"
    hub.faults.add(Fault(path="_cdn", status=403, message=said, times=None))
    text = refusal(pull)
    assert "a.bin has expired" in text
    assert hub.server.signature not in text


# --- the network ---------------------------------------------------------------------------------


def test_a_connection_that_breaks(hub: Hub) -> None:
    hub.faults.add(Fault(path="/resolve/", method="GET", drop_response_after=1000, times=None))
    text = refusal(pull)
    assert "the connection broke" in text
    assert AGAIN in text
    hub.faults.clear()
    pull()


def test_a_connection_that_falls_silent(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.faults.add(Fault(path="/resolve/", method="GET", stall_after=10, times=None))
    assert "no answer in time" in refusal(pull)


def test_a_refused_connection() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"

        def ask() -> None:
            with explained(REPO):
                get_session().get(url)

        assert "the Hub cannot be reached" in refusal(ask)


@pytest.mark.parametrize("endpoint", ["host/path", "http://[::1:1", "ftp://host"])
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    def ask() -> None:
        with explained(REPO):
            get_session().get(endpoint)

    assert "HF_ENDPOINT or a proxy's address is wrong" in refusal(ask)


def test_a_proxy_that_refuses(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session

    monkeypatch.setenv("HTTPS_PROXY", hub.url.replace("://", "://me:password@"))
    close_session()

    def ask() -> None:
        with explained(REPO):
            get_session().get("https://hub.invalid/")

    text = refusal(ask)
    assert "the proxy refuses" in text
    assert "password" not in text


def test_an_answer_of_something_else(hub: Hub) -> None:
    def ask() -> None:
        with explained(REPO):
            get_session().get(f"{hub.url}/{REPO}/resolve/main/a.bin").json()

    assert "the answer is not the Hub's" in refusal(ask)


@pytest.mark.parametrize(
    ("environment", "words"),
    [(True, "not in the Hub cache; unset HF_HUB_OFFLINE"), (False, "do without local_files_only")],
)
def test_offline(monkeypatch: pytest.MonkeyPatch, environment: bool, words: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", environment)

    def ask() -> None:
        with explained(REPO):
            hub_api().snapshot_download(REPO, local_files_only=True)

    assert words in refusal(ask)


def test_a_part_of_the_files_offline(repo: str) -> None:
    pull()

    def ask() -> None:
        with explained(REPO):
            hub_api().snapshot_download(REPO, revision=repo, local_files_only=True)

    assert "not all of it is in the Hub cache" in refusal(ask)


# --- this machine --------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def ask() -> None:
        with explained(REPO):
            hub_api().snapshot_download(REPO, cache_dir=tmp_path / "file")

    text = refusal(ask)
    assert str(tmp_path / "file") in text
    assert "Not a directory" in text


XET = "Task error: File reconstruction error: "


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EFBIG, "File too large"), "File too large; check the disk"),
        (RuntimeError(f"{XET}IO Error: No space left on device (os error 28)"), "the disk is full"),
        (RuntimeError(f"{XET}CAS Client Error"), "CAS Client Error"),
        (ConnectionError("token refresh failed"), "the transfer failed (token refresh failed)"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "the transfer failed"),
        (OSError("Consistency check failed: 1 byte is missing"), "Consistency check failed"),
        (XetDownloadError("broken"), "the transfer failed (broken)"),
        (ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."), "socksio"),
    ],
    ids=repr,
)
def test_what_no_server_can_bring_about(error: Exception, words: str) -> None:
    found = explanation(error, None)
    assert found is not None
    assert words in found


@pytest.mark.parametrize("disabled", [False, True])
def test_doing_without_xet_is_named_where_it_is_used(
    monkeypatch: pytest.MonkeyPatch, disabled: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", disabled)
    found = explanation(RuntimeError("broken"), None)
    assert ("HF_HUB_DISABLE_XET=1" in (found or "")) is not disabled


@pytest.mark.parametrize("error", [TypeError("x"), NotImplementedError("x"), AssertionError("x")])
def test_a_mistake_in_a_program_is_none_of_the_hubs(error: Exception) -> None:
    assert explanation(error, None) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://a.b/c?X-Sig=1&d=2: closed", "at https://a.b/c: closed"),
        ("'https://a.b/c?d=2'", "'https://a.b/c'"),
        ("(https://a.b/c?d=2)", "(https://a.b/c"),
        ("http://me:pass@host:80/x", "http://host:80/x"),
        ("b'Bearer hf_abc.D-e'", "b'Bearer ***'"),
        ("the token hf_abcDEF is", "the token hf_*** is"),
        ("no secret? none", "no secret? none"),
    ],
)
def test_secrets_are_left_out(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
