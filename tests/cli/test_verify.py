from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.transfer.published import REPO

if TYPE_CHECKING:
    from tests.conftest import Pair
    from tests.transfer.published import Local, Published

Run = Callable[..., Any]


@pytest.fixture
def damaged(pair: Pair, tmp_path: Path) -> Path:
    copy = tmp_path / "bad.obd"
    shutil.copytree(pair.bundle, copy)
    file = copy / "mlp.obd.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return copy


@pytest.mark.parametrize(
    ("with_base", "how"), [(False, "stored bytes"), (True, "rebuilt and compared")]
)
def test_a_valid_bundle_is_0(obd: Run, pair: Pair, with_base: bool, how: str) -> None:
    options = ("--base", pair.base) if with_base else ()
    files = len([p for p in pair.bundle.rglob("*") if p.is_file()]) - 1
    result = obd("verify", pair.bundle, *options)
    tensors = len(pair.expert_tensors)
    assert result.stdout == f"{pair.bundle}: valid; {files} files, {tensors} tensors ({how})\n"


def test_a_damaged_bundle_is_1_with_a_line_for_each_fault(obd: Run, damaged: Path) -> None:
    lines = obd("verify", damaged, code=1).stdout.splitlines()
    assert [line.rpartition("[")[2] for line in lines] == ["OBD-DIR-SHA256]", "OBD-TENSOR-DIGEST]"]
    assert all(str(damaged / "mlp.obd.safetensors") in line for line in lines)


def test_json_of_a_valid_bundle(obd: Run, pair: Pair) -> None:
    found = json.loads(obd("verify", pair.bundle, "--json").stdout)
    assert found == {"valid": True, "tensors": len(pair.expert_tensors), "findings": []}


def test_json_of_a_damaged_bundle(obd: Run, damaged: Path) -> None:
    lines = obd("verify", damaged, code=1).stdout.splitlines()
    found = json.loads(obd("verify", damaged, "--json", code=1).stdout)
    assert found["valid"] is False
    assert [f["message"] for f in found["findings"]] == lines
    assert [f["id"] for f in found["findings"]] == ["OBD-DIR-SHA256", "OBD-TENSOR-DIGEST"]


def test_quiet_is_silent_about_a_valid_bundle(obd: Run, pair: Pair) -> None:
    result = obd("verify", pair.bundle, "-q")
    assert (result.stdout, result.stderr) == ("", "")


def test_another_base_is_1(obd: Run, pair: Pair) -> None:
    assert "[OBD-BASE-TENSOR]" in obd("verify", pair.bundle, "--base", pair.expert, code=1).stdout


def test_a_base_that_is_not_there_is_3(obd: Run, pair: Pair, tmp_path: Path) -> None:
    result = obd("verify", pair.bundle, "--base", tmp_path / "no" / "base", code=3)
    assert str(tmp_path / "no" / "base") in result.stderr


def test_a_manifest_that_is_broken_is_one_finding(obd: Run, damaged: Path) -> None:
    (damaged / "obd.json").write_bytes(b"[]")
    found = json.loads(obd("verify", damaged, "--json", code=1).stdout)
    assert [f["id"] for f in found["findings"]] == ["OBD-MAN-TYPE"]


# --- collections, and the Hub --------------------------------------------------------------------


@pytest.fixture
def copied(local_collection: Local, tmp_path: Path) -> Path:
    shutil.copytree(local_collection.folder, tmp_path / "c")
    return tmp_path / "c"


def test_a_collection_is_checked_whole(obd: Run, local_collection: Local) -> None:
    folder = local_collection.folder
    files = sum(p.is_file() and p.name != "obd.json" for p in (folder / "experts").rglob("*"))
    result = obd("verify", folder)
    tensors = 2 * 21
    told = f"{folder}: valid; 2 experts, {files} files, {tensors} tensors"
    assert result.stdout == f"{told} (stored bytes)\n"
    result = obd("verify", folder, "--base", local_collection.base)
    assert result.stdout == f"{told} (rebuilt and compared)\n"


@pytest.mark.parametrize(
    ("path", "identity"),
    [
        ("config.json", "OBD-"),
        ("router.safetensors", "OBD-COLL-FILE"),
        ("experts/math.obd/obd.json", "OBD-"),
        ("experts/math.obd/expert/tokenizer/vocab.txt", "OBD-DIR-SHA256"),
    ],
)
def test_damage_anywhere_in_a_collection_is_found(
    obd: Run, copied: Path, path: str, identity: str
) -> None:
    data = bytearray((copied / path).read_bytes())
    data[-1] ^= 1
    (copied / path).write_bytes(data)
    [line] = obd("verify", copied, code=1).stdout.splitlines()
    assert f"[{identity}" in line
    assert path in line


def test_a_missing_expert_is_found(obd: Run, copied: Path) -> None:
    shutil.rmtree(copied / "experts" / "chat.obd")
    found = json.loads(obd("verify", copied, "--json", code=1).stdout)
    assert (found["valid"], found["tensors"]) == (False, 21)
    assert "chat.obd" in found["findings"][0]["message"]


def test_the_hub_is_pulled_and_checked(obd: Run, published: Published) -> None:
    assert obd("verify", f"{REPO}:math").stdout.startswith(f"{REPO}:math: valid; 7 files, 21")
    assert not any("chat" in path for path in published.downloaded())
    assert obd("verify", REPO).stdout.startswith(f"{REPO}: valid; 2 experts, 14 files, 42 tensors")
    path = "experts/math.obd/mlp.obd.safetensors"
    published.hub.replace(REPO, path, published.files[path][::-1])
    shutil.rmtree(published.hub.cache)
    assert path in obd("verify", REPO, code=3).stderr


def test_a_newer_collection_could_not_be_tried(obd: Run, copied: Path) -> None:
    (copied / "config.json").write_text('{"format":"obd-collection","version":"2.0"}')
    assert "update onebitfmt" in obd("verify", copied, code=3).stderr
