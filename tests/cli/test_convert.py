from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Models, Pair

Run = Callable[..., Any]


def kinds(bundle: Path) -> dict[str, str]:
    tensors = json.loads((bundle / "obd.json").read_bytes())["tensors"]
    return {name: entry["coding"]["kind"] for name, entry in tensors.items()}


def terms(bundle: Path) -> list[Any]:
    tensors = json.loads((bundle / "obd.json").read_bytes())["tensors"].values()
    found = [t["coding"]["terms"] for t in tensors if t["coding"]["kind"] == "terms"]
    assert found
    return found


def test_a_table_shows_each_group_and_the_total(obd: Run, pair: Pair, tmp_path: Path) -> None:
    output = tmp_path / "o.obd"
    lines = obd("convert", pair.base, pair.expert, "-o", output, "--preset", "chat").stdout
    rows = {line.split()[0]: line.split() for line in lines.splitlines() if line.split()}
    for group, tensors, onebit in (
        ("attention", 8, 0), ("mlp", 6, 6), ("embedding", 1, 0), ("head", 1, 0), ("norm", 5, 0),
        ("total", 21, 6),
    ):  # fmt: skip
        assert rows[group][1:3] == [str(tensors), str(onebit)]
    assert "exact" in rows["attention"]
    assert "exact" not in rows["mlp"]
    disk = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    assert f"{disk / 1000:.2f} kB on disk" in lines


def test_json_agrees_with_the_bundle(obd: Run, pair: Pair, tmp_path: Path) -> None:
    output = tmp_path / "o.obd"
    arguments = ("convert", pair.base, pair.expert, "-o", output, "--preset", "linear")
    found = json.loads(obd(*arguments, "--json").stdout)
    manifest = json.loads((output / "obd.json").read_bytes())
    tensors = manifest["tensors"]
    assert found["bundle"] == str(output)
    assert found["expert_bytes"] == sum(b.nbytes for _, b in pair.expert_tensors.values())
    assert found["bundle_bytes"] == sum(
        path.stat().st_size for path in output.rglob("*") if path.is_file()
    )
    assert (found["kept_exactly"], found["other"]) == ({}, [])
    assert [g["group"] for g in found["groups"]] == [g["name"] for g in manifest["groups"]]
    for row in found["groups"]:
        own = {n: t for n, t in tensors.items() if t["group"] == row["group"]}
        elements = sum(pair.expert_tensors[n][1].size for n in own)
        assert row["tensors"] == len(own)
        assert row["onebit_tensors"] == sum(t["coding"]["kind"] == "terms" for t in own.values())
        assert row["full_bytes"] == 2 * elements
        assert row["bits_per_weight"] == pytest.approx(8 * row["stored_bytes"] / elements)
        for key in ("relative_squared_error", "zeros", "absorbed"):
            text = manifest["metadata"].get(f"{row['group']}.{key}")
            assert (text is None) == (key not in row)
            assert text is None or float(text) == pytest.approx(row[key], abs=1e-6)


def test_what_is_kept_exactly_is_said(obd: Run, models: Models) -> None:
    up, odd = "model.layers.0.mlp.up_proj.weight", "strange.thing"
    tensors = models.random(1, {up: (64, 64), odd: (3,)})
    tensors[up][1][0, 0] = 0x7F80
    base = models.save("base", tensors)
    expert = models.save("expert", models.tuned(models.random(1, {up: (64, 64), odd: (3,)}), 2))
    arguments = ("convert", base, expert, "--preset", "chat")
    text = obd(*arguments, "-o", models.root / "1.obd").stdout
    assert f"kept exactly: {up}: a difference is not finite" in text
    assert f"in no known layer group, kept exactly: {odd} (see --group)" in text
    found = json.loads(obd(*arguments, "-o", models.root / "2.obd", "--json").stdout)
    assert found["kept_exactly"] == {up: "a difference is not finite"}
    assert found["other"] == [odd]


@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet_is_silent(obd: Run, pair: Pair, tmp_path: Path, option: str) -> None:
    output = tmp_path / "o.obd"
    arguments = ("convert", pair.base, pair.expert, "-o", output, "--preset", "none")
    result = obd(*arguments, option)
    assert (result.stdout, result.stderr) == ("", "")
    assert (output / "obd.json").exists()


