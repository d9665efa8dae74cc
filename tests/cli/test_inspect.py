from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.transfer.published import REPO

if TYPE_CHECKING:
    from tests.conftest import Models, Pair
    from tests.transfer.published import Local, Published

Run = Callable[..., Any]


def manifest(bundle: Path) -> Any:
    return json.loads((bundle / "obd.json").read_bytes())


def test_a_table_shows_expert_base_and_groups(obd: Run, pair: Pair) -> None:
    text = obd("inspect", pair.bundle).stdout
    found = manifest(pair.bundle)
    rows = {line.split()[0]: line for line in text.splitlines() if line.split()}
    assert rows["expert"] == "expert  expert (BF16, licence apache-2.0)"
    assert found["base"]["fingerprint"][:12] in rows["base"]
    assert rows["format"] == "format  obd 1.0"
    assert "linear" in rows["preset"]
    for group in found["groups"]:
        assert group["name"] in rows
    assert found["metadata"]["mlp.relative_squared_error"][:6] in rows["mlp"]
    assert "exact" in rows["norm"]


def test_tensors_are_listed_on_request(obd: Run, pair: Pair) -> None:
    text = obd("inspect", pair.bundle, "--tensors").stdout
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}
    assert rows["model.layers.0.mlp.up_proj.weight"][:5] == [
        "mlp",
        "BF16",
        "96x64",
        "sign",
        "rank1",
    ]
    assert rows["model.norm.weight"][:4] == ["norm", "BF16", "64", "same"]
    assert rows["lm_head.weight"][:4] == ["head", "BF16", "100x64", "exact"]
    assert pair.expert_tensors.keys() <= rows.keys()


def test_codings_have_names(obd: Run, models: Models) -> None:
    up, embedding = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"
    base = models.random(1, {up: (64, 64), embedding: (9, 4), "scalar": ()})
    expert = models.tuned(base, 2)
    expert["lm_head.weight"] = expert[embedding]
    wide = models.widen("BF16", models.tuned(base, 3)["scalar"][1])
    expert["scalar"] = ("F32", models.narrow("F32", wide))
    folders = (models.save("base", base), models.save("expert", expert))
    bundle = models.root / "o.obd"
    obd("convert", *folders, "-o", bundle, "--preset", "chat", "--planes", "2", "-q")
    found = json.loads(obd("inspect", bundle, "--tensors", "--json").stdout)["tensors"]
    assert {name: entry["coding"] for name, entry in found.items()} == {
        up: "sign rank1 + rank1",
        embedding: "exact",
        "lm_head.weight": f"tied to {embedding}",
        "scalar": "exact as BF16",
    }
    assert "scalar" in obd("inspect", bundle, "--tensors").stdout


@pytest.mark.parametrize("tensors", [True, False])
def test_json_agrees_with_the_manifest(obd: Run, pair: Pair, tensors: bool) -> None:
    options = ("--tensors",) if tensors else ()
    value = json.loads(obd("inspect", pair.bundle, "--json", *options).stdout)
    found = manifest(pair.bundle)
    sizes = {p.relative_to(pair.bundle).as_posix(): p.stat().st_size
             for p in pair.bundle.rglob("*") if p.is_file()}  # fmt: skip
    assert value["path"] == str(pair.bundle)
    assert value["version"] == "1.0"
    assert value["metadata"] == found["metadata"]
    assert {k: v for k, v in value["expert"].items() if v is not None} == found["expert"]
    assert {k: v for k, v in value["base"].items() if v is not None} == found["base"]
    assert value["stored_bytes"] == sum(sizes.values())
    assert value["missing_files"] == []
    small = sum(size for path, size in sizes.items() if path.startswith("expert/"))
    full = sum(bits.nbytes for _, bits in pair.expert_tensors.values())
    assert value["full_bytes"] == full + small
    for group, listed in zip(value["groups"], found["groups"], strict=True):
        assert group["name"] == listed["name"]
        assert group["stored"] == sum(sizes[file] for file in listed["files"])
    assert ("tensors" in value) == tensors
    for name, entry in value.get("tensors", {}).items():
        assert entry["shape"] == found["tensors"][name]["shape"]


def test_a_partial_bundle_shows_what_is_missing(obd: Run, pair: Pair, tmp_path: Path) -> None:
    copy = tmp_path / "part.obd"
    shutil.copytree(pair.bundle, copy)
    (copy / "mlp.obd.safetensors").unlink()
    text = obd("inspect", copy, "--tensors").stdout
    rows = {line.split()[0]: line for line in text.splitlines() if line.split()}
    assert rows["mlp"].endswith("0 of 1 here")
    assert rows["model.layers.0.mlp.up_proj.weight"].endswith("missing")
    assert json.loads(obd("inspect", copy, "--json").stdout)["missing_files"] == [
        "mlp.obd.safetensors"
    ]


def test_origins_are_shown(obd: Run, pair: Pair, tmp_path: Path) -> None:
    from onebitfmt.checkpoint import Checkpoint
    from onebitfmt.verbs.convert import convert
    from onebitfmt.verbs.plan import ConvertOptions

    base = Checkpoint.open(pair.base, repo="ns/base", revision="abc")
    expert = Checkpoint.open(pair.expert, repo="ns/expert", revision="def")
    convert(base, expert, tmp_path / "o.obd", ConvertOptions(preset="none"))
    text = obd("inspect", tmp_path / "o.obd").stdout
    assert "from ns/expert@def" in text
    assert "ns/base@abc" in text


