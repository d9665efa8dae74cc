from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants

from onebitfmt.errors import HubError, UsageError
from onebitfmt.hub.client import HubOptions
from onebitfmt.hub.snapshot import Preview, Snapshot
from tests.hubserver.faults import Fault

if TYPE_CHECKING:
    from tests.hubserver.hub import Hub

REPO = "ns/model"
FILES = {
    "config.json": b'{"a": 1}',
    "a.safetensors": b"a" * 3000,
    "sub/a.safetensors": b"b" * 2000,
    "sub/b.safetensors": b"c" * 1000,
    "odd/[a].txt": b"brackets",
    "odd/a.txt": b"plain",
    "odd/*.txt": b"star",
    "odd/?.txt": b"question",
    "odd/[!a].txt": b"not",
}
PAYLOAD = ["a.safetensors", "sub/b.safetensors"]


@pytest.fixture(autouse=True)
def commit(hub: Hub) -> str:
    return hub.commit(REPO, FILES)


@pytest.fixture(params=["cache", "folder"])
def local_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param == "cache" else tmp_path / "here"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digests(*names: str) -> dict[str, str]:
    return {name: digest(FILES[name]) for name in names}


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".cache" not in path.parts
    }


def gets(hub: Hub) -> list[str]:
    """The files of which bytes were asked for."""
    return [r.path.split("/", 5)[5] for r in hub.matching(r"/resolve/", "GET")]


# --- the commit ----------------------------------------------------------------------------------


def test_a_revision_is_resolved_once(hub: Hub, commit: str) -> None:
    snapshot = Snapshot.open(REPO)
    assert (snapshot.repo, snapshot.commit, str(snapshot)) == (REPO, commit, f"{REPO}@{commit}")
    hub.commit(REPO, {"config.json": b"newer"})
    snapshot.fetch(["config.json"])
    assert (snapshot.folder / "config.json").read_bytes() == FILES["config.json"]
    assert Snapshot.open(REPO).commit != commit


def test_a_revision_is_a_branch_a_tag_a_pull_request_or_a_commit(hub: Hub, commit: str) -> None:
    hub.tag(REPO, "v1")
    newer = hub.commit(REPO, {"x": b"x"}, revision="side")
    hub.repo(REPO).refs["refs/pr/1"] = newer
    found = {r: Snapshot.open(REPO, r).commit for r in ("main", "v1", "side", "refs/pr/1", commit)}
    assert found == {
        "main": commit,
        "v1": commit,
        "side": newer,
        "refs/pr/1": newer,
        commit: commit,
    }


def test_a_full_commit_needs_no_request(hub: Hub, commit: str) -> None:
    Snapshot.open(REPO, commit)
    assert hub.requests == []


def test_the_commit_of_the_last_time_offline(
    monkeypatch: pytest.MonkeyPatch, commit: str, hub: Hub
) -> None:
    Snapshot.open(REPO)
    hub.forget()
    assert Snapshot.open(REPO, None, HubOptions(local_files_only=True)).commit == commit
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Snapshot.open(REPO).commit == commit
    with pytest.raises(HubError, match="not in the Hub cache"):
        Snapshot.open(REPO, "v1")
    assert hub.requests == []


def test_the_commit_of_the_last_time_while_the_hub_is_down(
    hub: Hub, commit: str, caplog: pytest.LogCaptureFixture
) -> None:
    Snapshot.open(REPO)
    hub.faults.add(Fault(path="/api/models/", status=503, times=None))
    assert Snapshot.open(REPO).commit == commit
    assert "Using cached commit hash" in caplog.text


# --- fetching ------------------------------------------------------------------------------------


