from __future__ import annotations

from pathlib import Path

import pytest

from onebitfmt.errors import UsageError
from onebitfmt.hub.address import HubId, hub_id, local_path, parse_hub_id

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "repo", "expert", "revision"),
    [
        ("ns/name", "ns/name", None, None),
        ("n/m", "n/m", None, None),
        ("_a.b-c/d_e.f", "_a.b-c/d_e.f", None, None),
        ("ns/name:math", "ns/name", "math", None),
        ("ns/name:math-v1.5", "ns/name", "math-v1.5", None),
        ("ns/name@main", "ns/name", None, "main"),
        (f"ns/name@{SHA}", "ns/name", None, SHA),
        ("ns/name@refs/pr/3", "ns/name", None, "refs/pr/3"),
        ("ns/name@feature/a+b#1", "ns/name", None, "feature/a+b#1"),
        ("ns/name:math@v1", "ns/name", "math", "v1"),
        ("ns/name@a:b", "ns/name", None, "a:b"),
        (f"n/{'m' * 94}", f"n/{'m' * 94}", None, None),
    ],
)
def test_an_id_has_a_repository_and_may_have_an_expert_and_a_revision(
    text: str, repo: str, expert: str | None, revision: str | None
) -> None:
    found = parse_hub_id(text)
    assert found == HubId(repo=repo, expert=expert, revision=revision)
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "name", "a/b/c", "./name", "../name", "/ns/name", "~/name", "~", "ns/", "/name",
        "ns//name", "ns/name/", "C:/name", "C:\\name", "ns\\name", "-ns/name", "ns/-name",
        "ns/name-", ".ns/name", "ns/.name", "ns/name.", "a--b/name", "ns/a..b", "ns/name.git",
        "ns/na me", " ns/name", "ns/name\n", "ns/name:", "ns/name@", "ns/name:@v1", "ns/name:a:b",
        "ns/name:a/b", "ns/name@a@b", "ns/name@a b", "n\u00e4/name", f"n/{'m' * 95}", "hf://ns/name",
        "https://host/name",
    ],
)  # fmt: skip
def test_what_cannot_be_an_id_is_none(text: str) -> None:
    assert parse_hub_id(text) is None
    assert hub_id(text) is None


def test_a_local_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_id("ns/name") == HubId(repo="ns/name")
    (tmp_path / "ns" / "name").mkdir(parents=True)
    assert hub_id("ns/name") is None
    assert hub_id("ns/name:math") == HubId(repo="ns/name", expert="math")
    (tmp_path / "ns" / "name@v1").touch()
    assert hub_id("ns/name@v1") is None


def test_a_path_object_is_always_local() -> None:
    assert hub_id(Path("ns/name")) is None


def test_the_clients_own_rule_agrees() -> None:
    from huggingface_hub.utils import validate_repo_id

    for text in ("_a.b-c/d_e.f", f"n/{'m' * 94}"):
        validate_repo_id(text)


def test_the_home_of_nobody_is_wrong_usage() -> None:
    for call in (local_path, hub_id):
        with pytest.raises(UsageError, match="no such user"):
            call("~nosuchuserhere/x")
