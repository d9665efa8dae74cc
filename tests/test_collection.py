from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from onebitfmt.bundle import Bundle
from onebitfmt.checkpoint import Checkpoint
from onebitfmt.collection import Collection, is_collection
from onebitfmt.collection_config import dump_config, load_config
from onebitfmt.errors import (
    BaseMismatchError,
    FormatError,
    HubError,
    MissingBundleError,
    OutputError,
    UnsupportedError,
    UsageError,
)
from onebitfmt.hub.client import HubOptions
from onebitfmt.merge.recipe import Recipe
from onebitfmt.routing.identity import base_fingerprint
from onebitfmt.routing.router import Router
from onebitfmt.routing.spec import FeatureSpec
from onebitfmt.verbs.convert import convert
from onebitfmt.verbs.plan import ConvertOptions
from onebitfmt.verbs.verify import verify

if TYPE_CHECKING:
    from tests.conftest import Models
    from tests.hubserver.hub import Hub

X = "ab" * 32


@dataclass(frozen=True, kw_only=True)
class Family:
    """A base and bundles a, b of it: for reading only."""

    base: Path
    bundles: tuple[Path, ...]


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory, models_at: Callable[[Path], Models]) -> Family:
    models = models_at(tmp_path_factory.mktemp("two"))
    tensors = models.llama(1)
    base = models.save("base", tensors)
    bundles = []
    for i, (name, preset) in enumerate((("b", "linear"), ("a", "none"))):
        files = {"config.json": "{}", "tokenizer/vocab.txt": name}
        expert = models.save(name, models.tuned(tensors, i + 2), files=files)
        convert(base, expert, models.root / f"{name}.obd", ConvertOptions(preset=preset))
        bundles.append(models.root / f"{name}.obd")
    return Family(base=base, bundles=tuple(bundles))


def router_of(*labels: str, base: str | None = None) -> Router:
    spec = FeatureSpec(kind="ngrams", dimension=4, sizes=(1,))
    if base is not None:
        spec = FeatureSpec(kind="hidden", dimension=4, base=base, tokenizer=X, max_tokens=5)
    layer = (np.ones((len(labels), 4), np.float32), np.zeros(len(labels), np.float32))
    return Router(labels=labels, spec=spec, layers=(layer,), temperature=1.0)


@pytest.fixture
def made(two: Family, tmp_path: Path) -> Path:
    Collection.create(tmp_path / "c", two.base, two.bundles, router=router_of("a", "b"))
    return tmp_path / "c"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads((folder / "config.json").read_bytes())
    change(value)
    write(folder, value)


def write(folder: Path, value: Any) -> None:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    (folder / "config.json").write_bytes(text.encode())


# --- making --------------------------------------------------------------------------------------


