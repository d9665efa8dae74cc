from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from onebitfmt import __version__
from onebitfmt.collection import Collection
from onebitfmt.errors import BaseMismatchError, FormatError, HubError, UsageError
from onebitfmt.transfer.push import Pushed, PushOptions, push
from onebitfmt.verbs.convert import convert
from onebitfmt.verbs.plan import ConvertOptions
from tests.hubserver.faults import Fault

if TYPE_CHECKING:
    from tests.conftest import Models, Pair
    from tests.hubserver.hub import Hub

REPO = "tester/experts"
BASE = "tester/base"


@pytest.fixture
def base_id(hub: Hub, pair: Pair) -> str:
    """The base on the Hub, as tester/base@COMMIT."""
    commit = hub.commit(BASE, {"model.safetensors": pair.base / "model.safetensors"})
    return f"{BASE}@{commit}"


@pytest.fixture
def options(base_id: str) -> PushOptions:
    return PushOptions(base_model_id=base_id)


@pytest.fixture
def collection(pair: Pair, tmp_path: Path) -> Path:
    bundles = {"math": pair.bundle, "code": pair.bundle}
    Collection.create(tmp_path / "c", pair.base, bundles)
    return tmp_path / "c"


def published(hub: Hub, revision: str = "main", repo: str = REPO) -> dict[str, bytes]:
    """The files of the repository, without what the Hub put there."""
    files = {path: file.read_bytes() for path, file in hub.files(repo, revision).items()}
    del files[".gitattributes"]
    return files


