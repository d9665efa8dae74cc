from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from onebitfmt.bundle import Bundle
from onebitfmt.checkpoint import Checkpoint
from onebitfmt.collection import Collection
from onebitfmt.errors import FormatError, HubError, OutputError, UsageError
from onebitfmt.transfer.pull import Pulled, pull
from onebitfmt.transfer.push import push
from onebitfmt.verbs.convert import convert
from onebitfmt.verbs.plan import ConvertOptions
from onebitfmt.verbs.verify import verify
from tests.hubserver.faults import Fault
from tests.transfer.published import README, REPO, Local, contents

if TYPE_CHECKING:
    from tests.conftest import Models
    from tests.hubserver.hub import Hub
    from tests.transfer.published import Published

MATH = f"{REPO}:math"
FOLDER = "experts/math.obd"
ATTENTION = f"{FOLDER}/attention.obd.safetensors"
OTHERS = ("mlp", "embedding", "head", "norm", "expert/")


def paths(pulled: Pulled, *, cached: bool) -> set[str]:
    return {file.path for file in pulled.files if file.cached is cached}


@pytest.fixture
def go_offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    import huggingface_hub.constants

    return lambda: monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def newer(published: Published, models: Models) -> Local:
    """A second commit: math is made anew, chat is gone, poetry is new."""
    base = published.local.base
    for seed, name in enumerate(("math", "poetry")):
        files = {"config.json": f'{{"name": "{name}"}}'}
        expert = models.save(name, models.tuned(models.llama(1), seed + 7), files=files)
        convert(base, expert, models.root / f"{name}.obd", ConvertOptions(preset="linear"))
    bundles = [models.root / "math.obd", models.root / "poetry.obd"]
    Collection.create(models.root / "c2", base, bundles)
    local = Local(folder=models.root / "c2", base=base)
    now: dict[str, bytes | Path] = {**local.files()}
    gone = [path for path in published.files if path not in now and path != "README.md"]
    published.hub.commit(REPO, now, delete=gone)
    return local


# --- what moves ----------------------------------------------------------------------------------


def test_a_collection_comes_whole(published: Published) -> None:
    pulled = pull(REPO)
    sizes = {path: len(data) for path, data in published.files.items()}
    assert published.downloaded() == sizes
    assert {file.path: file.nbytes for file in pulled.files} == sizes
    assert contents(pulled.path) == published.files
    assert (pulled.repo, pulled.commit) == (REPO, published.commit)
    assert (pulled.experts, pulled.missing) == (("chat", "math"), {})
    for name in ("chat", "math"):
        path = Collection.open(pulled.path).bundle(name).path
        assert verify(path, published.local.base).findings == ()
    again = pull(REPO)
    assert published.downloaded() == {}
    assert again.fetched == ()
    assert paths(again, cached=True) == set(sizes)


def test_one_expert_comes_without_the_rest(published: Published) -> None:
    pulled = pull(MATH)
    wanted = {p for p in published.files if p.startswith(FOLDER)} | {"config.json"}
    assert published.downloaded().keys() == wanted
    assert paths(pulled, cached=False) == wanted
    assert pulled.path == pulled.path.parents[1] / FOLDER
    assert Bundle.open(pulled.path).container.missing_files == []


def test_a_group_moves_its_own_bytes_and_the_manifests(published: Published) -> None:
    pulled = pull(MATH, groups=["attention"])
    group, manifest = published.size(ATTENTION), published.size(f"{FOLDER}/obd.json")
    assert published.downloaded() == {
        "config.json": len(published.files["config.json"]),
        f"{FOLDER}/obd.json": manifest,
        ATTENTION: group,
    }
    assert sum(file.nbytes for file in pulled.fetched) == published.size(
        "config.json", ATTENTION, f"{FOLDER}/obd.json"
    )
    assert pulled.missing == {"math": OTHERS}
    assert (pulled.path / "attention.obd.safetensors").stat().st_size == group
    # What is not a file: the two answers that list the repository.
    listings = [r for r in published.hub.requests if "/resolve/" not in r.path]
    assert [r.path.split("/")[5:6] for r in listings] == [[], ["tree"]]