def test_the_folder_is_as_described(made: Path, two: Family) -> None:
    value = json.loads((made / "config.json").read_bytes())
    assert "model_type" not in value
    assert sorted(p.name for p in made.iterdir()) == [
        "config.json",
        "experts",
        "router.safetensors",
    ]
    assert sorted(value) == ["base", "experts", "format", "recipe", "router", "version"]
    assert two.bundles[0].stem == "b"
    manifest = json.loads((two.bundles[0] / "obd.json").read_bytes())
    assert value["base"] == {"fingerprint": manifest["base"]["fingerprint"]}
    for path in two.bundles:
        own = value["experts"][path.stem]
        copy = made / own["path"]
        assert own["path"] == f"experts/{path.stem}.obd"
        assert own["sha256"] == hashlib.sha256((copy / "obd.json").read_bytes()).hexdigest()
        files = {p.relative_to(copy) for p in copy.rglob("*") if p.is_file()}
        assert files == {p.relative_to(path) for p in path.rglob("*") if p.is_file()}
        assert all((copy / f).read_bytes() == (path / f).read_bytes() for f in files)
        assert own["bytes"] == sum((copy / f).stat().st_size for f in files)
        stored = {f.name.split(".")[0]: (copy / f).stat().st_size for f in files
                  if f.suffix == ".safetensors"}  # fmt: skip
        assert {g["name"]: g["bytes"] for g in own["groups"] if g["bytes"]} == stored
        assert own["dtype"] == "BF16"
        full = {g["name"]: 2 * g["elements"] for g in own["groups"]}
        assert {g["name"]: g["full"] for g in own["groups"]} == full
    linear, exact = value["experts"]["b"]["groups"], value["experts"]["a"]["groups"]
    # Of a layer: q, o of 64 x 64 are one-bit, k and v are too small; gate, up, down are 96 x 64.
    assert {g["name"]: g["onebit"] for g in linear if g["onebit"]} == {
        "attention": 2 * 2 * 64 * 64,
        "mlp": 2 * 3 * 96 * 64,
    }
    assert not any(g["onebit"] for g in exact)
    codings = {g["name"]: g["codings"] for g in linear}
    assert codings["attention"] == {"exact": 2 * 2, "sign rank1": 2 * 2}
    assert codings["mlp"] == {"sign rank1": 2 * 3}
    assert {k for g in exact for k in g["codings"]} == {"exact"}
    errors = {g["name"]: g.get("relative_squared_error") for g in linear}
    assert errors == {
        "attention": manifest["metadata"]["attention.relative_squared_error"],
        "mlp": manifest["metadata"]["mlp.relative_squared_error"],
    } | dict.fromkeys(errors.keys() - {"attention", "mlp"})
    elements = {g["name"]: g["elements"] for g in exact}
    assert elements["mlp"] == 2 * 3 * 96 * 64
    assert elements["attention"] == 2 * (2 * 64 * 64 + 2 * 32 * 64)
    router = made / "router.safetensors"
    assert value["router"] == {
        "bytes": router.stat().st_size,
        "sha256": hashlib.sha256(router.read_bytes()).hexdigest(),
    }


def test_equal_input_gives_equal_bytes(two: Family, made: Path, tmp_path: Path) -> None:
    Collection.create(
        tmp_path / "d", two.base, two.bundles[::-1], router=made / "router.safetensors"
    )
    files = {p.relative_to(made) for p in made.rglob("*") if p.is_file()}
    assert files == {p.relative_to(tmp_path / "d") for p in (tmp_path / "d").rglob("*")
                     if p.is_file()}  # fmt: skip
    for file in files:
        assert (made / file).read_bytes() == (tmp_path / "d" / file).read_bytes()


def test_an_open_collection_gives_what_went_in(made: Path, two: Family) -> None:
    collection = Collection.open(made)
    assert collection.expert_names == ("a", "b")
    assert set(collection.experts) == {"a", "b"}
    assert collection.recipe == Recipe()
    assert collection.router == made / "router.safetensors"
    router = collection.load_router()
    assert router is not None
    assert router.labels == ("a", "b")
    base = collection.open_base(two.base)
    for path in two.bundles:
        bundle = collection.bundle(path.stem)
        assert bundle is collection.bundle(path.stem)
        assert verify(bundle.path, base).findings == ()
        name = "model.layers.0.self_attn.q_proj.weight"
        whole = Bundle.open(path).tensor(name, base)
        np.testing.assert_array_equal(bundle.tensor(name, base).bits, whole.bits)
    with pytest.raises(UsageError, match="the experts are a, b"):
        collection.bundle("c")


def test_a_mapping_renames_and_a_recipe_is_kept(two: Family, tmp_path: Path) -> None:
    recipe = Recipe(select="y", weights={"x": 0.3}, lambda_dense=0.1, density=0.35)
    names = {"x": two.bundles[0], "y": two.bundles[1]}
    made = Collection.create(tmp_path / "c", two.base, names, recipe=recipe)
    assert made.expert_names == ("x", "y")
    assert made.bundle("x").manifest.expert.name == "b"
    assert made.recipe == recipe
    assert made.router is None
    assert made.load_router() is None