def test_what_is_no_bundle_is_1(obd: Run, pair: Pair) -> None:
    result = obd("inspect", pair.base, code=1)
    assert "not an .obd bundle" in result.stderr
    assert str(pair.base) in result.stderr


# --- collections, and the Hub --------------------------------------------------------------------


def rows_of(text: str) -> dict[str, str]:
    """The lines of a table by what stands in the first column."""
    lines = [line for line in text.splitlines() if line]
    return {re.split(r"  +", line)[0]: line for line in lines}


def test_a_collection_is_one_table(obd: Run, local_collection: Local) -> None:
    text = obd("inspect", local_collection.folder).stdout
    rows = rows_of(text)
    files = local_collection.files()
    stored = sum(len(d) for p, d in files.items() if p.startswith("experts/math.obd/"))
    attention = len(files["experts/math.obd/attention.obd.safetensors"])
    assert f" {attention / 1000:.2f} kB " in rows["math: attention"]
    assert rows["math: attention"].endswith("4 exact, 4 sign rank1")
    # Of a layer: q, o of 64 x 64 are one-bit, k and v of 32 x 64 are not.
    assert " 66.67 % " in rows["math: attention"]
    assert " exact " in rows["chat: mlp"]
    error = manifest(local_collection.folder / "experts" / "math.obd")["metadata"]
    assert error["mlp.relative_squared_error"][:6] in rows["math: mlp"]
    assert f" {stored / 1000:.2f} kB " in rows["math"]
    assert rows["base"].startswith(f"base    tester/base@{'0' * 40} (fingerprint ")
    router = len(files["router.safetensors"])
    assert rows["router"] == f"router  {router / 1000:.2f} kB"
    assert str(local_collection.folder) in rows


def test_licence_and_source_are_shown(obd: Run, local_collection: Local, tmp_path: Path) -> None:
    from onebitfmt.collection_config import dump_config, load_config

    config = load_config(local_collection.files()["config.json"])
    math = replace(config.experts["math"], repo="org/math", revision="v2", license="mit")
    changed = replace(config, experts={**config.experts, "math": math}, router=None)
    (tmp_path / "config.json").write_bytes(dump_config(changed))
    rows = rows_of(obd("inspect", tmp_path).stdout)
    assert re.search(r" mit +org/math@v2$", rows["math"])
    assert re.search(r" - +-$", rows["chat"])
    assert rows["router"] == "router  none"


def test_a_collection_on_the_hub_moves_config_alone(obd: Run, published: Published) -> None:
    text = obd("inspect", REPO).stdout
    assert published.downloaded() == {"config.json": published.size("config.json")}
    title = f"{REPO}@{published.commit}"
    local = obd("inspect", published.local.folder).stdout
    assert text == local.replace(str(published.local.folder), title)


def test_an_expert_on_the_hub_moves_its_manifest_alone(obd: Run, published: Published) -> None:
    text = obd("inspect", f"{REPO}:math").stdout
    assert published.downloaded().keys() == {"config.json", "experts/math.obd/obd.json"}
    assert f"{REPO}:math@{published.commit}" in text
    assert rows_of(text)["attention"].endswith("0 of 1 here")
    obd("pull", f"{REPO}:math", "-q")
    shown = obd("inspect", f"{REPO}:math").stdout
    path = published.local.folder / "experts" / "math.obd"
    title = f"{REPO}:math@{published.commit}"
    assert shown == obd("inspect", path).stdout.replace(str(path), title)


def test_json_of_a_collection(obd: Run, published: Published) -> None:
    found = json.loads(obd("inspect", REPO, "--json").stdout)
    local = json.loads(obd("inspect", published.local.folder, "--json").stdout)
    assert (found.pop("repo"), found.pop("commit")) == (REPO, published.commit)
    assert found.pop("path").endswith(published.commit)
    assert local.pop("path") == str(published.local.folder)
    assert found == local
    math = found["experts"]["math"]
    assert math["stored_bytes"] == published.size("experts/math.obd/")
    assert [g["name"] for g in math["groups"]] == ["attention", "mlp", "embedding", "head", "norm"]
    assert math["groups"][0]["codings"] == {"exact": 4, "sign rank1": 4}
    assert found["router"]["bytes"] == published.size("router.safetensors")
    own = json.loads(obd("inspect", f"{REPO}:math", "--json").stdout)
    assert (own["repo"], own["commit"]) == (REPO, published.commit)
    assert len(own["missing_files"]) == 7


def test_tensors_are_one_experts(obd: Run, published: Published) -> None:
    assert f"{REPO}:math" in obd("inspect", REPO, "--tensors", code=2).stderr
    assert "math.obd" in obd("inspect", published.local.folder, "--tensors", code=2).stderr
    assert "lm_head.weight" in obd("inspect", f"{REPO}:math", "--tensors").stdout


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("models/math", 3, "no such local path; and on the Hub, models/math: no such repository"),
        (f"{REPO}:nix", 2, "the experts are chat, math"),
        (f"{REPO}@nix", 3, "no revision 'nix'"),
        ("nix", 3, "no such bundle folder"),
    ],
)
def test_what_is_not_there(obd: Run, source: str, code: int, words: str) -> None:
    assert words in obd("inspect", source, code=code).stderr
