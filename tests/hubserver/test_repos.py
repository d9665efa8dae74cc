"""Accounts, repositories, revisions and refusals, through the huggingface_hub client."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, create_repo, get_token, whoami
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hubserver.hub import Hub

REPO = "ns/model"


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_the_functions_of_the_package_reach_the_server_with_its_token(hub: Hub) -> None:
    assert get_token() == hub.token
    assert whoami()["name"] == "tester"
    assert create_repo(REPO).url == f"{hub.url}/{REPO}"
    assert [request.path for request in hub.requests] == ["/api/whoami-v2", "/api/repos/create"]
    assert hub.requests[0].headers["authorization"] == f"Bearer {hub.token}"


def test_a_repository_is_made_once(hub: Hub) -> None:
    api = HfApi()
    made = api.create_repo(REPO, private=True)
    assert hub.repo(REPO).private
    assert api.repo_exists(REPO)
    assert api.create_repo(REPO, exist_ok=True) == made
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_repo(REPO)
    assert status_of(refused) == 409
    assert [commit.title for commit in hub.commits(REPO)] == ["initial commit"]
    api.delete_repo(REPO)
    assert not hub.exists(REPO)
    assert not api.repo_exists(REPO)
    api.delete_repo(REPO, missing_ok=True)


def test_a_dataset_is_another_repository_than_a_model_of_that_name(hub: Hub) -> None:
    api = HfApi()
    url = api.create_repo(REPO, repo_type="dataset")
    assert (url.repo_type, url.repo_id) == ("dataset", REPO)
    assert not hub.exists(REPO)
    api.upload_file(path_or_fileobj=b"a", path_in_repo="a", repo_id=REPO, repo_type="dataset")
    assert "a" in api.list_repo_files(REPO, repo_type="dataset")
    assert Path(api.hf_hub_download(REPO, "a", repo_type="dataset")).read_bytes() == b"a"


def test_settings(hub: Hub) -> None:
    hub.create(REPO)
    HfApi().update_repo_settings(REPO, private=True, gated="auto")
    assert (hub.repo(REPO).private, hub.repo(REPO).gated) == (True, True)


def test_branches_and_tags(hub: Hub) -> None:
    first, second = (hub.commit(REPO, {"a": data}) for data in (b"1", b"2"))
    api = HfApi()
    api.create_branch(REPO, branch="old", revision=first)
    api.create_tag(REPO, tag="v1", revision="old")
    refs = api.list_repo_refs(REPO)
    assert {branch.name: branch.target_commit for branch in refs.branches} == {
        "main": second,
        "old": first,
    }
    assert {tag.name: tag.target_commit for tag in refs.tags} == {"v1": first}
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_branch(REPO, branch="old")
    assert status_of(refused) == 409
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_tag(REPO, tag="v1")
    assert status_of(refused) == 409
    api.delete_branch(REPO, branch="old")
    api.delete_tag(REPO, tag="v1")
    assert (set(hub.repo(REPO).refs), hub.repo(REPO).tags) == ({"main"}, {})
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(REPO, tag="v1")


def test_history(hub: Hub) -> None:
    shas = [hub.commit(REPO, {"a": data}, message=f"{data!r}") for data in (b"1", b"2")]
    commits = HfApi().list_repo_commits(REPO)
    assert [commit.commit_id for commit in commits] == [*shas[::-1], hub.commits(REPO)[-1].sha]
    assert [commit.title for commit in commits] == ["b'2'", "b'1'", "initial commit"]


@pytest.mark.parametrize("revision", ["main", "HEAD", "v1", "refs/pr/1", "sha", "short"])
def test_a_revision_has_many_names(hub: Hub, revision: str) -> None:
    sha = hub.commit(REPO, {"a": b"1"})
    hub.tag(REPO, "v1")
    hub.repo(REPO).pull_request("main")
    asked = {"sha": sha, "short": sha[:8]}.get(revision, revision)
    assert HfApi().model_info(REPO, revision=asked).sha == sha


def test_what_is_missing(hub: Hub) -> None:
    hub.create(REPO)
    api = HfApi()
    with pytest.raises(RepositoryNotFoundError) as refused:
        api.model_info("ns/other")
    assert not isinstance(refused.value, GatedRepoError)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="v9")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(REPO, "no.txt")
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(REPO, "no"))


def test_a_private_repository_is_hidden(hub: Hub) -> None:
    hub.commit(REPO, {"a": b"1"})
    hub.repo(REPO).private = True
    outsider = hub.add_token("hf_outsider", member=False)
    assert HfApi().model_info(REPO).private
    for token, status in ((False, 401), (outsider, 404)):
        with pytest.raises(RepositoryNotFoundError) as refused:
            HfApi(token=token).model_info(REPO)
        assert status_of(refused) == status


def test_a_gated_repository_shows_its_files_and_keeps_their_bytes(hub: Hub) -> None:
    hub.commit(REPO, {"a": b"1"})
    hub.repo(REPO).gated = True
    outsider = hub.add_token("hf_outsider", member=False)
    for token, status in ((False, 401), (outsider, 403)):
        api = HfApi(token=token)
        assert "a" in api.list_repo_files(REPO)
        assert api.model_info(REPO).gated == "auto"
        with pytest.raises(GatedRepoError) as refused:
            api.hf_hub_download(REPO, "a")
        assert status_of(refused) == status
    hub.repo(REPO).granted.add("hf-outsider")
    assert Path(HfApi(token=outsider).hf_hub_download(REPO, "a")).read_bytes() == b"1"


def test_a_token_may_be_wrong_or_only_read(hub: Hub) -> None:
    hub.commit(REPO, {"a": b"1"})
    hub.repo(REPO).private = True
    reader = HfApi(token=hub.add_token("hf_read", role="read"))
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    assert Path(reader.hf_hub_download(REPO, "a")).read_bytes() == b"1"
    outsider = HfApi(token=hub.add_token("hf_outsider", member=False))
    hub.commit("ns/public", {"a": b"1"})
    for api, repo, status in (
        (reader, REPO, 403),
        (outsider, "ns/public", 403),
        (HfApi(token="hf_wrong"), REPO, 401),
        (HfApi(token=False), "ns/public", 401),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            api.upload_file(path_or_fileobj=b"2", path_in_repo="a", repo_id=repo)
        assert status_of(refused) == status
    with pytest.raises(HfHubHTTPError) as refused:
        reader.create_repo("ns/new")
    assert status_of(refused) == 403
    assert (hub.read(REPO, "a"), hub.read("ns/public", "a")) == (b"1", b"1")


CARD = """---
license: apache-2.0
base_model: ns/base
base_model_relation: adapter
tags:
- task-vector
---
# Words
"""


def test_a_card_is_pushed_and_its_metadata_shown(hub: Hub) -> None:
    hub.create(REPO)
    # Not `ModelCard.push_to_hub`: in 1.31 it asks huggingface.co, whatever the endpoint.
    api = HfApi()
    api.upload_file(path_or_fileobj=CARD.encode(), path_in_repo="README.md", repo_id=REPO)
    assert hub.read(REPO, "README.md").decode().endswith("# Words\n")
    info = api.model_info(REPO)
    assert info.tags == ["task-vector"]
    assert info.card_data is not None
    assert info.card_data["base_model_relation"] == "adapter"
    assert ModelCard.load(REPO).data["base_model"] == "ns/base"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ns/base", "./models/base", "base_model"),
        ("ns/base", "/models/base", "base_model"),
        ("apache-2.0", "mine", "license"),
        ("adapter", "delta", "base_model_relation"),
        ("- task-vector", "- 3", "tags"),
        ("tags:", "tags: [", "YAML"),
    ],
)
def test_a_card_the_hub_refuses(hub: Hub, old: str, new: str, words: str) -> None:
    hub.create(REPO)
    data = CARD.replace(old, new).encode()
    with pytest.raises(ValueError, match=words):
        HfApi().upload_file(path_or_fileobj=data, path_in_repo="README.md", repo_id=REPO)
    assert "README.md" not in hub.files(REPO)