def test_exactly_the_files_named_are_fetched(
    hub: Hub, local_dir: Path | None, capfd: pytest.CaptureFixture[str]
) -> None:
    snapshot = Snapshot.open(REPO, local_dir=local_dir)
    snapshot.fetch(PAYLOAD)
    assert files_in(snapshot.folder) == {name: FILES[name] for name in PAYLOAD}
    assert sorted(gets(hub)) == PAYLOAD
    assert hub.sent < sum(len(FILES[name]) for name in PAYLOAD) + 5000
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name", ["odd/[a].txt", "odd/*.txt", "odd/?.txt", "odd/[!a].txt", "odd/a.txt"]
)
def test_a_name_is_no_pattern(name: str, local_dir: Path | None) -> None:
    snapshot = Snapshot.open(REPO, local_dir=local_dir)
    snapshot.fetch([name])
    assert files_in(snapshot.folder) == {name: FILES[name]}


def test_files_lie_in_the_cache_or_plainly_in_the_folder(
    hub: Hub, commit: str, local_dir: Path | None, tmp_path: Path
) -> None:
    cache = tmp_path / "other"
    snapshot = Snapshot.open(REPO, None, HubOptions(cache_dir=cache), local_dir=local_dir)
    snapshot.fetch(["config.json"])
    expected = local_dir or cache / "models--ns--model" / "snapshots" / commit
    assert snapshot.folder == expected
    assert (expected / "config.json").is_symlink() is (local_dir is None)
    assert (snapshot.listed("config.json"), snapshot.listed("none")) == (True, False)
    assert not hub.cache.exists()


def test_what_is_here_needs_no_request(hub: Hub, commit: str, local_dir: Path | None) -> None:
    Snapshot.open(REPO, local_dir=local_dir).fetch(PAYLOAD)
    hub.forget()
    snapshot = Snapshot.open(REPO, commit, local_dir=local_dir)
    snapshot.fetch(PAYLOAD)
    assert [p.cached for p in snapshot.preview(PAYLOAD)] == [True, True]
    assert hub.requests == []


def test_only_what_is_missing_is_fetched(hub: Hub, local_dir: Path | None) -> None:
    Snapshot.open(REPO, local_dir=local_dir).fetch(PAYLOAD[:1])
    hub.forget()
    Snapshot.open(REPO, local_dir=local_dir).fetch(PAYLOAD)
    assert gets(hub) == PAYLOAD[1:]


def test_force_fetches_once(hub: Hub, local_dir: Path | None) -> None:
    Snapshot.open(REPO, local_dir=local_dir).fetch(PAYLOAD)
    hub.forget()
    snapshot = Snapshot.open(REPO, local_dir=local_dir, force=True)
    assert [p.cached for p in snapshot.preview(PAYLOAD)] == [False, False]
    snapshot.fetch(PAYLOAD[:1])
    assert [p.cached for p in snapshot.preview(PAYLOAD)] == [True, False]
    snapshot.fetch(PAYLOAD)
    snapshot.fetch(PAYLOAD)
    assert sorted(gets(hub)) == PAYLOAD


def test_force_needs_the_hub() -> None:
    with pytest.raises(UsageError, match="do without local_files_only"):
        Snapshot.open(REPO, None, HubOptions(local_files_only=True), force=True)


def test_a_file_that_the_commit_lacks_is_named(commit: str, local_dir: Path | None) -> None:
    snapshot = Snapshot.open(REPO, local_dir=local_dir)
    for ask in (snapshot.preview, snapshot.fetch):
        with pytest.raises(HubError, match=rf"^{REPO}@{commit} has no file sub/x\.safetensors$"):
            ask(["config.json", "sub/x.safetensors"])


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a//b", "./a", "a\\b", ""])
def test_a_name_that_leads_elsewhere_is_refused(
    hub: Hub, commit: str, local_dir: Path | None, name: str
) -> None:
    snapshot = Snapshot.open(REPO, commit, local_dir=local_dir)
    for ask in (snapshot.fetch, snapshot.preview):
        with pytest.raises(HubError, match="is no name of a file"):
            ask([name])
    with pytest.raises(HubError, match="is no name of a file"):
        snapshot.check({name: "0" * 64})
    assert hub.requests == []


def test_nothing_is_asked_offline(hub: Hub, local_dir: Path | None) -> None:
    Snapshot.open(REPO, local_dir=local_dir).fetch(PAYLOAD[:1])
    hub.forget()
    offline = HubOptions(local_files_only=True)
    snapshot = Snapshot.open(REPO, None, offline, local_dir=local_dir)
    snapshot.fetch(PAYLOAD[:1])
    assert [p.cached for p in snapshot.preview(PAYLOAD[:1])] == [True]
    for ask in (snapshot.fetch, snapshot.preview):
        with pytest.raises(HubError, match=r"b\.safetensors is not in .*do without local_files"):
            ask(PAYLOAD)
    assert hub.requests == []


def test_a_file_of_another_commit_is_not_taken_for_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Snapshot.open(REPO, local_dir=tmp_path / "d").fetch(["config.json"])
    hub.commit(REPO, {"config.json": b"newer"})
    Snapshot.open(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = Snapshot.open(REPO, local_dir=tmp_path / "d")
    with pytest.raises(HubError, match=r"config\.json is not in .*unset HF_HUB_OFFLINE"):
        snapshot.fetch(["config.json"])
    assert (tmp_path / "d" / "config.json").read_bytes() == FILES["config.json"]


def test_an_edited_file_is_fetched_anew(tmp_path: Path) -> None:
    snapshot = Snapshot.open(REPO, local_dir=tmp_path / "d")
    snapshot.fetch(["config.json"])
    edited = tmp_path / "d" / "config.json"
    edited.write_bytes(b"edited")
    os.utime(edited, (time.time() + 60,) * 2)
    Snapshot.open(REPO, local_dir=tmp_path / "d").fetch(["config.json"])
    assert edited.read_bytes() == FILES["config.json"]


@pytest.mark.usefixtures("quick_retries")
def test_complete_files_stay_when_another_breaks(hub: Hub) -> None:
    hub.faults.add(
        Fault(path=r"sub/b\.safetensors", method="GET", drop_response_after=10, times=None)
    )
    snapshot = Snapshot.open(REPO)
    snapshot.fetch(PAYLOAD[:1])
    with pytest.raises(HubError, match="the connection broke"):
        snapshot.fetch(PAYLOAD)
    assert files_in(snapshot.folder).keys() == {PAYLOAD[0]}
    assert not list(hub.cache.rglob("*.incomplete"))
    hub.faults.clear()
    hub.forget()
    snapshot.fetch(PAYLOAD)
    assert gets(hub) == PAYLOAD[1:]


# --- patterns and previews -----------------------------------------------------------------------


def test_patterns_take_and_leave(local_dir: Path | None) -> None:
    snapshot = Snapshot.open(REPO, local_dir=local_dir)
    folder = snapshot.fetch_matching(["*.safetensors"], ["sub/b*"])
    assert folder == snapshot.folder
    assert files_in(folder).keys() == {"a.safetensors", "sub/a.safetensors"}


def test_patterns_are_not_asked_for_offline(hub: Hub) -> None:
    Snapshot.open(REPO).fetch_matching(["*.safetensors"], ["sub/*"])
    hub.forget()
    snapshot = Snapshot.open(REPO, None, HubOptions(local_files_only=True))
    assert files_in(snapshot.fetch_matching(["*.safetensors"], ["sub/*"])).keys() == {PAYLOAD[0]}
    with pytest.raises(HubError, match="not all of it is in the Hub cache"):
        snapshot.fetch_matching(["*.safetensors"], [])
    assert hub.requests == []


def test_a_preview_moves_no_payload(hub: Hub, local_dir: Path | None, tmp_path: Path) -> None:
    snapshot = Snapshot.open(REPO, local_dir=local_dir)
    names = ["sub/b.safetensors", "config.json", "a.safetensors", "odd/[a].txt"]
    expected = [Preview(path=name, nbytes=len(FILES[name]), cached=False) for name in names]
    assert snapshot.preview(names) == expected
    assert gets(hub) == []
    assert local_dir is None or not local_dir.exists()
    snapshot.fetch(["config.json"])
    assert [p.cached for p in snapshot.preview(names)] == [False, True, False, False]


def test_an_unchanged_file_of_another_commit_is_cached(hub: Hub) -> None:
    Snapshot.open(REPO).fetch(PAYLOAD)
    hub.commit(REPO, {"a.safetensors": b"new"})
    snapshot = Snapshot.open(REPO)
    assert snapshot.preview(PAYLOAD) == [
        Preview(path="a.safetensors", nbytes=3, cached=False),
        Preview(path="sub/b.safetensors", nbytes=1000, cached=True),
    ]
    hub.forget()
    snapshot.fetch(PAYLOAD)
    assert gets(hub) == ["a.safetensors"]


def test_a_folder_takes_files_of_the_same_commit_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    Snapshot.open(REPO).fetch(PAYLOAD)
    hub.forget()
    snapshot = Snapshot.open(REPO, local_dir=tmp_path / "d")
    assert [p.cached for p in snapshot.preview(PAYLOAD)] == [True, True]
    snapshot.fetch(PAYLOAD)
    assert gets(hub) == []
    newer = hub.commit(REPO, {"config.json": b"newer"})
    other = Snapshot.open(REPO, newer, local_dir=tmp_path / "e")
    assert [p.cached for p in other.preview(PAYLOAD)] == [False, False]


# --- checking ------------------------------------------------------------------------------------


def test_right_bytes_pass(local_dir: Path | None) -> None:
    snapshot = Snapshot.open(REPO, local_dir=local_dir)
    names = [*PAYLOAD, "config.json"]
    snapshot.fetch(names)
    snapshot.check(digests(*names))
    snapshot.check({})
    for name in names:
        snapshot.check_listed(name)


@pytest.mark.parametrize("name", ["a.safetensors", "config.json"])
@pytest.mark.parametrize("force", [False, True])
def test_wrong_bytes_of_the_right_size_are_removed_and_a_repeat_is_right(
    hub: Hub, local_dir: Path | None, name: str, force: bool
) -> None:
    wrong = FILES[name][:-1] + b"!"
    hub.faults.add(Fault(path=f"/resolve/.*/{name}", method="GET", wrong_bytes=True))
    snapshot = Snapshot.open(REPO, local_dir=local_dir, force=force)
    snapshot.fetch([name, "odd/a.txt"])
    assert (snapshot.folder / name).stat().st_size == len(wrong)
    with pytest.raises(HubError, match=f"wrong bytes in {name}; removed: run the command again"):
        snapshot.check(digests("odd/a.txt", name))
    assert files_in(snapshot.folder).keys() == {"odd/a.txt"}
    again = Snapshot.open(REPO, local_dir=local_dir)
    again.fetch([name, "odd/a.txt"])
    again.check(digests("odd/a.txt", name))
    assert len(gets(hub)) == 3


