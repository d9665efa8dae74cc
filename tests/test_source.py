from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from onebitfmt.errors import CheckpointError
from onebitfmt.source import open_checkpoint

if TYPE_CHECKING:
    from tests.conftest import Models

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "89abcdef0123456789abcdef0123456789abcdef"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, and no network."""
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def cached(models: Models, cache: Path) -> Path:
    """The cache with two revisions of ns/model, as links to blobs."""
    repo = cache / "models--ns--model"
    for name in ("refs", "blobs", "snapshots"):
        (repo / name).mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "refs" / "old").write_text(OLDER)
    for commit, size in ((COMMIT, 3), (OLDER, 5)):
        models.write(repo / "blobs" / commit, models.random(size, {"x": (size,)}))
        (repo / "snapshots" / commit).mkdir()
        link = repo / "snapshots" / commit / "model.safetensors"
        link.symlink_to(Path("../../blobs") / commit)
    return repo


@pytest.mark.parametrize(
    ("source", "commit", "size"),
    [
        ("ns/model", COMMIT, 3),
        ("ns/model@main", COMMIT, 3),
        ("ns/model@old", OLDER, 5),
        (f"ns/model@{OLDER}", OLDER, 5),
    ],
)
@pytest.mark.usefixtures("cached")
def test_a_hub_id_is_read_from_the_cache(source: str, commit: str, size: int) -> None:
    opened = open_checkpoint(source)
    assert (opened.repo, opened.revision) == ("ns/model", commit)
    assert opened.span("x").shape == (size,)


@pytest.mark.usefixtures("cached")
def test_a_local_folder_comes_before_a_hub_id(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.save("ns/model", models.random(1, {"mine": (2,)}))
    monkeypatch.chdir(models.root)
    opened = open_checkpoint("ns/model")
    assert list(opened) == ["mine"]
    assert (opened.repo, opened.revision) == (None, None)


def test_a_home_folder_is_found(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    models.save("m", models.random(1, {"mine": (2,)}))
    monkeypatch.setenv("HOME", str(models.root))
    assert list(open_checkpoint("~/m")) == ["mine"]


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("source", ["ns/other", "ns/model@nosuch"])
def test_an_id_that_is_not_cached_is_named(source: str) -> None:
    with pytest.raises(CheckpointError, match="not in the Hub cache") as caught:
        open_checkpoint(source)
    assert source.split("@")[0] in str(caught.value)


@pytest.mark.parametrize("source", ["model", "a/b/c", "./no/such/folder", "/no/such/folder"])
def test_what_can_only_be_a_path_is_called_a_missing_path(source: str) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder") as caught:
        open_checkpoint(source)
    assert source in str(caught.value)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("source", ["../nothing", "./nothing", "a--b/model", "ns/model.git"])
def test_a_mistyped_path_that_looks_like_an_id_is_an_ordinary_error(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(source)
    assert source in str(caught.value)


def test_an_unfinished_download_is_refused(cached: Path) -> None:
    index = cached / "snapshots" / COMMIT / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "model-00002-of-00002.safetensors"}}')
    with pytest.raises(CheckpointError, match="is the download complete"):
        open_checkpoint("ns/model")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("GatedRepoError", "hf auth login"),
        ("RepositoryNotFoundError", "no such model on the Hub"),
        ("RevisionNotFoundError", "has no revision 'v2'"),
        ("HfHubHTTPError", "download failed"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, error: str, words: str
) -> None:
    import huggingface_hub

    def refuse(*args: object, **options: object) -> str:
        response: Any = SimpleNamespace(headers={}, request=None)
        raise getattr(huggingface_hub.errors, error)("refused", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="ns/model") as caught:
        open_checkpoint("ns/model@v2")
    assert words in str(caught.value)


def test_only_what_a_bundle_needs_is_asked_for(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.utils._paths import filter_repo_objects

    folder = models.save(COMMIT, models.random(1, {"x": (2,)}))
    asked: dict[str, Any] = {}

    def download(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_checkpoint("ns/model").revision == COMMIT
    kept = filter_repo_objects(
        [
            "model-00001-of-00002.safetensors", "config.json", "LICENSE", "tokenizer.model",
            "pytorch_model.bin", "model.gguf", "onnx/model.onnx", "onnx/config.json",
            "consolidated.safetensors", "original/params.json", "modeling.py",
        ],
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )  # fmt: skip
    assert asked["repo"] == "ns/model"
    assert sorted(kept) == [
        "LICENSE", "config.json", "model-00001-of-00002.safetensors", "tokenizer.model",
    ]  # fmt: skip
