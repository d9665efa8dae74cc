"""Uploads, through the huggingface_hub client."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    get_session,
)
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from tests.hubserver.hub import Hub

REPO = "ns/model"
Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete


def noise(nbytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(nbytes)


def add(path: str, data: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=data)


@pytest.fixture
def api(hub: Hub) -> HfApi:
    hub.create(REPO)
    return HfApi()


def test_a_small_file_goes_with_the_commit(hub: Hub, api: HfApi) -> None:
    done = api.upload_file(path_or_fileobj=b"{}", path_in_repo="a/config.json", repo_id=REPO)
    assert hub.read(REPO, "a/config.json") == b"{}"
    assert hub.entry(REPO, "a/config.json").sha256 is None
    assert (done.oid, done.commit_url) == (hub.head(REPO), f"{hub.url}/{REPO}/commit/{done.oid}")
    assert not hub.matching("/_lfs/")


@pytest.mark.parametrize("part_size", [None, 100_000, 300_000])
def test_an_lfs_file_goes_in_one_piece_or_in_parts(
    hub: Hub, api: HfApi, tmp_path: Path, part_size: int | None
) -> None:
    hub.configure(part_size=part_size)
    data = noise(300_000 + (part_size == 100_000))
    (tmp_path / "x").write_bytes(data)
    api.upload_file(path_or_fileobj=tmp_path / "x", path_in_repo="x.safetensors", repo_id=REPO)
    assert hub.read(REPO, "x.safetensors") == data
    puts = hub.matching("/_lfs/", "PUT")
    assert sum(request.received for request in puts) == len(data)
    assert len(puts) == (4 if part_size == 100_000 else 1)
    assert not any("authorization" in request.headers for request in puts)


def test_the_threshold_and_the_suffixes_decide(hub: Hub, api: HfApi) -> None:
    hub.configure(lfs_threshold=10, lfs_suffixes=(".w",))
    operations = [
        add("a.txt", b"1" * 9),
        add("b.txt", b"1" * 10),
        add("c.w", b"1"),
        add("d.w", b""),
    ]
    api.create_commit(REPO, operations, commit_message="four")
    lfs = {path for path in hub.files(REPO) if hub.entry(REPO, path).sha256}
    assert lfs == {"b.txt", "c.w"}


def test_many_files_are_one_commit(hub: Hub, api: HfApi) -> None:
    operations = [add(f"f/{i}.safetensors", noise(1000, i)) for i in range(40)]
    head = api.model_info(REPO).sha
    api.create_commit(REPO, operations, commit_message="forty", parent_commit=head)
    assert [commit.title for commit in hub.commits(REPO)] == ["forty", "initial commit"]
    assert hub.read(REPO, "f/39.safetensors") == noise(1000, 39)


def test_what_is_there_is_not_sent_again(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.txt"):
        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "m" / name).write_bytes(noise(5000))
    api.upload_folder(repo_id=REPO, folder_path=tmp_path / "m")
    head = hub.head(REPO)
    hub.forget()
    again = api.upload_folder(repo_id=REPO, folder_path=tmp_path / "m")
    assert (again.oid, hub.head(REPO)) == (head, head)
    assert not hub.matching("/_lfs/|/commit/")
    hub.create("ns/other")
    api.upload_folder(repo_id="ns/other", folder_path=tmp_path / "m")
    assert not hub.matching("/_lfs/put")
    assert hub.read("ns/other", "a.safetensors") == noise(5000)


def test_two_files_of_one_content(hub: Hub, api: HfApi) -> None:
    hub.configure(part_size=1000)
    operations = [add("a.bin", noise(2500)), add("b.bin", noise(2500))]
    api.create_commit(REPO, operations, commit_message="twins")
    assert hub.read(REPO, "a.bin") == hub.read(REPO, "b.bin") == noise(2500)


def test_delete_and_copy(hub: Hub, api: HfApi) -> None:
    files = {"a.bin": noise(100), "b.txt": b"b", "f/c.txt": b"c", "f/g/d.txt": b"d"}
    hub.commit(REPO, files)
    operations: list[Operation] = [
        CommitOperationCopy(src_path_in_repo="a.bin", path_in_repo="copy/a.bin"),
        CommitOperationDelete(path_in_repo="b.txt"),
        CommitOperationDelete(path_in_repo="f/", is_folder=True),
        add("new.txt", b"new"),
    ]
    api.create_commit(REPO, operations, commit_message="all kinds")
    assert set(hub.files(REPO)) == {".gitattributes", "a.bin", "copy/a.bin", "new.txt"}
    api.delete_file("new.txt", REPO)
    assert "new.txt" not in hub.files(REPO)
    with pytest.raises(HfHubHTTPError):
        api.delete_file("new.txt", REPO)


def test_a_stale_parent_is_refused(hub: Hub, api: HfApi) -> None:
    parent = hub.head(REPO)
    head = hub.commit(REPO, {"a.txt": b"theirs"})
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_commit(
            REPO, [add("a.txt", b"mine")], commit_message="late", parent_commit=parent
        )
    assert refused.value.response.status_code == 412
    assert (hub.head(REPO), hub.read(REPO, "a.txt")) == (head, b"theirs")


def test_a_branch_must_exist(hub: Hub, api: HfApi) -> None:
    with pytest.raises(RevisionNotFoundError):
        api.create_commit(REPO, [add("a", b"1")], commit_message="lost", revision="no")
    api.create_branch(REPO, branch="dev")
    api.create_commit(REPO, [add("a", b"1")], commit_message="kept", revision="dev")
    assert ("a" in hub.files(REPO), "a" in hub.files(REPO, "dev")) == (False, True)


def test_a_pull_request(hub: Hub, api: HfApi) -> None:
    done = api.create_commit(REPO, [add("a.bin", b"1")], commit_message="please", create_pr=True)
    assert (done.pr_num, done.pr_revision) == (1, "refs/pr/1")
    assert ("a.bin" in hub.files(REPO), "a.bin" in hub.files(REPO, "refs/pr/1")) == (False, True)
    refs = api.list_repo_refs(REPO, include_pull_requests=True)
    assert [pull.ref for pull in refs.pull_requests or ()] == ["refs/pr/1"]


def test_a_pull_request_starts_at_its_parent(hub: Hub, api: HfApi) -> None:
    parent = hub.head(REPO)
    hub.commit(REPO, {"theirs": b"1"})
    api.create_commit(
        REPO, [add("mine", b"1")], commit_message="please", create_pr=True, parent_commit=parent
    )
    assert set(hub.files(REPO, "refs/pr/1")) == {".gitattributes", "mine"}
    assert set(hub.files(REPO)) == {".gitattributes", "theirs"}


def test_an_object_of_another_sha256_is_refused(hub: Hub, api: HfApi) -> None:
    address = f"{hub.url}/_lfs/put/{'0' * 64}"
    signed = get_session().put(f"{address}?{hub.server.signature}", content=b"wrong")
    assert signed.status_code == 400
    assert get_session().put(address, content=b"wrong").status_code == 403
    assert not hub.server.store.lfs_path("0" * 64).exists()
    assert not list((hub.server.store.root / "parts").iterdir())


def test_a_body_in_chunks(hub: Hub, api: HfApi) -> None:
    operation = add("a.bin", noise(70_000))
    address = f"{hub.url}/_lfs/put/{operation.upload_info.sha256.hex()}?{hub.server.signature}"
    blocks = (noise(70_000)[start : start + 30_000] for start in range(0, 70_000, 30_000))
    assert get_session().put(address, content=blocks).status_code == 200
    (request,) = hub.matching("/_lfs/put")
    assert (request.headers["transfer-encoding"], request.received) == ("chunked", 70_000)


def test_lfs_objects_may_go_before_the_commit(hub: Hub, api: HfApi) -> None:
    operation = add("a.bin", noise(1000))
    api.preupload_lfs_files(REPO, [operation])
    assert "a.bin" not in hub.files(REPO)
    assert len(hub.matching("/_lfs/put")) == 1
    api.create_commit(REPO, [operation], commit_message="now")
    assert hub.read(REPO, "a.bin") == noise(1000)
    assert len(hub.matching("/_lfs/put")) == 1