def test_another_base_is_refused_with_both_named(
    two: Family, models: Models, tmp_path: Path
) -> None:
    other = models.save("other", models.llama(9))
    with pytest.raises(BaseMismatchError) as caught:
        Collection.create(tmp_path / "c", other, two.bundles)
    recorded = Bundle.open(two.bundles[0]).manifest.base.fingerprint
    assert recorded[:12] in str(caught.value)
    assert str(other) in str(caught.value)
    with pytest.raises(BaseMismatchError, match="abababababab"):
        Collection.create(tmp_path / "c", two.base, two.bundles, router=router_of("a", "b", base=X))
    assert not (tmp_path / "c").exists()


def test_a_router_of_the_base_is_taken(two: Family, tmp_path: Path) -> None:
    fingerprint = Bundle.open(two.bundles[0]).manifest.base.fingerprint
    router = router_of("a", "b", base=fingerprint)
    assert Collection.create(tmp_path / "c", two.base, two.bundles, router=router).load_router()


def test_senseless_requests_are_refused(two: Family, tmp_path: Path) -> None:
    b, a = two.bundles
    for bundles, options, problem in (
        ([], {}, "1 to 256 experts"),
        ([a, a], {}, "two experts are called 'a'"),
        ({"a": a, "A": b}, {}, "two experts are called 'A'"),
        ({"../a": a}, {}, "cannot name a folder"),
        ([a], {"router": router_of("a", "b")}, "router knows expert 'b'"),
        ([a], {"recipe": Recipe(select="b")}, "names expert 'b'"),
        ([a], {"recipe": Recipe(weights={"b": 1.0})}, "names expert 'b'"),
    ):
        with pytest.raises(UsageError, match=problem):
            Collection.create(tmp_path / "c", two.base, bundles, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_or_partial_bundle_is_refused(two: Family, tmp_path: Path) -> None:
    broken = tmp_path / "b.obd"
    shutil.copytree(two.bundles[0], broken)
    file = broken / "mlp.obd.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(FormatError, match="damaged"):
        Collection.create(tmp_path / "c", two.base, [broken])
    file.unlink()
    with pytest.raises(FormatError, match="incomplete"):
        Collection.create(tmp_path / "c", two.base, [broken])
    assert [p.name for p in tmp_path.iterdir()] == ["b.obd"]


def test_output_is_replaced_only_when_asked_and_ours(two: Family, made: Path) -> None:
    with pytest.raises(OutputError, match="--overwrite"):
        Collection.create(made, two.base, two.bundles)
    Collection.create(made, two.base, two.bundles[:1], overwrite=True)
    assert Collection.open(made).expert_names == ("b",)
    inside = made / "experts" / "b.obd"
    with pytest.raises(OutputError, match="input"):
        Collection.create(made, two.base, [inside], overwrite=True)
    shutil.rmtree(made)
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "llama"}')
    assert not is_collection(made)
    with pytest.raises(OutputError, match="left alone"):
        Collection.create(made, two.base, two.bundles, overwrite=True)


def test_where_the_base_came_from_is_kept(two: Family, tmp_path: Path) -> None:
    base = Checkpoint.open(two.base, repo="ns/name", revision="f" * 40)
    made = Collection.create(tmp_path / "c", base, two.bundles)
    assert str(made.base).startswith(f"ns/name@{'f' * 40} (fingerprint ")
    assert load_config(dump_config(made.config)) == made.config


# --- reading from strangers ----------------------------------------------------------------------