def test_a_later_pull_completes_a_partial_one(published: Published) -> None:
    first = pull(MATH, groups=["attention", "mlp"])
    assert first.missing == {"math": OTHERS[1:]}
    bundle = Bundle.open(first.path)
    assert len(bundle.container.missing_files) == 5
    published.downloaded()
    small = pull(MATH, groups=["attention"])
    assert small.missing == {"math": OTHERS[1:]}
    assert published.downloaded() == {}
    whole = pull(MATH)
    assert whole.missing == {}
    assert paths(whole, cached=False) == published.downloaded().keys()
    assert ATTENTION in paths(whole, cached=True)
    assert verify(whole.path).findings == ()


def test_groups_of_all_experts(published: Published) -> None:
    pulled = pull(REPO, groups=["norm"])
    assert {p for p in published.downloaded() if p.endswith(".safetensors")} == {
        "experts/chat.obd/norm.obd.safetensors",
        "experts/math.obd/norm.obd.safetensors",
    }
    assert set(pulled.missing) == {"chat", "math"}


def test_a_dry_run_moves_manifests_alone(published: Published) -> None:
    plan = pull(MATH, groups=["attention"], dry_run=True)
    assert published.downloaded().keys() == {"config.json", f"{FOLDER}/obd.json"}
    assert [(f.path, f.nbytes) for f in plan.files] == [
        ("config.json", published.size("config.json")),
        (f"{FOLDER}/obd.json", published.size(f"{FOLDER}/obd.json")),
        (ATTENTION, published.size(ATTENTION)),
    ]
    assert plan.missing == {"math": OTHERS}
    whole = pull(REPO, dry_run=True)
    assert published.downloaded().keys() == {"experts/chat.obd/obd.json"}
    assert {f.path for f in whole.files} == set(published.files)
    assert whole.missing == {}
    assert not (plan.path / "attention.obd.safetensors").exists()


def test_only_what_changed_is_fetched_of_a_new_commit(published: Published) -> None:
    pull(REPO)
    published.downloaded()
    value = json.loads(published.files["config.json"])
    value["recipe"] = value["recipe"].replace("seed: 0", "seed: 1")
    config = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    commit = published.hub.commit(REPO, {"config.json": config})
    pulled = pull(REPO)
    assert pulled.commit == commit
    assert paths(pulled, cached=False) == published.downloaded().keys() == {"config.json"}


def test_force_fetches_again(published: Published) -> None:
    pull(MATH, groups=["attention"])
    published.downloaded()
    pulled = pull(MATH, groups=["attention"], force_download=True)
    assert paths(pulled, cached=True) == set()
    assert published.downloaded() == {file.path: file.nbytes for file in pulled.files}


def test_there_need_not_be_a_readme(published: Published) -> None:
    published.hub.commit(REPO, {}, delete=["README.md"])
    assert "README.md" not in {file.path for file in pull(REPO).files}


# --- revisions and places ------------------------------------------------------------------------


def test_revisions(published: Published, newer: Local) -> None:
    hub = published.hub
    hub.tag(REPO, "v1", published.commit)
    head = hub.head(REPO)
    hub.commit(REPO, {"README.md": b"draft"}, revision="draft")
    for source, revision, commit in (
        (REPO, None, head),
        (f"{REPO}@v1", None, published.commit),
        (REPO, "v1", published.commit),
        (f"{REPO}@v1", "v1", published.commit),
        (f"{REPO}@{published.commit}", None, published.commit),
        (f"{REPO}@{published.commit[:7]}", None, published.commit),
        (f"{REPO}@draft", None, hub.head(REPO, "draft")),
    ):
        assert pull(source, groups=[], revision=revision).commit == commit
    with pytest.raises(UsageError, match="give one"):
        pull(f"{REPO}@v1", revision="main")
    with pytest.raises(HubError, match="no revision 'v9'"):
        pull(f"{REPO}@v9")
    assert pull(f"{REPO}@v1", groups=[]).experts == ("chat", "math")


def test_what_was_pulled_is_there_offline(
    published: Published, go_offline: Callable[[], None]
) -> None:
    pull(MATH, groups=["attention"])
    published.requests()
    partial = pull(MATH, groups=["attention"], local_files_only=True)
    assert paths(partial, cached=False) == set()
    with pytest.raises(HubError, match=f"{FOLDER}/.* is not in the Hub cache"):
        pull(MATH, local_files_only=True)
    go_offline()
    assert pull(MATH, groups=["attention"]).path == partial.path
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        pull(REPO)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        pull("tester/other")
    assert published.requests() == []


