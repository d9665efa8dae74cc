from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Pair

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
