from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from onebitfmt.errors import CheckpointError, HubError
from onebitfmt.hub.client import HubOptions
from onebitfmt.source import open_checkpoint
from onebitfmt.version import __version__

if TYPE_CHECKING:
    from tests.conftest import Models
    from tests.hubserver.hub import Hub

REPO = "ns/model"


@pytest.fixture
def commits(models: Models, hub: Hub) -> list[str]:
    """Two commits of ns/model, of which the first is the tag `old`; x has 5 and 3 elements."""
    found = []
    for size in (5, 3):
        folder = models.save(f"of-{size}", models.random(size, {"x": (size,)}))
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.iterdir()}
        found.append(hub.commit(REPO, files))
        if size == 5:
            hub.tag(REPO, "old")
    return found


@pytest.mark.parametrize(
    ("source", "commit", "size"),
    [("ns/model", 1, 3), ("ns/model@main", 1, 3), ("ns/model@old", 0, 5), ("ns/model@{}", 0, 5)],
)
def test_a_hub_id_is_read_through_the_cache(
    hub: Hub, commits: list[str], source: str, commit: int, size: int
) -> None:
    for options in (HubOptions(), HubOptions(local_files_only=True)):
        opened = open_checkpoint(source.format(commits[0]), options=options)
        assert (opened.repo, opened.revision) == ("ns/model", commits[commit])
        assert opened.span("x").shape == (size,)
        if options.offline:
            assert hub.requests == []
        hub.forget()


def test_the_options_are_used(hub: Hub, commits: list[str], tmp_path: Path) -> None:
    hub.repo(REPO).private = True
    with pytest.raises(HubError, match="or it is private"):
        open_checkpoint(REPO, options=HubOptions(token=False))
    options = HubOptions(cache_dir=tmp_path / "other")
    assert open_checkpoint(REPO, options=options).revision == commits[1]
    assert list((tmp_path / "other").glob("models--ns--model/snapshots/*"))
    assert not hub.cache.exists()


def test_the_hub_learns_who_asks(hub: Hub, commits: list[str]) -> None:
    open_checkpoint(REPO)
    agents = {request.user_agent.split(";")[0] for request in hub.requests}
    assert agents == {f"onebitfmt/{__version__}"}


@pytest.mark.usefixtures("commits")
def test_a_local_folder_comes_before_a_hub_id(
    hub: Hub, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.save("ns/model", models.random(1, {"mine": (2,)}))
    monkeypatch.chdir(models.root)
    opened = open_checkpoint("ns/model")
    assert list(opened) == ["mine"]
    assert (opened.repo, opened.revision) == (None, None)
    assert hub.requests == []


def test_a_home_folder_is_found(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    models.save("m", models.random(1, {"mine": (2,)}))
    monkeypatch.setenv("HOME", str(models.root))
    assert list(open_checkpoint("~/m")) == ["mine"]


@pytest.mark.usefixtures("commits")
@pytest.mark.parametrize("source", ["ns/other", "ns/model", "ns/model@nosuch"])
def test_an_id_that_is_not_cached_is_named_offline(hub: Hub, source: str) -> None:
    with pytest.raises(HubError, match="not in the Hub cache") as caught:
        open_checkpoint(source, options=HubOptions(local_files_only=True))
    assert source.split("@")[0] in str(caught.value)
    assert hub.requests == []


@pytest.mark.usefixtures("commits")
@pytest.mark.parametrize(
    ("source", "words"),
    [("ns/other", "no such repository"), ("ns/model@nosuch", "has no revision 'nosuch'")],
)
def test_what_the_hub_refuses_is_said_in_a_sentence(source: str, words: str) -> None:
    with pytest.raises(HubError, match=words) as caught:
        open_checkpoint(source)
    assert source.split("@")[0] in str(caught.value)


@pytest.mark.usefixtures("commits")
def test_a_gated_repository_says_so(hub: Hub) -> None:
    hub.repo(REPO).gated = True
    with pytest.raises(HubError, match="gated: ask for access"):
        open_checkpoint(REPO, options=HubOptions(token=False))


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    "source",
    [
        "model", "a/b/c", "./no/such/folder", "/no/such/folder", "../nothing", "./nothing",
        "a--b/model", "ns/model.git", "ns/model:math", Path("ns/model"),
    ],
)  # fmt: skip
def test_what_can_only_be_a_path_is_called_a_missing_path(source: str | Path, hub: Hub) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder") as caught:
        open_checkpoint(source)
    assert str(source) in str(caught.value)
    assert hub.requests == []


def test_an_unfinished_upload_is_refused(hub: Hub, commits: list[str]) -> None:
    index = b'{"weight_map": {"x": "model-00002-of-00002.safetensors"}}'
    hub.commit(REPO, {"model.safetensors.index.json": index})
    with pytest.raises(CheckpointError, match="is the download complete"):
        open_checkpoint(REPO)


def test_an_unfinished_download_is_refused(hub: Hub, commits: list[str]) -> None:
    weights = open_checkpoint(REPO).path / "model.safetensors"
    weights.unlink()
    with pytest.raises(HubError, match="not all of it is in the Hub cache"):
        open_checkpoint(REPO, options=HubOptions(local_files_only=True))


def test_a_repository_without_weights_is_refused(hub: Hub) -> None:
    hub.commit("ns/old", {"pytorch_model.bin": b"old"})
    with pytest.raises(CheckpointError, match="ns--old"):
        open_checkpoint("ns/old")


def test_only_what_a_bundle_needs_is_asked_for(hub: Hub, commits: list[str]) -> None:
    weights = hub.read(REPO, "model.safetensors")
    wanted = {
        "model.safetensors": weights, "config.json": b"{}", "LICENSE": b"l",
        "tokenizer.model": b"t", "chat_template.jinja": b"j", "README.md": b"r", "merges.txt": b"m",
    }  # fmt: skip
    unwanted = {
        "pytorch_model.bin": b"b", "model.gguf": b"g", "onnx/model.onnx": b"o",
        "onnx/config.json": b"c", "consolidated.safetensors": b"w", "original/params.json": b"p",
        "modeling.py": b"y",
    }  # fmt: skip
    hub.commit("ns/full", wanted | unwanted)
    opened = open_checkpoint("ns/full")
    fetched = {p.relative_to(opened.path).as_posix() for p in opened.path.rglob("*") if p.is_file()}
    assert fetched == wanted.keys()
    assert len(hub.matching("/resolve/", "GET")) == len(wanted)