def local(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def payload(hub: Hub) -> int:
    """Bytes of file content that reached the server outside the commit."""
    return sum(r.received for r in hub.requests if "/_lfs/" in r.path or r.method == "PUT")


def sent(pushed: Pushed) -> set[str]:
    return {file.path for file in pushed.files if not file.there}


# --- what is published ---------------------------------------------------------------------------


def test_a_collection_arrives_in_one_commit(
    hub: Hub, collection: Path, options: PushOptions, base_id: str
) -> None:
    pushed = push(collection, REPO, options)
    found = published(hub)
    expected = local(collection)
    assert {p: d for p, d in found.items() if p.startswith("experts/")} == {
        p: d for p, d in expected.items() if p.startswith("experts/")
    }
    assert sorted(found.keys() - expected.keys()) == ["README.md"]
    config = json.loads(found["config.json"])
    assert config["base"]["repo"], config["base"]["revision"] == base_id.split("@")
    del config["base"]["repo"], config["base"]["revision"]
    assert config == json.loads(expected["config.json"])
    assert len(hub.commits(REPO)) == 2  # the Hub's own first one, and ours
    assert pushed.commit == hub.head(REPO)
    assert pushed.url == f"{hub.url}/{REPO}/commit/{pushed.commit}"
    assert pushed.created
    assert {f.path: f.nbytes for f in pushed.files} == {p: len(d) for p, d in found.items()}


def test_a_bundle_becomes_a_collection_of_one(hub: Hub, pair: Pair, options: PushOptions) -> None:
    push(pair.bundle, REPO, options)
    found = published(hub)
    prefix = "experts/expert.obd/"
    assert {p.removeprefix(prefix): d for p, d in found.items() if p.startswith(prefix)} == local(
        pair.bundle
    )
    config = json.loads(found["config.json"])
    manifest = hashlib.sha256((pair.bundle / "obd.json").read_bytes()).hexdigest()
    assert config["experts"]["expert"]["sha256"] == manifest


def test_every_request_names_us_and_the_card_is_valid(
    hub: Hub, pair: Pair, options: PushOptions
) -> None:
    from huggingface_hub import ModelCard

    hub.forget()
    push(pair.bundle, REPO, options)
    # Signed addresses of storage are not the Hub's own.
    own = [r for r in hub.requests if not r.path.startswith("/_lfs/")]
    assert len(own) > 5
    assert all(f"onebitfmt/{__version__}" in r.user_agent for r in own)
    card = ModelCard(published(hub)["README.md"].decode())
    assert card.data.base_model == [BASE] or card.data.base_model == BASE
    assert card.data.library_name == "onebitfmt"


def test_what_is_there_is_not_sent_again(hub: Hub, collection: Path, options: PushOptions) -> None:
    first = push(collection, REPO, options)
    assert payload(hub) > 0
    hub.forget()
    again = push(collection, REPO, options)
    assert (again.commit, again.changed, again.sent) == (first.commit, False, 0)
    assert len(hub.commits(REPO)) == 2
    assert payload(hub) == 0


def test_a_changed_expert_is_all_that_moves(
    hub: Hub, models: Models, pair: Pair, tmp_path: Path, options: PushOptions
) -> None:
    bundles = {"math": pair.bundle, "code": pair.bundle}
    Collection.create(tmp_path / "c", pair.base, bundles)
    push(tmp_path / "c", REPO, options)
    expert = models.save("other", models.tuned(pair.base_tensors, 9))
    convert(pair.base, expert, tmp_path / "o.obd", ConvertOptions(preset="linear"))
    bundles["code"] = tmp_path / "o.obd"
    Collection.create(tmp_path / "c", pair.base, bundles, overwrite=True)
    hub.forget()
    pushed = push(tmp_path / "c", REPO, options)
    assert {p.split("/")[1] for p in sent(pushed) if "/" in p} == {"code.obd"}
    weights = list((tmp_path / "o.obd").glob("*.safetensors"))
    assert payload(hub) == sum(f.stat().st_size for f in weights)
    # The first expert had small files, this one has none.
    assert pushed.deleted == tuple(
        sorted(
            f"experts/code.obd/expert/{p}"
            for p in ("README.md", "config.json", "tokenizer/vocab.txt")
        )
    )
    kept = {p: d for p, d in published(hub).items() if p.startswith("experts/")}
    assert kept == {p: d for p, d in local(tmp_path / "c").items() if p.startswith("experts/")}


def test_a_second_bundle_joins_the_first(
    hub: Hub, pair: Pair, tmp_path: Path, options: PushOptions
) -> None:
    push(pair.bundle, REPO, options)
    before = published(hub)
    # The place of the base is known from the first push.
    made = Collection.create(tmp_path / "c", pair.base, {"math": pair.bundle})
    pushed = push(made.bundle("math").path, REPO, PushOptions())
    assert sent(pushed) <= {"config.json", "README.md"}
    after = published(hub)
    assert {p: d for p, d in after.items() if p.startswith("experts/")} == {
        p: d for p, d in before.items() if p.startswith("experts/")
    }


def test_a_collection_replaces_what_was_published_and_touches_nothing_else(
    hub: Hub, pair: Pair, collection: Path, options: PushOptions
) -> None:
    push(pair.bundle, REPO, options)
    others = {
        "plot.svg": b"<svg/>",
        "LICENSE": b"mine",
        "router.safetensors": b"not recorded",
        "experts/lora/adapter.safetensors": b"lora",
        "experts/README.md": b"text",
    }
    hub.commit(REPO, others)
    pushed = push(collection, REPO, options)
    found = published(hub)
    assert {p: found[p] for p in others} == others
    bundles = {p.split("/")[1] for p in found if p.startswith("experts/") and ".obd/" in p}
    assert bundles == {"math.obd", "code.obd"}
    assert set(pushed.deleted) == {f"experts/expert.obd/{p}" for p in local(pair.bundle)}


def test_files_of_something_else_are_not_overwritten(
    hub: Hub, collection: Path, options: PushOptions
) -> None:
    path = "experts/math.obd/obd.json"
    hub.commit(REPO, {path: b"theirs"})
    with pytest.raises(UsageError, match="holds something else"):
        push(collection, REPO, options)
    assert published(hub) == {path: b"theirs"}


def test_what_no_reader_would_take_is_not_published(
    hub: Hub, pair: Pair, tmp_path: Path, options: PushOptions
) -> None:
    push(pair.bundle, REPO, options)
    twin = tmp_path / "Expert.obd"
    convert(pair.base, pair.expert, twin, ConvertOptions(preset="linear"))
    with pytest.raises(UsageError, match="upper and lower case"):
        push(twin, REPO, options)
    assert len(hub.commits(REPO)) == 2


def test_text_of_the_readme_stays(hub: Hub, collection: Path, options: PushOptions) -> None:
    (collection / "README.md").write_bytes(b"# Of the folder\n")
    push(collection, REPO, options)
    assert b"# Of the folder\n" in published(hub)["README.md"]
    # From then on the one on the Hub counts: others may have edited it there.
    hub.commit(REPO, {"README.md": b"---\nlicense: mit # mine\n---\n# Mine\r\ntext\r\n"})
    push(collection, REPO, options)
    text = published(hub)["README.md"]
    assert b"license: mit # mine\n" in text
    assert b"# Mine\r\ntext\r\n" in text
    assert b"# Of the folder" not in text


def test_a_link_publishes_nothing_of_this_machine(
    hub: Hub, collection: Path, options: PushOptions, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("the key")
    (collection / "README.md").symlink_to(tmp_path / "secret")
    push(collection, REPO, options)
    assert not any(b"the key" in data for data in published(hub).values())


def test_a_damaged_readme_is_not_published_as_the_users_text(
    hub: Hub, collection: Path, options: PushOptions
) -> None:
    hub.commit(REPO, {"README.md": b"# Mine\n"})
    hub.faults.add(Fault(path="README.md", method="GET", wrong_bytes=True))
    with pytest.raises(HubError, match="wrong bytes in README"):
        push(collection, REPO, options)
    push(collection, REPO, options)
    assert published(hub)["README.md"].count(b"# Mine\n") == 1


# --- revisions and pull requests -----------------------------------------------------------------


def test_a_new_branch_starts_at_main(hub: Hub, collection: Path, options: PushOptions) -> None:
    hub.commit(REPO, {"notes.txt": b"x"})
    head = hub.head(REPO)
    pushed = push(collection, REPO, replace(options, revision="v2"))
    assert hub.head(REPO) == head
    assert hub.head(REPO, "v2") == pushed.commit
    assert published(hub, "v2")["notes.txt"] == b"x"
    assert hub.commits(REPO, "v2")[1].sha == head


def test_a_branch_is_made_also_where_nothing_changes(
    hub: Hub, collection: Path, options: PushOptions
) -> None:
    head = push(collection, REPO, options).commit
    pushed = push(collection, REPO, replace(options, revision="v2"))
    assert not pushed.changed
    assert hub.head(REPO, "v2") == head == pushed.commit


def test_a_new_repository_may_get_a_branch(
    hub: Hub, collection: Path, options: PushOptions
) -> None:
    pushed = push(collection, REPO, replace(options, revision="v2"))
    assert list(published(hub)) == []
    assert hub.head(REPO, "v2") == pushed.commit


def test_a_pull_request_leaves_main_alone(hub: Hub, collection: Path, options: PushOptions) -> None:
    hub.create(REPO)
    head = hub.head(REPO)
    pushed = push(collection, REPO, replace(options, create_pr=True, message="Experts"))
    assert hub.head(REPO) == head
    assert pushed.commit == hub.head(REPO, "refs/pr/1")
    assert pushed.pull_request == f"{hub.url}/{REPO}/discussions/1"
    assert hub.commits(REPO, "refs/pr/1")[0].title == "Experts"
    with pytest.raises(UsageError, match="--create-pr"):
        PushOptions(create_pr=True, revision="v2")
    with pytest.raises(UsageError, match="name a branch"):
        PushOptions(revision=head)


def test_private_is_for_new_repositories(hub: Hub, collection: Path, options: PushOptions) -> None:
    push(collection, REPO, replace(options, private=True))
    assert hub.repo(REPO).private
    push(collection, REPO, replace(options, private=True))
    hub.create("tester/public")
    with pytest.raises(UsageError, match="is public"):
        push(collection, "tester/public", replace(options, private=True))
    assert published(hub, repo="tester/public") == {}


# --- the base ------------------------------------------------------------------------------------


def test_a_local_base_is_refused_with_the_fix(hub: Hub, collection: Path) -> None:
    with pytest.raises(UsageError, match="--base-model-id ns/name"):
        push(collection, REPO)
    for local_path in ("./base", "/models/base", "base", "a/b/c"):
        with pytest.raises(UsageError, match=f"--base-model-id {local_path}: not a model"):
            push(collection, REPO, PushOptions(base_model_id=local_path))
    assert not hub.exists(REPO)


def test_a_recorded_path_is_no_place_on_the_hub(hub: Hub, collection: Path) -> None:
    value = json.loads((collection / "config.json").read_bytes())
    value["base"]["repo"] = "../base"
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    (collection / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"\.\./base.*--base-model-id"):
        push(collection, REPO)


def test_the_base_is_pinned_to_a_commit(hub: Hub, collection: Path, base_id: str) -> None:
    push(collection, REPO, PushOptions(base_model_id=BASE))
    base = json.loads(published(hub)["config.json"])["base"]
    assert f"{base['repo']}@{base['revision']}" == base_id


def test_another_model_is_not_the_base(
    hub: Hub, models: Models, pair: Pair, collection: Path
) -> None:
    other = models.save("other", models.llama(3, vocabulary=101))
    hub.commit("tester/other", {"model.safetensors": other / "model.safetensors"})
    with pytest.raises(BaseMismatchError, match=r"tester/other@.* is not the base"):
        push(collection, REPO, PushOptions(base_model_id="tester/other"))
    # Of the same shapes: the fine-tune itself, and a copy whose large tensors alone differ.
    hub.commit("tester/tuned", {"model.safetensors": pair.expert / "model.safetensors"})
    large = {n: t for n, t in pair.expert_tensors.items() if t[1].size >= 4096}
    part = models.save("part", {**pair.base_tensors, **large})
    hub.commit("tester/part", {"model.safetensors": part / "model.safetensors"})
    for repo in ("tester/tuned", "tester/part"):
        with pytest.raises(BaseMismatchError, match="holds other values"):
            push(collection, REPO, PushOptions(base_model_id=repo))
    hub.commit("tester/empty", {"pytorch_model.bin": b"x"})
    with pytest.raises(UsageError, match="no safetensors weights"):
        push(collection, REPO, PushOptions(base_model_id="tester/empty"))
    with pytest.raises(HubError, match="tester/none"):
        push(collection, REPO, PushOptions(base_model_id="tester/none"))
    assert not hub.exists(REPO)


# --- nothing is half done ------------------------------------------------------------------------


def test_a_dry_run_says_what_would_move_and_changes_nothing(
    hub: Hub, collection: Path, options: PushOptions
) -> None:
    dry = replace(options, dry_run=True)
    plan = push(collection, REPO, dry)
    assert plan.created
    assert plan.commit is None
    assert not hub.exists(REPO)
    assert not any(r.method in ("POST", "PUT") for r in hub.requests)
    done = push(collection, REPO, options)
    assert (plan.files, plan.deleted, plan.sent) == (done.files, done.deleted, done.sent)
    hub.forget()
    nothing = push(collection, REPO, dry)
    assert (nothing.changed, nothing.sent) == (False, 0)


def test_damage_is_found_before_anything_is_sent(
    hub: Hub, collection: Path, options: PushOptions
) -> None:
    file = next((collection / "experts" / "math.obd").glob("mlp*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(FormatError, match=r"nothing was sent \(2 faults; the first: ") as caught:
        push(collection, REPO, options)
    assert "math.obd" in str(caught.value)
    assert str(caught.value).count(f"[{caught.value.id}]") == 1
    assert not hub.exists(REPO)


def test_another_commit_in_between_stops_the_push(
    hub: Hub, collection: Path, options: PushOptions
) -> None:
    hub.create(REPO)

    def compete() -> None:
        hub.commit(REPO, {"notes.txt": b"theirs"})

    hub.faults.add(Fault(path=rf"/api/models/{REPO}/commit/", before=compete))
    with pytest.raises(HubError, match="run the command again"):
        push(collection, REPO, options)
    assert published(hub) == {"notes.txt": b"theirs"}
    hub.forget()
    push(collection, REPO, options)
    # All was uploaded the first time; only the commit was refused.
    assert payload(hub) == 0
    assert published(hub)["notes.txt"] == b"theirs"
    assert "config.json" in published(hub)


def test_something_else_is_not_overwritten(
    hub: Hub, collection: Path, options: PushOptions
) -> None:
    hub.commit(REPO, {"config.json": b'{"model_type": "llama"}'})
    with pytest.raises(UsageError, match="holds something else"):
        push(collection, REPO, options)
    assert published(hub) == {"config.json": b'{"model_type": "llama"}'}


def test_a_file_that_the_hub_leaves_out_is_noticed(
    hub: Hub, collection: Path, options: PushOptions
) -> None:
    hub.commit(REPO, {".gitignore": b"vocab.txt\n"})
    with pytest.raises(HubError, match=r"vocab\.txt.*\.gitignore"):
        push(collection, REPO, options)


def test_without_a_token_nothing_is_tried(
    hub: Hub, collection: Path, options: PushOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    hub.forget()
    with pytest.raises(HubError, match="hf auth login"):
        push(collection, REPO, options)
    assert hub.requests == []


def test_a_token_that_may_not_write(hub: Hub, collection: Path, options: PushOptions) -> None:
    hub.create(REPO)
    token = hub.add_token("hf_reader", role="read")
    with pytest.raises(HubError, match="may write") as caught:
        push(collection, REPO, options, token=token)
    assert token not in str(caught.value)
    assert payload(hub) == 0


def test_a_repository_is_named_plainly(hub: Hub, collection: Path) -> None:
    for text in ("experts", "a/b/c", "ns/name@main", "ns/name:math", "./ns/name"):
        with pytest.raises(UsageError, match="not a repository"):
            push(collection, text)
