from __future__ import annotations

import logging
import warnings
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants, get_session

from onebitfmt.errors import HubError, UsageError
from onebitfmt.hub.client import DEFAULTS, HubOptions, explained, hub_api
from onebitfmt.version import __version__
from tests.hubserver.faults import Fault

if TYPE_CHECKING:
    from tests.hubserver.hub import Hub

REPO = "ns/model"


def test_the_hub_learns_who_asks(hub: Hub) -> None:
    hub.commit(REPO, {"a.txt": b"a"})
    hub_api().model_info(REPO)
    agent = hub.requests[-1].user_agent
    assert agent.startswith(f"onebitfmt/{__version__};")


@pytest.mark.parametrize(
    ("token", "sent"),
    [
        (None, "Bearer hf_test"),
        ("hf_other", "Bearer hf_other"),
        (True, "Bearer hf_test"),
        (False, None),
    ],
)
def test_the_token_given_is_the_token_sent(
    hub: Hub, token: str | bool | None, sent: str | None
) -> None:
    hub.add_token("hf_other")
    hub.commit(REPO, {"a.txt": b"a"})
    hub_api(HubOptions(token=token)).model_info(REPO)
    assert hub.requests[-1].headers.get("authorization") == sent


def test_options_show_no_token() -> None:
    options = HubOptions(token="hf_secret", cache_dir=Path("c"))
    assert "hf_secret" not in repr(options)
    assert asdict(DEFAULTS) == {"token": None, "cache_dir": None, "local_files_only": False}
    with pytest.raises(FrozenInstanceError):
        options.token = None  # type: ignore[misc]


@pytest.mark.usefixtures("hub")
def test_offline_is_an_option_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not DEFAULTS.offline
    assert HubOptions(local_files_only=True).offline
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert DEFAULTS.offline


@pytest.mark.parametrize(
    "error",
    [UsageError("own words"), KeyboardInterrupt(), TypeError("a bug"), KeyError("a bug")],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_the_hubs_passes_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, explained(REPO):
        raise error
    assert caught.value is error


def test_the_clients_error_leaves_no_trace(hub: Hub) -> None:
    with pytest.raises(HubError, match=f"^{REPO}: no such repository") as caught, explained(REPO):
        hub_api().model_info(REPO)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.usefixtures("quick_retries")
def test_the_clients_log_is_fit_for_people(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    hub.configure(cdn=True)
    hub.commit(REPO, {"a.bin": b"a" * 1000})
    hub.faults.add(Fault(path="_cdn", method="GET", drop_response_after=10))
    shown = logging.StreamHandler()
    logging.getLogger("huggingface_hub").addHandler(shown)
    try:
        with explained(REPO):
            hub_api().snapshot_download(REPO, allow_patterns="a.bin")
            hub_api().snapshot_download(REPO, allow_patterns="b.bin")
    finally:
        logging.getLogger("huggingface_hub").removeHandler(shown)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Trying to resume download" in err
    assert "/_cdn/" in err
    assert hub.server.signature not in err
    assert "No files matched" not in err


@pytest.mark.usefixtures("hub")
def test_the_log_is_as_before_afterwards() -> None:
    handlers = logging.getLogger("huggingface_hub").handlers
    before = [list(handler.filters) for handler in handlers]
    with pytest.raises(HubError), explained(REPO):
        hub_api().model_info(REPO)
    assert [list(handler.filters) for handler in handlers] == before


def test_a_warning_of_space_is_left_to_the_error() -> None:
    with explained(REPO):
        warnings.warn("Not enough free disk space to download the file.", stacklevel=1)
    with pytest.raises(UserWarning, match="another"), explained(REPO):
        warnings.warn("another", stacklevel=1)


def test_nothing_is_sent_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="unset HF_HUB_OFFLINE"), explained(REPO):
        get_session().get(hub.url)
    assert hub.requests == []
