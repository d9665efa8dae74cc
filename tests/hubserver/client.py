"""Points the huggingface_hub client of this process at a server, for one test.

Its constants freeze at import and are copied by name into a few of its modules, in each version
into others; so every copy is looked up.
"""

from __future__ import annotations

import importlib
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import pytest

from tests.hubserver.hub import Hub

# Those that copy a constant or the endpoint: loaded before anything is changed, since one that is
# loaded during the test would keep the test's value.
_LOADED_FIRST: Final = (
    "huggingface_hub.hf_api",
    "huggingface_hub.hf_file_system",
    "huggingface_hub.repocard",
    "huggingface_hub.utils.tqdm",
    "huggingface_hub.utils._cache_assets",
    "huggingface_hub.utils._cache_manager",
    "huggingface_hub.utils._git_credential",
    "huggingface_hub.utils._detect_agent",
)


@contextmanager
def pointed_at(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The client's endpoint, token, cache and settings are the server's, in a new session."""
    for name in _LOADED_FIRST:
        with suppress(ModuleNotFoundError):
            importlib.import_module(name)
    _set_environment(hub, monkeypatch)
    for name, value in _constants(hub).items():
        _set_everywhere(name, value, monkeypatch)
    _set_default_api(hub, monkeypatch)
    _forget_sessions()
    with warnings.catch_warnings():
        # huggingface_hub gives httpx an open file as `data=`.
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
        yield
    _forget_sessions()


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's pauses before it tries again shrink to a hundredth."""
    quick = SimpleNamespace(**vars(time))
    quick.sleep = lambda seconds: time.sleep(seconds / 100)
    for module in _modules():
        if vars(module).get("time") is time:
            monkeypatch.setattr(module, "time", quick)


def _constants(hub: Hub) -> dict[str, Any]:
    home = hub.home
    return {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_URL_HOSTS": frozenset({"127.0.0.1"}),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_UPDATE_CHECK": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(hub.cache),
        "HUGGINGFACE_HUB_CACHE": str(hub.cache),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HUGGINGFACE_ASSETS_CACHE": str(home / "assets"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "CHECK_FOR_UPDATE_DONE_PATH": str(home / ".check_for_update_done"),
        "CHECK_FOR_SKILL_UPDATE_DONE_PATH": str(home / ".check_for_skill_update_done"),
        "AGENT_HARNESSES_PATH": str(home / ".agent_harnesses.json"),
    }


def _set_environment(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    # Read at every call; they come before HF_TOKEN or undo it.
    for name in ("HF_OIDC_RESOURCE", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in hub.variables().items():
        monkeypatch.setenv(name, value)


def _set_everywhere(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in _modules():
        if name in vars(module):
            monkeypatch.setattr(module, name, value)


def _set_default_api(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    # The functions of the package are methods of this object, made at import.
    from huggingface_hub import hf_api

    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    registry: dict[str, Any] = {"standardEnvVars": [], "harnesses": {}}
    detection = sys.modules.get("huggingface_hub.utils._detect_agent")
    if detection:
        # Asked for once a process: it would be in the first test's requests only.
        monkeypatch.setattr(detection, "_registry", registry)


def _forget_sessions() -> None:
    from huggingface_hub import HfFileSystem, close_session

    close_session()
    HfFileSystem.clear_instance_cache()


def _modules() -> list[ModuleType]:
    # Not `hasattr`: the package's own `__getattr__` would load module after module.
    return [
        module
        for name, module in list(sys.modules.items())
        if name.split(".")[0] == "huggingface_hub" and isinstance(module, ModuleType)
    ]
