from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import onebitfmt
from onebitfmt.bundle import Bundle
from onebitfmt.checkpoint import Checkpoint
from onebitfmt.collection import Collection
from onebitfmt.errors import FormatError, HubError, MissingBundleError, UsageError
from onebitfmt.transfer.opening import (
    open_bundle,
    open_bundles,
    open_collection,
    open_named_bundle,
)
from tests.transfer.published import REPO, Local

if TYPE_CHECKING:
    from tests.hubserver.hub import Hub
    from tests.transfer.published import Published

MATH = f"{REPO}:math"
FOLDER = "experts/math.obd"
QUERY = "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def single(local_collection: Local, tmp_path: Path) -> Path:
    """A local collection of one expert, which it calls another name."""
    bundle = local_collection.folder / FOLDER
    Collection.create(tmp_path / "single", local_collection.base, {"sums": bundle})
    return tmp_path / "single"


# --- local ---------------------------------------------------------------------------------------


def test_a_folder_is_opened_where_it_is(local_collection: Local) -> None:
    path = local_collection.folder / FOLDER
    assert open_bundle(path).path == open_bundle(str(path)).path == path
    assert open_named_bundle(path)[0] == "math"
    assert list(open_bundles(path)) == ["math"]
    collection = open_collection(local_collection.folder)
    assert collection.expert_names == ("chat", "math")
    assert open_collection(str(local_collection.folder)).path == collection.path
    assert list(open_bundles(local_collection.folder)) == ["chat", "math"]


def test_a_collection_of_one_stands_for_it(single: Path) -> None:
    name, bundle = open_named_bundle(single)
    assert (name, bundle.path) == ("sums", single / "experts" / "sums.obd")
    assert open_bundle(str(single)).path == bundle.path
    assert list(open_bundles(single)) == ["sums"]


def test_of_several_local_experts_one_is_named(local_collection: Local) -> None:
    with pytest.raises(UsageError, match=r"several experts; name one of .*/experts/chat.obd, .*/"):
        open_bundle(local_collection.folder)