@pytest.mark.parametrize("name", ["a.safetensors", "config.json"])
def test_a_listing_tells_wrong_bytes_too(hub: Hub, local_dir: Path | None, name: str) -> None:
    hub.faults.add(Fault(path=f"/resolve/.*/{name}", method="GET", wrong_bytes=True))
    snapshot = Snapshot.open(REPO, local_dir=local_dir)
    snapshot.fetch([name])
    with pytest.raises(HubError, match=f"wrong bytes in {name}; removed"):
        snapshot.check_listed(name)
    again = Snapshot.open(REPO, local_dir=local_dir)
    again.fetch([name])
    again.check_listed(name)
    again.check(digests(name))


def test_without_a_listing_all_is_fine(hub: Hub) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download(REPO, "config.json")
    snapshot = Snapshot.open(REPO)
    (snapshot.folder / "config.json").resolve().write_bytes(b"changed")
    snapshot.check_listed("config.json")


def test_all_wrong_files_are_removed_and_counted(hub: Hub, local_dir: Path | None) -> None:
    snapshot = Snapshot.open(REPO, local_dir=local_dir)
    snapshot.fetch([*PAYLOAD, "config.json"])
    for name in PAYLOAD:
        (snapshot.folder / name).resolve().write_bytes(b"damage")
    with pytest.raises(HubError, match=r"wrong bytes in a\.safetensors and 1 more; removed"):
        snapshot.check(digests(*PAYLOAD, "config.json"))
    assert files_in(snapshot.folder).keys() == {"config.json"}


def test_a_digest_that_the_owner_got_wrong(local_dir: Path | None) -> None:
    for _ in range(2):
        snapshot = Snapshot.open(REPO, local_dir=local_dir)
        snapshot.fetch(["config.json"])
        with pytest.raises(HubError, match="tell the owner"):
            snapshot.check({"config.json": "0" * 64})


def test_a_file_that_is_gone(commit: str) -> None:
    with pytest.raises(HubError, match=r"a\.safetensors: No such file"):
        Snapshot.open(REPO, commit).check(digests("a.safetensors"))
