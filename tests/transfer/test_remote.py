from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from onebitfmt.errors import HubError, UnsupportedError, UsageError
from onebitfmt.hub.address import HubId
from onebitfmt.hub.client import HubOptions
from onebitfmt.transfer.remote import RemoteCollection, hub_options, with_revision
from tests.hubserver.faults import Fault
from tests.transfer.published import REPO

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hubserver.hub import Hub
    from tests.transfer.published import Published

MANIFEST = "experts/math.obd/obd.json"
ATTENTION = "experts/math.obd/attention.obd.safetensors"


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def test_config_is_all_that_is_read_first(published: Published) -> None:
    remote = RemoteCollection.open(REPO)
    assert published.downloaded() == {"config.json": len(published.files["config.json"])}
    assert str(remote) == f"{REPO}@{published.commit}"
    assert remote.expert_names == ("chat", "math")
    assert remote.entry("math").nbytes == published.size("experts/math.obd/")
    assert not remote.config_cached
    assert RemoteCollection.open(REPO).config_cached
    assert published.downloaded() == {}


def test_a_manifest_is_fetched_once(published: Published) -> None:
    remote = RemoteCollection.open(REPO)
    manifest = remote.manifest("math")
    assert manifest.expert.name == "math"
    assert published.downloaded().keys() == {"config.json", MANIFEST}
    remote.fetch_manifests(["chat", "math"])
    assert published.downloaded().keys() == {"experts/chat.obd/obd.json"}
    assert remote.manifest("math") is manifest


def test_files_are_those_of_the_expert_or_of_its_groups(published: Published) -> None:
    remote = RemoteCollection.open(REPO)
    sizes = {path: entry.size for path, entry in remote.files("math").items()}
    folder = "experts/math.obd/"
    assert sizes == {p: len(d) for p, d in published.files.items() if p.startswith(folder)}
    assert remote.files("math", ["attention"]).keys() == {MANIFEST, ATTENTION}
    assert remote.files("math", []).keys() == {MANIFEST}
    assert remote.own_groups("math", ["nix", "mlp"]) == ["mlp"]
    assert remote.own_groups("math", None) is None
    router = remote.router_files()["router.safetensors"]
    assert router.size == len(published.files["router.safetensors"])


def test_what_is_fetched_opens_as_a_collection(published: Published) -> None:
    remote = RemoteCollection.open(REPO)
    remote.fetch(remote.files("math"))
    bundle = remote.collection().bundle("math")
    assert bundle.container.missing_files == []
    found = {p: d for p, d in published.files.items() if p.startswith("experts/math.obd/")}
    assert {path: (remote.snapshot.folder / path).read_bytes() for path in found} == found


@pytest.mark.usefixtures("published")
def test_unknown_names_are_told_with_the_known_ones() -> None:
    remote = RemoteCollection.open(REPO)
    for wrong, words in (
        (lambda: remote.entry("poetry"), "no expert 'poetry'; the experts are chat, math"),
        (lambda: remote.choose("poetry"), "no expert 'poetry'"),
        (lambda: remote.choose(None), f"name one of {REPO}:chat, {REPO}:math"),
        (lambda: remote.manifest("poetry"), "no expert 'poetry'"),
        (lambda: remote.files("math", ["nix"]), "'nix'; the groups are attention, mlp, embedding"),
    ):
        with pytest.raises(UsageError, match=words):
            wrong()
    assert remote.choose("math") == "math"


def test_one_expert_needs_no_name(hub: Hub, published: Published) -> None:
    config = json.loads(published.files["config.json"])
    del config["experts"]["chat"], config["router"]
    hub.commit(REPO, {"config.json": canonical(config)})
    remote = RemoteCollection.open(REPO)
    assert remote.choose(None) == "math"
    assert remote.router_files() == {}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "has no file config.json, so it is not a collection"),
        (b'{"model_type":"llama"}', "is not a collection"),
        (b"[", "is not a collection"),
        (b"\xff\xfe", "is not a collection"),
    ],
)
def test_what_is_no_collection(hub: Hub, config: bytes | None, words: str) -> None:
    commit = hub.commit("tester/model", {} if config is None else {"config.json": config})
    with pytest.raises(HubError, match=words) as caught:
        RemoteCollection.open("tester/model")
    assert str(caught.value).startswith(f"tester/model@{commit}")


def test_a_newer_collection_is_not_called_broken(hub: Hub) -> None:
    config = canonical({"format": "obd-collection", "version": "2.0"})
    hub.commit("tester/new", {"config.json": config})
    with pytest.raises(UnsupportedError, match="update"):
        RemoteCollection.open("tester/new")


@pytest.mark.parametrize(
    ("path", "use"),
    [
        ("config.json", lambda remote: remote),
        (MANIFEST, lambda remote: remote.manifest("math")),
        (ATTENTION, lambda remote: remote.fetch(remote.files("math", ["attention"]))),
        ("router.safetensors", lambda remote: remote.fetch(remote.router_files())),
    ],
)
def test_wrong_bytes_of_the_right_size_are_removed(
    published: Published, path: str, use: Callable[[RemoteCollection], object]
) -> None:
    hub, good = published.hub, published.files[path]
    hub.replace(REPO, path, flipped(good))
    for _ in range(2):
        with pytest.raises(HubError, match=path) as caught:
            use(RemoteCollection.open(REPO))
        assert "removed" in str(caught.value)
        assert not [p for p in hub.cache.rglob("*") if p.is_file() and p.read_bytes() == good]
        assert not list(hub.cache.glob(f"*/snapshots/*/{path}"))
    hub.replace(REPO, path, good)
    use(RemoteCollection.open(REPO))
    assert next(hub.cache.glob(f"*/snapshots/*/{path}")).read_bytes() == good


def test_force_asks_for_config_again(published: Published) -> None:
    RemoteCollection.open(REPO)
    published.downloaded()
    remote = RemoteCollection.open(REPO, force=True)
    assert not remote.config_cached
    remote.config_files()
    assert published.downloaded().keys() == {"config.json"}


@pytest.mark.usefixtures("quick_retries")
def test_a_hub_that_fails_for_a_moment_is_asked_again(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onebitfmt.hub.snapshot._PAUSES", (0.0, 0.0))
    fault = published.hub.faults.add(
        Fault(path="config.json", method="GET", status=503, times=None)
    )
    with pytest.raises(HubError, match="503"):
        RemoteCollection.open(REPO)
    assert published.hub.faults.hits(fault) == 3
    published.hub.faults.clear()
    published.hub.faults.add(Fault(path="config.json", method="GET", status=503, times=2))
    assert RemoteCollection.open(REPO).expert_names == ("chat", "math")


def test_a_revision_is_given_once() -> None:
    plain, pinned = HubId(repo="a/b"), HubId(repo="a/b", revision="v1")
    assert with_revision(plain, None) == plain
    assert with_revision(plain, "v1") == pinned
    assert with_revision(pinned, "v1") == with_revision(pinned, None) == pinned
    with pytest.raises(UsageError, match="a/b@v1 names a revision, and 'v2' is another"):
        with_revision(pinned, "v2")


def test_options_are_those_of_every_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    told = HubOptions(token="t", cache_dir=tmp_path / "c", local_files_only=True)
    assert hub_options("t", "~/c", True) == told
    assert hub_options(None, None, False) == HubOptions()