@pytest.mark.usefixtures("published")
def test_a_local_folder_comes_first(
    local_collection: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(local_collection.folder, tmp_path / REPO)
    monkeypatch.chdir(tmp_path)
    assert open_collection(REPO).path == Path(REPO)
    assert open_bundle(f"{REPO}/{FOLDER}").path == Path(REPO) / FOLDER
    with pytest.raises(MissingBundleError):
        open_collection(Path("tester") / "other")


def test_home_is_found(local_collection: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(local_collection.folder))
    assert open_bundle(f"~/{FOLDER}").manifest.expert.name == "math"
    assert open_collection("~").path == local_collection.folder


def test_no_folder_and_no_id() -> None:
    for source in ("nix", "./nix", "a/b/c", "/nix"):
        with pytest.raises(MissingBundleError, match="no such bundle folder"):
            open_bundle(source)


# --- bundles on the Hub --------------------------------------------------------------------------


def test_a_bundle_gives_what_the_local_one_gives(published: Published) -> None:
    bundle = open_bundle(MATH)
    assert bundle.container.missing_files == []
    base, local = Checkpoint.open(published.local.base), published.local.folder / FOLDER
    for name in (QUERY, UP):
        want = Bundle.open(local).tensor(name, base)
        np.testing.assert_array_equal(bundle.tensor(name, base).bits, want.bits)
    assert open_named_bundle(MATH)[0] == "math"


def test_a_manifest_alone(published: Published) -> None:
    bundle = open_bundle(MATH, groups=())
    assert published.downloaded().keys() == {"config.json", f"{FOLDER}/obd.json"}
    assert len(bundle.container.missing_files) == len(bundle.manifest.files)
    with pytest.raises(FormatError, match="fetched without group 'mlp'"):
        bundle.planes(UP)


def test_groups_are_served_as_far_as_they_are_here(published: Published) -> None:
    base = Checkpoint.open(published.local.base)
    assert open_bundle(MATH, groups=["attention"]).tensor(QUERY, base).shape == (64, 64)
    published.downloaded()
    bundle = open_bundle(MATH, groups=["mlp"])
    assert published.downloaded().keys() == {f"{FOLDER}/mlp.obd.safetensors"}
    assert bundle.tensor(QUERY, base).shape == (64, 64)
    assert bundle.tensor(UP, base).shape == (96, 64)
    with pytest.raises(FormatError, match="without group 'head'"):
        bundle.tensor("lm_head.weight", base)


def test_of_several_experts_one_is_named(published: Published) -> None:
    with pytest.raises(UsageError, match=f"name one of {REPO}:chat, {REPO}:math"):
        open_bundle(REPO)
    assert published.downloaded().keys() == {"config.json"}


def test_the_only_expert_needs_no_name(hub: Hub, single: Path) -> None:
    files: dict[str, bytes | Path] = {
        p.relative_to(single).as_posix(): p for p in single.rglob("*") if p.is_file()
    }
    hub.commit("tester/single", files)
    name, bundle = open_named_bundle("tester/single", groups=())
    assert (name, bundle.manifest.expert.name) == ("sums", "math")
    assert bundle.path.name == "sums.obd"


def test_all_bundles_at_once(published: Published) -> None:
    bundles = open_bundles(REPO, groups=())
    assert list(bundles) == ["chat", "math"]
    assert published.downloaded().keys() == {
        "config.json",
        "experts/chat.obd/obd.json",
        "experts/math.obd/obd.json",
    }
    assert list(open_bundles(MATH, groups=["mlp"])) == ["math"]
    assert published.downloaded().keys() == {f"{FOLDER}/mlp.obd.safetensors"}
    with pytest.raises(UsageError, match="'nix'"):
        open_bundles(REPO, groups=["nix"])


# --- collections on the Hub ----------------------------------------------------------------------


def test_config_and_router_alone(published: Published) -> None:
    collection = open_collection(REPO, experts=())
    assert published.downloaded().keys() == {"config.json", "router.safetensors"}
    router = collection.load_router()
    assert router is not None
    assert router.labels == collection.expert_names == ("chat", "math")
    with pytest.raises(MissingBundleError):
        collection.bundle("math")


def test_some_experts_or_all(published: Published) -> None:
    collection = open_collection(REPO, experts=["math"])
    assert collection.bundle("math").container.missing_files == []
    assert not any("chat" in path for path in published.downloaded())
    collection = open_collection(REPO)
    assert collection.bundle("chat").container.missing_files == []
    assert collection.bundle("math").container.missing_files == []
    with pytest.raises(UsageError, match="the experts are chat, math"):
        open_collection(REPO, experts=["poetry"])


def test_an_expert_is_no_collection(published: Published) -> None:
    with pytest.raises(UsageError, match=f"give its collection, {REPO}@v1"):
        open_collection(f"{MATH}@v1")
    assert published.requests() == []


# --- how -----------------------------------------------------------------------------------------


def test_revision_token_and_cache_are_passed_on(
    hub: Hub, published: Published, tmp_path: Path
) -> None:
    hub.tag(REPO, "v1")
    hub.commit(REPO, {"config.json": b"{}"})
    hub.repo(REPO).private = True
    cache = tmp_path / "other"
    for opened in (
        open_bundle(MATH, groups=(), revision="v1", token=hub.token, cache_dir=cache),
        open_collection(REPO, experts=(), revision="v1", token=hub.token, cache_dir=str(cache)),
    ):
        assert cache in opened.path.parents
        assert published.commit in opened.path.parts or opened.path.name == published.commit
    for refused in (open_bundle, open_collection):
        with pytest.raises(HubError, match="private"):
            refused(REPO, revision="v1", token=False)
    assert not list(hub.cache.rglob("obd.json"))


def test_a_revision_is_given_once(published: Published) -> None:
    for opening in (open_bundle, open_collection):
        with pytest.raises(UsageError, match="give one"):
            opening(f"{REPO}@v1", revision="v2")
    assert published.requests() == []


def test_the_cache_alone(published: Published) -> None:
    for opening in (
        lambda: open_bundle(MATH, groups=(), local_files_only=True),
        lambda: open_collection(REPO, local_files_only=True),
    ):
        with pytest.raises(HubError, match="cache"):
            opening()
    assert published.requests() == []
    open_collection(REPO)
    published.requests()
    assert open_bundle(MATH, local_files_only=True).container.missing_files == []
    assert open_collection(REPO, local_files_only=True).bundle("chat")
    assert published.requests() == []


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("source", ["models/math", "math.obd/x", "tester/nix"])
def test_a_mistyped_path_is_said_to_be_neither(source: str) -> None:
    for opening in (open_bundle, open_collection, open_bundles):
        with pytest.raises(HubError) as caught:
            opening(source)
        told = str(caught.value)
        assert told.startswith(f"{source}: no such local path; and on the Hub, {source}: no such")
        assert "hf auth login" in told


@pytest.mark.usefixtures("hub")
def test_what_is_meant_for_the_hub_is_not_called_a_path() -> None:
    with pytest.raises(HubError) as caught:
        open_bundle("tester/nix:math")
    assert "local path" not in str(caught.value)


def test_wrong_bytes_are_never_opened(published: Published) -> None:
    hub, path = published.hub, f"{FOLDER}/expert/tokenizer/vocab.txt"
    open_bundle(MATH)
    cached = next(hub.cache.glob(f"*/snapshots/*/{path}")).resolve()
    cached.write_bytes(b"htam")
    with pytest.raises(HubError, match="removed"):
        open_bundle(MATH)
    assert json.dumps(open_bundle(MATH).container.missing_files) == "[]"
    assert next(hub.cache.glob(f"*/snapshots/*/{path}")).read_bytes() == b"math"


def test_local_sources_load_no_client(local_collection: Local) -> None:
    program = (
        "import sys; from onebitfmt.transfer.opening import open_bundle, open_collection\n"
        "open_collection(sys.argv[1]).load_router(); open_bundle(sys.argv[2])\n"
        "assert not {'huggingface_hub', 'torch', 'transformers'} & set(sys.modules)"
    )
    folder = local_collection.folder
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(folder / FOLDER)],
        env=os.environ | {"PYTHONPATH": str(Path(onebitfmt.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_local_path_has_no_revision(local_collection: Local) -> None:
    for opened, path in (
        (open_bundle, local_collection.folder / "experts" / "math.obd"),
        (open_collection, local_collection.folder),
    ):
        with pytest.raises(UsageError, match="has no revision 'v1'"):
            opened(path, revision="v1")