@pytest.mark.parametrize(
    ("options", "expected", "sign"),
    [
        ((), [{"kind": "sign", "scale": "rank1"}], "scale=rank1 planes=1 zeros=balanced"),
        (
            ("--scale", "row"),
            [{"kind": "sign", "scale": "row"}],
            "scale=row planes=1 zeros=balanced",
        ),
        (
            ("--planes", "2", "--zeros", "plus"),
            [{"kind": "sign", "scale": "rank1"}] * 2,
            "scale=rank1 planes=2 zeros=plus",
        ),
        (("--paper",), [{"kind": "sign", "scale": "matrix"}], "scale=matrix planes=1 zeros=plus"),
    ],
    ids=["default", "scale", "planes", "paper"],
)
def test_the_sign_coding_is_as_asked(
    obd: Run,
    pair: Pair,
    tmp_path: Path,
    options: tuple[str, ...],
    expected: list[dict[str, str]],
    sign: str,
) -> None:
    output = tmp_path / "o.obd"
    obd("convert", pair.base, pair.expert, "-o", output, "--preset", "chat", *options)
    assert all(found == expected for found in terms(output))
    assert json.loads((output / "obd.json").read_bytes())["metadata"]["sign"] == sign


def test_globs_groups_name_and_shards(obd: Run, pair: Pair, tmp_path: Path) -> None:
    output = tmp_path / "o.obd"
    obd(
        "convert", pair.base, pair.expert, "-o", output, "--preset", "math", "--name", "mine",
        "--onebit", "*.1.mlp.up*", "--onebit", "*.1.mlp.gate*", "--exact", "*q_proj*",
        "--group", "*.0.mlp.down*=attention", "--shard-size", "10kB", "--jobs", "1",
    )  # fmt: skip
    assert {n for n, kind in kinds(output).items() if kind == "terms"} == {
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.1.mlp.gate_proj.weight",
    }
    assert json.loads((output / "obd.json").read_bytes())["expert"]["name"] == "mine"
    assert (output / "mlp-00001-of-00004.obd.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--preset", "fun"), ("unknown preset 'fun'", "chat, math, code, linear, none")),
        (("--preset", "none", "--onebit", "*no*such*"), ("'*no*such*'", "--onebit")),
        (("--preset", "none", "--exact", "*no*such*"), ("'*no*such*'", "--exact")),
        (("--preset", "none", "--group", "mlp"), ("GLOB=GROUP", "'mlp'")),
        (("--preset", "none", "--group", "*=all"), ("'all'", "attention, mlp")),
        (("--preset", "none", "--scale", "best"), ("'best'", "matrix, row, column, rank1")),
        (("--preset", "none", "--zeros", "minus"), ("balanced or plus", "'minus'")),
        (("--preset", "none", "--paper", "--planes", "2"), ("--paper", "--planes")),
        (("--preset", "none", "--paper", "--scale", "row"), ("--paper", "--scale")),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_request_that_means_nothing_is_2_and_writes_nothing(
    obd: Run, pair: Pair, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    result = obd("convert", pair.base, pair.expert, "-o", tmp_path / "o.obd", *options, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    for word in words:
        assert word in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_3_and_names_the_way_out(
    obd: Run, pair: Pair, tmp_path: Path
) -> None:
    output = tmp_path / "o.obd"
    arguments = ("convert", pair.base, pair.expert, "-o", output, "--preset")
    obd(*arguments, "chat", "-q")
    result = obd(*arguments, "none", code=3)
    assert str(output) in result.stderr
    assert "--overwrite" in result.stderr
    assert "terms" in kinds(output).values()
    obd(*arguments, "none", "--overwrite", "-q")
    assert "terms" not in kinds(output).values()


@pytest.mark.parametrize(
    ("base", "expert", "words"),
    [
        ("{0}/nothing/at/all", "{1}", "no such file or folder"),
        ("{0}", "../nothing", "../nothing"),
        ("{0}", "{1}/config.json", "not a .safetensors file"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_3(
    obd: Run, pair: Pair, tmp_path: Path, base: str, expert: str, words: str
) -> None:
    sources = [text.format(pair.base, pair.expert) for text in (base, expert)]
    result = obd("convert", *sources, "-o", tmp_path / "o.obd", "--preset", "none", code=3)
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_without_the_package_names_the_extra(
    obd: Run, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dask", "dask.distributed"):
        monkeypatch.setitem(sys.modules, name, None)
    result = obd(
        "convert", pair.base, pair.expert, "-o", tmp_path / "o.obd", "--preset", "none",
        "--dask", "tcp://localhost:1", code=3,
    )  # fmt: skip
    assert "pip install 'onebitfmt[dask]'" in result.stderr
    assert list(tmp_path.iterdir()) == []
