"""Accounts and repositories: create, delete, settings, branches, tags, history."""

from __future__ import annotations

from tests.hubserver.card_rules import faults_of_card
from tests.hubserver.exchange import Call, Reply
from tests.hubserver.store import Kind, Refusal

_OK = Reply(body=b"OK", content_type="text/plain")


def whoami(call: Call) -> Reply:
    """Who a token belongs to."""
    account = call.account()
    if account is None:
        raise Refusal(401, "Invalid username or password.")
    return Reply.json(account.whoami())


def agent_harnesses(call: Call) -> Reply:
    """A registry that the client asks for once a day: an empty one."""
    return Reply.json({"standardEnvVars": [], "harnesses": {}})


def create(call: Call) -> Reply:
    """Make a repository. An existing one is 409 with its address, which `exist_ok` reads."""
    asked = call.json()
    account = call.must_write()
    kind: Kind = asked.get("type") or "model"
    repo_id = f"{asked.get('organization') or account.name}/{asked['name']}"
    prefix = "" if kind == "model" else f"{kind}s/"
    url = f"{call.server.url}/{prefix}{repo_id}"
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    try:
        call.server.store.create(kind, repo_id, private=private)
    except Refusal as refusal:
        error = {"error": refusal.message, "url": url}
        headers = {"X-Error-Message": refusal.message}
        return Reply.json(error, status=refusal.status, headers=headers)
    return Reply.json({"url": url, "name": repo_id, "id": "65f0" + "0" * 20})


def delete(call: Call) -> Reply:
    """Delete a repository."""
    asked = call.json()
    kind: Kind = asked.get("type") or "model"
    account = call.must_write()
    repo = call.writer(f"{kind}s", f"{asked.get('organization') or account.name}/{asked['name']}")
    with call.server.store.lock:
        del call.server.store.repos[repo.kind, repo.id]
    return _OK


def validate_yaml(call: Call) -> Reply:
    """Check the metadata of a model card."""
    errors = faults_of_card(call.json()["content"])
    shown = {"errors": [{"message": error} for error in errors], "warnings": []}
    return Reply.json(shown, status=400 if errors else 200)


def settings(call: Call, kind: str, repo_id: str) -> Reply:
    """Change who may see a repository."""
    repo = call.writer(kind, repo_id)
    asked = call.json()
    if "gated" in asked:
        repo.gated = bool(asked["gated"])
    if "visibility" in asked:
        repo.private = asked["visibility"] == "private"
    return Reply.json({"private": repo.private, "gated": repo.gated})


def refs(call: Call, kind: str, repo_id: str) -> Reply:
    """Branches, tags and pull requests."""
    repo = call.reader(kind, repo_id)
    branches, pulls = [], []
    for name, sha in repo.refs.items():
        if name.startswith("refs/pr/"):
            pulls.append({"name": name.removeprefix("refs/"), "ref": name, "targetCommit": sha})
        else:
            branches.append({"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha})
    tags = [
        {"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha}
        for name, sha in repo.tags.items()
    ]
    return Reply.json({"branches": branches, "tags": tags, "converts": [], "pullRequests": pulls})


def branch(call: Call, kind: str, repo_id: str, name: str) -> Reply:
    """Make or delete a branch."""
    repo = call.writer(kind, repo_id)
    if call.method == "DELETE":
        if repo.refs.pop(name, None) is None:
            raise Refusal(404, f"Branch {name} does not exist", "RevisionNotFound")
        return _OK
    if name in repo.refs:
        raise Refusal(409, f"Reference already exists: {name}")
    repo.refs[name] = repo.resolve(call.json().get("startingPoint") or "main").sha
    return _OK


def tag(call: Call, kind: str, repo_id: str, name: str) -> Reply:
    """Tag a revision, or delete the tag of that name."""
    repo = call.writer(kind, repo_id)
    if call.method == "DELETE":
        if repo.tags.pop(name, None) is None:
            raise Refusal(404, f"Tag {name} does not exist", "RevisionNotFound")
        return _OK
    new = call.json()["tag"]
    if new in repo.tags:
        raise Refusal(409, f"Tag reference exists already: {new}")
    repo.tags[new] = repo.resolve(name).sha
    return _OK


def commits(call: Call, kind: str, repo_id: str, revision: str) -> Reply:
    """The history of a revision, newest first."""
    repo = call.reader(kind, repo_id)
    return Reply.json(
        [
            {
                "id": commit.sha,
                "title": commit.title,
                "message": commit.description,
                "date": commit.date,
                "authors": [{"user": "tester", "avatar": ""}],
            }
            for commit in repo.log(revision)
        ]
    )