def test_no_folder_and_no_collection(tmp_path: Path, two: Family) -> None:
    with pytest.raises(MissingBundleError):
        Collection.open(tmp_path / "none")
    for path in (tmp_path, two.base):
        with pytest.raises(FormatError, match="not a collection"):
            Collection.open(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(format="obd"),
        lambda v: v.pop("format"),
        lambda v: v.update(model_type="llama"),
        lambda v: v.update(version="1.0.0", more=1),
        lambda v: v.pop("recipe"),
        lambda v: v.update(recipe=1),
        lambda v: v.update(recipe="merge_method: voodoo"),
        lambda v: v.update(recipe="select: nobody"),
        lambda v: v.update(recipe="models: [&a [x, x], *a]"),
        lambda v: v.update(recipe="!!python/object/apply:os.system [ls]"),
        lambda v: v.update(recipe="["),
        lambda v: v["base"].update(fingerprint="xyz"),
        lambda v: v["base"].update(revision="main"),
        lambda v: v["base"].update(repo=3),
        lambda v: v.update(experts={}),
        lambda v: v.update(experts=[]),
        lambda v: v["experts"].update({"../x": v["experts"]["a"]}),
        lambda v: v["experts"].update(c=v["experts"]["a"]),
        lambda v: v["experts"]["a"].update(path="experts/../../a.obd"),
        lambda v: v["experts"]["a"].update(sha256="00"),
        lambda v: v["experts"]["a"].update(bytes=-1),
        lambda v: v["experts"]["a"].update(bytes=1.5),
        lambda v: v["experts"]["a"].update(revision="main"),
        lambda v: v["experts"]["a"]["groups"][0]["codings"].update(exact="2"),
        lambda v: v["experts"]["a"]["groups"][0].pop("onebit"),
        lambda v: v["experts"]["a"]["groups"].append(3),
        lambda v: v["router"].update(sha256=None),
        lambda v: v["router"].update(path="x"),
    ],
)
def test_a_bad_config_is_refused(made: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit(made, change)
    with pytest.raises(FormatError):
        Collection.open(made)


def test_a_newer_collection_is_not_called_broken(made: Path) -> None:
    write(made, {"format": "obd-collection", "version": "2.0", "whatever": 1})
    with pytest.raises(UnsupportedError, match="update"):
        Collection.open(made)


def test_bytes_that_are_not_canonical_are_refused(made: Path) -> None:
    good = (made / "config.json").read_bytes()
    escaped = good.replace(b'"a"', b'"\\u0061"', 1)
    short = b'{"format":"obd-collection"}'
    nested, huge = b"[" * 10_000, b"x" * (5 << 20)
    for bad in (b"", b"{", b" " + good, good + b"\n", escaped, b"\xff", nested, short, huge):
        (made / "config.json").write_bytes(bad)
        with pytest.raises(FormatError):
            Collection.open(made)


def test_damage_never_escapes_as_another_error(made: Path) -> None:
    good = (made / "config.json").read_bytes()
    rng = np.random.default_rng(4)
    for place in rng.integers(0, len(good), 400):
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(8))
        (made / "config.json").write_bytes(bad)
        with contextlib.suppress(FormatError):
            Collection.open(made)


def test_another_manifest_than_recorded_is_refused(made: Path) -> None:
    shutil.rmtree(made / "experts" / "a.obd")
    shutil.copytree(made / "experts" / "b.obd", made / "experts" / "a.obd")
    with pytest.raises(FormatError, match="not the manifest recorded"):
        Collection.open(made).bundle("a")
    shutil.rmtree(made / "experts" / "a.obd")
    with pytest.raises(MissingBundleError):
        Collection.open(made).bundle("a")
    assert Collection.open(made).bundle("b")


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.update(bytes=e["bytes"] + 1),
        lambda e: e.update(license="mit"),
        lambda e: e.update(dtype="F32"),
        lambda e: e["groups"][0].update(onebit=1),
        lambda e: e["groups"][0].update(full=0),
        lambda e: e["groups"][0]["codings"].update(same=1),
        lambda e: e["groups"][0].update(relative_squared_error="0.0"),
        lambda e: e["groups"].pop(),
    ],
)
def test_what_is_said_of_a_bundle_is_compared_with_its_manifest(
    made: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    edit(made, lambda v: change(v["experts"]["a"]))
    collection = Collection.open(made)
    with pytest.raises(FormatError, match="experts/a") as caught:
        collection.bundle("a")
    assert caught.value.id == "OBD-COLL-SUMMARY"
    assert collection.bundle("b")


def test_a_bundle_of_another_base_than_recorded_is_refused(made: Path) -> None:
    edit(made, lambda v: v["base"].update(fingerprint=X))
    with pytest.raises(FormatError, match="another base"):
        Collection.open(made).bundle("a")


def test_another_router_than_recorded_is_refused(made: Path) -> None:
    path = made / "router.safetensors"
    router_of("b", "a").save(path, overwrite=True)
    with pytest.raises(FormatError, match="not the router recorded"):
        Collection.open(made).load_router()
    path.unlink()
    with pytest.raises(FormatError, match="no such file"):
        Collection.open(made).load_router()


@pytest.mark.parametrize("router", [router_of("a", "c"), router_of("a", "b", base=X)])
def test_a_recorded_router_must_fit(made: Path, router: Router) -> None:
    path = made / "router.safetensors"
    router.save(path, overwrite=True)
    entry = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }
    edit(made, lambda v: v.update(router=entry))
    with pytest.raises(FormatError):
        Collection.open(made).load_router()