def test_a_whole_collection_is_there_offline(
    published: Published, go_offline: Callable[[], None]
) -> None:
    online = pull(REPO)
    go_offline()
    assert [f.path for f in pull(REPO).files] == [f.path for f in online.files]


def test_another_cache(published: Published, tmp_path: Path) -> None:
    pulled = pull(MATH, groups=[], cache_dir=tmp_path / "other")
    assert tmp_path / "other" in pulled.path.parents
    assert not list(published.hub.cache.rglob("obd.json"))


def test_a_private_repository_needs_a_token(hub: Hub, published: Published) -> None:
    hub.repo(REPO).private = True
    assert pull(REPO, groups=[], token=hub.token).commit == published.commit
    with pytest.raises(HubError, match="private"):
        pull(REPO, token=False)
    with pytest.raises(HubError) as caught:
        pull(REPO, token="hf_stranger")
    assert "hf_stranger" not in str(caught.value)


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        ("./experts", {}, UsageError, "not an id on the Hub"),
        ("a/b/c", {}, UsageError, "not an id on the Hub"),
        (f"{REPO}:poetry", {}, UsageError, "the experts are chat, math"),
        (MATH, {"groups": ["attention", "nix"]}, UsageError, "no layer group 'nix'"),
        (REPO, {"groups": ["nix"]}, UsageError, "no layer group 'nix'"),
        ("tester/nix", {}, HubError, "no such repository"),
    ],
)
def test_wrong_requests_move_no_payload(
    published: Published, source: str, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        pull(source, **options)
    assert published.downloaded().keys() <= {"config.json"}


def test_a_local_path_of_that_name_does_not_matter(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / REPO).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert pull(REPO, groups=[]).commit == published.commit


def test_wrong_bytes_are_removed_and_a_repeat_is_fine(published: Published) -> None:
    published.hub.faults.add(Fault(path=ATTENTION, method="GET", wrong_bytes=True))
    with pytest.raises(HubError, match=ATTENTION):
        pull(MATH)
    assert not list(published.hub.cache.glob(f"*/snapshots/*/{ATTENTION}"))
    published.downloaded()
    pulled = pull(MATH)
    assert published.downloaded().keys() == {ATTENTION}
    assert verify(pulled.path).findings == ()


def test_a_file_that_the_repository_lacks_is_named(published: Published) -> None:
    published.hub.commit(REPO, {}, delete=[ATTENTION])
    with pytest.raises(HubError, match=f"has no file {ATTENTION}"):
        pull(MATH)


@pytest.mark.usefixtures("quick_retries")
def test_a_broken_connection_leaves_complete_files(published: Published) -> None:
    hub = published.hub
    fault = Fault(path=ATTENTION, method="GET", times=None, drop_response_after=1000)
    hub.faults.add(fault)
    with pytest.raises(HubError, match="run the command again"):
        pull(MATH)
    hub.faults.clear()
    published.downloaded()
    pulled = pull(MATH)
    assert published.downloaded().keys() == {f.path for f in pulled.fetched}
    assert ATTENTION in paths(pulled, cached=False)
    assert verify(pulled.path).findings == ()


# --- into a folder -------------------------------------------------------------------------------


def test_a_folder_holds_plain_files(published: Published, tmp_path: Path) -> None:
    plan = pull(REPO, local_dir=tmp_path / "d", dry_run=True)
    assert not (tmp_path / "d").exists()
    pulled = pull(REPO, local_dir=tmp_path / "d")
    assert [f.path for f in pulled.files] == [f.path for f in plan.files]
    assert pulled.path == plan.path == tmp_path / "d"
    assert contents(tmp_path / "d") == published.files
    assert not any(path.is_symlink() for path in (tmp_path / "d").rglob("*"))
    sent = published.downloaded()
    assert sent == {path: len(published.files[path]) for path in sent}
    assert Collection.open(tmp_path / "d").load_router() is not None
    pull(REPO, local_dir=tmp_path / "d")
    assert published.downloaded() == {}


def test_a_partial_folder_is_completed(published: Published, tmp_path: Path) -> None:
    first = pull(MATH, groups=["attention"], local_dir=tmp_path / "d")
    assert contents(tmp_path / "d").keys() == {"config.json", f"{FOLDER}/obd.json", ATTENTION}
    assert first.path == tmp_path / "d" / FOLDER
    assert first.missing == {"math": OTHERS}
    assert Collection.open(tmp_path / "d").bundle("math").container.missing_files
    published.downloaded()
    pulled = pull(REPO, local_dir=tmp_path / "d")
    assert ATTENTION in paths(pulled, cached=True)
    assert ATTENTION not in published.downloaded()
    assert contents(tmp_path / "d") == published.files


def test_a_newer_commit_takes_the_place_of_an_older_one(
    published: Published, newer: Local, tmp_path: Path
) -> None:
    pull(f"{REPO}@{published.commit}", local_dir=tmp_path / "d")
    (tmp_path / "d" / "notes.txt").write_text("mine")
    published.downloaded()
    pulled = pull(REPO, local_dir=tmp_path / "d")
    # No digest of a README is known before it is asked for.
    assert published.downloaded().keys() == {f.path for f in pulled.fetched} - {"README.md"}
    assert f"{FOLDER}/expert/config.json" in paths(pulled, cached=True)
    found = contents(tmp_path / "d")
    assert found == {**newer.files(), "README.md": README, "notes.txt": b"mine"}


def test_a_part_of_a_newer_commit_leaves_nothing_of_the_older_one(
    published: Published, newer: Local, tmp_path: Path
) -> None:
    folder = tmp_path / "d"
    pull(f"{REPO}@{published.commit}", local_dir=folder)
    pulled = pull(MATH, groups=["attention"], local_dir=folder)
    wanted = {"config.json", f"{FOLDER}/obd.json", ATTENTION, f"{FOLDER}/expert/config.json"}
    found = contents(folder)
    assert found.keys() - {"README.md"} == wanted
    assert all(found[path] == newer.files()[path] for path in wanted)
    assert pulled.missing == {"math": OTHERS[:-1]}
    whole = pull(REPO, local_dir=folder)
    assert whole.missing == {}
    assert contents(folder) == {**newer.files(), "README.md": README}


def test_an_expert_that_did_not_change_stays(published: Published, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    pull(REPO, local_dir=folder)
    value = json.loads(published.files["config.json"])
    value["recipe"] = value["recipe"].replace("seed: 0", "seed: 1")
    config = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    published.hub.commit(REPO, {"config.json": config})
    pull(MATH, local_dir=folder)
    assert contents(folder) == {**published.files, "config.json": config}


@pytest.mark.usefixtures("quick_retries")
def test_a_half_done_update_cannot_be_opened(
    published: Published, newer: Local, tmp_path: Path
) -> None:
    folder = tmp_path / "d"
    pull(f"{REPO}@{published.commit}", local_dir=folder)
    hub = published.hub
    hub.faults.add(Fault(path=ATTENTION, method="GET", times=None, drop_response_after=100))
    with pytest.raises(HubError):
        pull(REPO, local_dir=folder)
    for opening in (lambda: Collection.open(folder), lambda: Bundle.open(folder / FOLDER)):
        with pytest.raises(FormatError, match=r"not a collection|no manifest"):
            opening()
    hub.faults.clear()
    pull(REPO, local_dir=folder)
    assert contents(folder) == {**newer.files(), "README.md": README}


def test_wrong_bytes_do_not_stay_in_a_folder(published: Published, tmp_path: Path) -> None:
    published.hub.faults.add(Fault(path=ATTENTION, method="GET", wrong_bytes=True))
    with pytest.raises(HubError, match=ATTENTION):
        pull(MATH, local_dir=tmp_path / "d")
    assert not (tmp_path / "d" / ATTENTION).exists()
    assert not (tmp_path / "d" / "config.json").exists()
    pull(MATH, local_dir=tmp_path / "d")
    assert verify(tmp_path / "d" / FOLDER).findings == ()


@pytest.mark.usefixtures("published")
def test_what_no_pull_made_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("mine")
    with pytest.raises(OutputError, match="no pull made it"):
        pull(REPO, local_dir=mine)
    with pytest.raises(OutputError, match="is a file"):
        pull(REPO, local_dir=mine / "README.md")
    assert contents(mine) == {"README.md": b"mine"}
    (mine / "README.md").unlink()
    assert pull(REPO, groups=[], local_dir=mine).path == mine
    (mine / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(OutputError, match="no pull made it"):
        pull(REPO, local_dir=mine)


def test_a_folder_of_another_download_is_left_alone(published: Published, tmp_path: Path) -> None:
    # As a home folder has, and what `hf download` wrote.
    (tmp_path / "home" / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / "home" / "README.md").write_text("mine")
    with pytest.raises(OutputError, match="no pull made it"):
        pull(REPO, local_dir=tmp_path / "home")
    published.hub.commit("tester/other", published.files)
    pull(REPO, local_dir=tmp_path / "d")
    before = contents(tmp_path / "d")
    with pytest.raises(OutputError, match=f"pulled from {REPO}"):
        pull("tester/other", local_dir=tmp_path / "d")
    assert contents(tmp_path / "d") == before


def changed(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    later = time.time() + 10
    os.utime(path, (later, later))


def test_what_the_user_changed_in_a_folder_is_not_overwritten(
    published: Published, tmp_path: Path
) -> None:
    folder = tmp_path / "d"
    pull(REPO, local_dir=folder)
    changed(folder / "README.md", b"my text")
    pull(REPO, local_dir=folder)
    assert (folder / "README.md").read_bytes() == b"my text"
    for name in ("router.safetensors", f"{FOLDER}/mlp.obd.safetensors"):
        changed(folder / name, b"mine")
        with pytest.raises(OutputError, match="not as it was pulled"):
            pull(REPO, local_dir=folder)
        assert (folder / name).read_bytes() == b"mine"
        pull(REPO, local_dir=folder, force_download=True)
        assert (folder / name).read_bytes() == published.files[name]


# --- strangers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nbytes"),
    [
        ("config.json", 5 << 20),
        (f"{FOLDER}/obd.json", 65 << 20),
        (f"{FOLDER}/mlp.obd.safetensors", 2 << 20),
    ],
)
def test_what_is_too_large_is_refused_before_it_moves(
    published: Published, name: str, nbytes: int
) -> None:
    published.hub.commit(REPO, {name: b"x" * nbytes})
    with pytest.raises(HubError, match=r"nothing was downloaded|not a collection"):
        pull(MATH)
    assert sum(request.sent for request in published.hub.requests) < 100_000


def test_a_manifest_that_lies_removes_nothing(published: Published) -> None:
    name = f"{FOLDER}/mlp.obd.safetensors"
    other = published.files[name][:-1] + b"?"
    published.hub.commit(REPO, {name: other})
    for _ in range(2):
        with pytest.raises(HubError, match="not as its manifest says; tell the owner"):
            pull(MATH)
    blobs = [p.read_bytes() for p in published.hub.cache.rglob("blobs/*") if p.is_file()]
    assert other in blobs


def test_a_collection_that_cannot_be_opened_is_no_success(published: Published) -> None:
    config = json.loads(published.files["config.json"])
    config["experts"]["math"]["bytes"] += 1
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    published.hub.commit(REPO, {"config.json": text.encode()})
    with pytest.raises(FormatError) as caught:
        pull(MATH)
    assert caught.value.id == "OBD-COLL-SUMMARY"


def test_progress_bars_of_the_program_stay_open(published: Published) -> None:
    from tqdm import tqdm

    with tqdm(total=3, file=io.StringIO()) as bar:
        pull(MATH)
        assert not bar.disable


def test_a_pulled_folder_can_be_pushed(published: Published, tmp_path: Path) -> None:
    hub, local = published.hub, published.local
    commit = hub.commit("tester/base", {"model.safetensors": local.base / "model.safetensors"})
    base = Checkpoint.open(local.base, repo="tester/base", revision=commit)
    Collection.create(tmp_path / "c", base, [local.folder / FOLDER])
    assert push(tmp_path / "c", "tester/one").changed
    folder = pull("tester/one", local_dir=tmp_path / "d").path
    assert not push(folder, "tester/one").changed
    assert push(folder, "tester/two").sent > published.size(FOLDER)
    assert not any(path.startswith(".cache") for path in hub.files("tester/two"))
