"""Other processes against the server: the hf command, and uploads and downloads by Xet."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hubserver.hub import Hub

REPO = "ns/model"
DATA = random.Random(0).randbytes(300_000)


def hf(hub: Hub, *arguments: str) -> str:
    # The command's own module: `hf` itself may not be on the PATH.
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", *arguments]
    done = subprocess.run(
        command, env=hub.environment(), capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    (path / "f").mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "f" / "a.safetensors").write_bytes(DATA)
    return path


def test_the_environment_of_a_process(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("KEPT", "1")
    found = hub.environment(HF_DEBUG="1")
    assert (found["HF_ENDPOINT"], found["HF_TOKEN"]) == (hub.url, hub.token)
    assert (found["HF_HUB_DISABLE_XET"], found["HF_DEBUG"], found["KEPT"]) == ("1", "1", "1")
    assert not {"HF_HUB_OFFLINE", "https_proxy"} & set(found)
    hub.xet()
    assert "HF_HUB_DISABLE_XET" not in hub.environment()


def test_the_hf_command_uploads_and_downloads(hub: Hub, folder: Path, tmp_path: Path) -> None:
    hf(hub, "upload", REPO, str(folder), "--commit-message", "by hand")
    assert hub.read(REPO, "f/a.safetensors") == DATA
    assert "by hand" in hub.commits(REPO)[0].title
    local = tmp_path / "local"
    hf(hub, "download", REPO, "--include", "f/*", "--local-dir", str(local))
    assert (local / "f" / "a.safetensors").read_bytes() == DATA
    assert not (local / "config.json").exists()


@pytest.mark.usefixtures("known_xet")
def test_xet_carries_lfs_files_past_the_server(hub: Hub, folder: Path, tmp_path: Path) -> None:
    hub.xet()
    hf(hub, "upload", REPO, str(folder))
    entry = hub.entry(REPO, "f/a.safetensors")
    assert (entry.size, hub.read(REPO, entry.path)) == (len(DATA), DATA)
    assert entry.xet
    assert hub.entry(REPO, "config.json").xet is None
    assert hub.received < 10_000
    hub.forget()
    hf(hub, "download", REPO, "--local-dir", str(tmp_path / "local"))
    assert (tmp_path / "local" / "f" / "a.safetensors").read_bytes() == DATA
    assert hub.matching("/xet-read-token/")
    assert not hub.matching(r"/resolve/.*safetensors", "GET")
    assert hub.sent < 10_000


@pytest.mark.usefixtures("known_xet")
def test_without_xet_its_token_is_refused(hub: Hub, folder: Path) -> None:
    environment = hub.environment()
    del environment["HF_HUB_DISABLE_XET"]
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", "upload", REPO, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "xet-write-token" in done.stderr
    assert set(hub.files(REPO)) == {".gitattributes"}
