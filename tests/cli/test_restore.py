from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.transfer.published import REPO

if TYPE_CHECKING:
    from tests.conftest import Models, Pair
    from tests.transfer.published import Published

Run = Callable[..., Any]


@pytest.fixture
def exact_bundle(obd: Run, pair: Pair, tmp_path: Path) -> Path:
    output = tmp_path / "exact.obd"
    obd("convert", pair.base, pair.expert, "-o", output, "--preset", "none", "-q")
    return output


def test_an_expert_comes_back(obd: Run, pair: Pair, models: Models, exact_bundle: Path) -> None:
    back = models.root / "back"
    result = obd("restore", pair.base, exact_bundle, "-o", back)
    assert result.stdout == f"{back}: {len(pair.expert_tensors)} tensors in 1 files\n"
    assert models.load(back) == models.content(pair.expert_tensors)


def test_json_lists_the_files(obd: Run, pair: Pair, tmp_path: Path, exact_bundle: Path) -> None:
    back = tmp_path / "back"
    result = obd("restore", pair.base, exact_bundle, "-o", back, "--shard-size", "20kB", "--json")
    found = json.loads(result.stdout)
    assert found["checkpoint"] == str(back)
    assert found["files"] == [str(p) for p in sorted(back.glob("*.safetensors"))]
    assert len(found["files"]) > 1


def test_quiet_is_silent(obd: Run, pair: Pair, tmp_path: Path) -> None:
    result = obd("restore", pair.base, pair.bundle, "-o", tmp_path / "back", "-q")
    assert (result.stdout, result.stderr) == ("", "")


def test_another_base_is_1_and_both_are_named(obd: Run, pair: Pair, tmp_path: Path) -> None:
    result = obd("restore", pair.expert, pair.bundle, "-o", tmp_path / "back", code=1)
    assert str(pair.bundle) in result.stderr
    assert str(pair.expert) in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_3(
    obd: Run, pair: Pair, models: Models, exact_bundle: Path
) -> None:
    back = models.save("back", models.random(1, {"x": (2,)}))
    result = obd("restore", pair.base, exact_bundle, "-o", back, code=3)
    assert str(back) in result.stderr
    assert "--overwrite" in result.stderr
    obd("restore", pair.base, exact_bundle, "-o", back, "--overwrite")
    assert models.load(back) == models.content(pair.expert_tensors)


def test_an_incomplete_bundle_names_the_missing_file(obd: Run, pair: Pair, tmp_path: Path) -> None:
    copy = tmp_path / "part.obd"
    shutil.copytree(pair.bundle, copy)
    (copy / "mlp.obd.safetensors").unlink()
    result = obd("restore", pair.base, copy, "-o", tmp_path / "back", code=1)
    assert "mlp.obd.safetensors" in result.stderr


def test_a_damaged_bundle_is_1(obd: Run, pair: Pair, tmp_path: Path) -> None:
    copy = tmp_path / "bad.obd"
    shutil.copytree(pair.bundle, copy)
    (copy / "obd.json").write_bytes(b"{}")
    result = obd("restore", pair.base, copy, "-o", tmp_path / "back", code=1)
    assert str(copy) in result.stderr
    assert "OBD-" in result.stderr


@pytest.mark.parametrize("command", ["restore", "inspect", "verify", "storage"])
def test_a_bundle_that_is_not_there_could_not_be_tried(
    obd: Run, pair: Pair, tmp_path: Path, command: str
) -> None:
    missing = tmp_path / "missing.obd"
    arguments = {
        "restore": (pair.base, missing, "-o", tmp_path / "back"),
        "inspect": (missing,),
        "verify": (missing,),
        "storage": (pair.base, missing),
    }[command]
    result = obd(command, *arguments, code=3)
    assert str(missing) in result.output


def test_an_expert_comes_back_from_the_hub(
    obd: Run, published: Published, models: Models, tmp_path: Path
) -> None:
    base, local = published.local.base, published.local.folder / "experts" / "chat.obd"
    obd("restore", base, f"{REPO}:chat", "-o", tmp_path / "remote")
    obd("restore", base, local, "-o", tmp_path / "local")
    assert models.load(tmp_path / "remote") == models.load(tmp_path / "local")
    assert not any("math" in path for path in published.downloaded())
    assert f"{REPO}:chat" in obd("restore", base, REPO, "-o", tmp_path / "x", code=2).stderr
