from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.transfer.published import REPO

if TYPE_CHECKING:
    from tests.conftest import Pair
    from tests.transfer.published import Published

Run = Callable[..., Any]


def disk(bundle: Path) -> int:
    return sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())


@pytest.fixture
def bundles(obd: Run, pair: Pair, tmp_path: Path) -> list[Path]:
    exact = tmp_path / "exact.obd"
    obd("convert", pair.base, pair.expert, "-o", exact, "--preset", "none", "-q")
    return [pair.bundle, exact]


def test_json_gives_bytes(obd: Run, pair: Pair, bundles: list[Path]) -> None:
    found = json.loads(obd("storage", pair.base, *bundles, "--json").stdout)
    tensors = sum(bits.nbytes for _, bits in pair.expert_tensors.values())
    small = sum(p.stat().st_size for p in (pair.bundle / "expert").rglob("*") if p.is_file())
    assert found["base_bytes"] == tensors
    assert found["stored_bytes"] == sum(map(disk, bundles))
    assert found["full_bytes"] == 2 * (tensors + small)
    assert [e["name"] for e in found["experts"]] == ["expert", "exact"]
    assert [e["stored_bytes"] for e in found["experts"]] == [disk(b) for b in bundles]
    assert found["paper_bytes"] == sum(e["paper_bytes"] for e in found["experts"])
    for expert in found["experts"]:
        assert expert["paper_bytes"] == sum(g["paper"] for g in expert["groups"]) + small


def test_a_table_agrees_with_json(obd: Run, pair: Pair, bundles: list[Path]) -> None:
    found = json.loads(obd("storage", pair.base, *bundles, "--json").stdout)
    lines = obd("storage", pair.base, *bundles).stdout.splitlines()
    rows = {line.split("  ")[0]: line for line in lines if line}
    for expert in found["experts"]:
        full, stored = expert["full_bytes"], expert["stored_bytes"]
        for word in (
            f"{full / 1000:.2f} kB",
            f"{stored / 1000:.2f} kB",
            f"{100 * stored / full:.2f} %",
        ):
            assert word in rows[expert["name"]]
        for group in expert["groups"]:
            assert (
                f"{100 * group['stored'] / group['full']:.2f} %"
                in rows[f"{expert['name']}: {group['name']}"]
            )
    base, full, stored = (found[k] for k in ("base_bytes", "full_bytes", "stored_bytes"))
    for name, part, whole in (
        ("2 experts", stored, full),
        ("base + experts against experts", stored + base, full),
        ("base + experts on both sides", stored + base, full + base),
    ):
        assert f"{100 * part / whole:.2f} %" in rows[name]


def test_a_plot_without_the_package_names_the_extra(
    obd: Run, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    result = obd("storage", pair.base, pair.bundle, "--plot", tmp_path / "p.png", code=3)
    assert "pip install 'onebitfmt[plot]'" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_plot_is_drawn(obd: Run, pair: Pair, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    obd("storage", pair.base, pair.bundle, "--plot", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_bundle_is_1(obd: Run, pair: Pair) -> None:
    assert str(pair.base) in obd("storage", pair.base, pair.base, code=1).stderr


def test_the_hub_sends_manifests_alone(obd: Run, published: Published) -> None:
    local, base = published.local, published.local.base
    found = obd("storage", base, f"{REPO}:math", f"{REPO}:chat", "--json").stdout
    assert published.downloaded().keys() == {
        "config.json",
        "experts/chat.obd/obd.json",
        "experts/math.obd/obd.json",
    }
    folders = [local.folder / "experts" / f"{name}.obd" for name in ("math", "chat")]
    assert found == obd("storage", base, *folders, "--json").stdout


def test_a_collection_stands_for_its_experts(obd: Run, published: Published) -> None:
    base = published.local.base
    found = json.loads(obd("storage", base, REPO, "--json").stdout)
    assert [e["name"] for e in found["experts"]] == ["chat", "math"]
    assert found["stored_bytes"] == published.size("experts/")
    assert json.loads(obd("storage", base, published.local.folder, "--json").stdout) == found