def test_links_are_those_of_the_hubs_cache_and_never_to_folders(made: Path, tmp_path: Path) -> None:
    repo = tmp_path / "cache" / "models--ns--name"
    cached = repo / "snapshots" / ("0" * 40)
    shutil.copytree(made, cached)
    for name in ("config.json", "router.safetensors"):
        for folder in (made, cached):
            blob = repo / f"{folder.name}-{name}"
            os.rename(folder / name, blob)
            (folder / name).symlink_to(blob)
    with pytest.raises(FormatError):
        Collection.open(made)
    collection = Collection.open(cached)
    assert collection.load_router() is not None
    os.rename(cached / "experts" / "a.obd", repo / "a.obd")
    (cached / "experts" / "a.obd").symlink_to(repo / "a.obd")
    with pytest.raises(FormatError, match="a link"):
        collection.bundle("a")


# --- the base ------------------------------------------------------------------------------------


def test_the_base_is_the_one_given(made: Path, two: Family) -> None:
    collection = Collection.open(made)
    with pytest.raises(UsageError, match="--base"):
        collection.open_base()
    opened = collection.open_base(two.base)
    assert collection.open_base(opened) is opened
    assert collection.open_base(str(two.base)).path == two.base


def test_the_base_comes_from_the_hub_at_its_recorded_commit(
    hub: Hub, made: Path, two: Family, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.commit("ns/base", {"model.safetensors": two.base / "model.safetensors"})
    newer = models.save("newer", models.llama(9)) / "model.safetensors"
    hub.commit("ns/base", {"model.safetensors": newer})
    edit(made, lambda v: v["base"].update(repo="ns/base", revision=commit))
    # A folder of that name here is another matter.
    models.save("ns/base", models.llama(9))
    monkeypatch.chdir(models.root)
    opened = Collection.open(made).open_base()
    assert (opened.repo, opened.revision) == ("ns/base", commit)
    own = Checkpoint.open(two.base)
    assert base_fingerprint(opened) == base_fingerprint(own)
    options = HubOptions(local_files_only=True, cache_dir=made / "other")
    with pytest.raises(HubError, match="not in the Hub cache"):
        Collection.open(made).open_base(options=options)


@pytest.mark.parametrize("repo", ["../base", "/etc", "base", "ns/name:math", "ns/name@main", ""])
def test_a_recorded_base_is_never_a_local_path(made: Path, repo: str) -> None:
    edit(made, lambda v: v["base"].update(repo=repo))
    with pytest.raises(UsageError, match="pass the base with --base"):
        Collection.open(made).open_base()


def test_records_are_written_as_they_were_read(made: Path) -> None:
    config = load_config((made / "config.json").read_bytes())
    assert dump_config(config) == (made / "config.json").read_bytes()
    named = replace(config.experts["a"], repo="ns/a", revision="abc", license="mit")
    for other in (
        replace(config, router=None),
        replace(config, base=replace(config.base, repo="ns/base", revision="abc")),
        replace(config, experts={**config.experts, "a": named}),
    ):
        assert load_config(dump_config(other)) == other
