from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from onebitfmt.errors import FormatError, OutputError, UnsupportedError, UsageError
from onebitfmt.routing.router import Router
from onebitfmt.routing.router_file import KEY

Make = Callable[..., Router]


def tensors(router: Router) -> dict[str, Any]:
    found = {"temperature": np.array([router.temperature], np.float32)}
    for i, (weight, bias) in enumerate(router.layers):
        found |= {f"layers.{i}.weight": weight, f"layers.{i}.bias": bias}
    return found


def description(**change: Any) -> dict[str, Any]:
    value = {
        "format": "obd-router",
        "version": "1.0",
        "labels": ["a", "b", "c"],
        "features": {"kind": "ngrams", "dimension": 8, "sizes": [1, 2]},
        "metrics": {},
    }
    return value | change


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@pytest.mark.parametrize("units", [0, 5])
def test_what_is_written_is_read(make_router: Make, tmp_path: Path, units: int) -> None:
    router = make_router(units=units)
    router.save(tmp_path / "r.safetensors")
    found = Router.load(tmp_path / "r.safetensors")
    assert (found.labels, found.spec, found.temperature) == (router.labels, router.spec, 1.5)
    assert found.metrics == router.metrics
    for (w, b), (x, y) in zip(found.layers, router.layers, strict=True):
        np.testing.assert_array_equal(w, x)
        np.testing.assert_array_equal(b, y)


def test_the_safetensors_library_reads_it_and_bytes_are_equal(
    make_router: Make, tmp_path: Path
) -> None:
    make_router(units=5).save(tmp_path / "a")
    make_router(units=5).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safe_open(tmp_path / "a", "np") as f:
        assert set(f.keys()) == set(tensors(make_router(units=5)))
        assert list(f.metadata()) == [KEY]
        assert json.loads(f.metadata()[KEY])["labels"] == ["a", "b", "c"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_file_of_the_safetensors_library_is_read(make_router: Make, tmp_path: Path) -> None:
    router = make_router()
    save_file(tensors(router), tmp_path / "r", {KEY: canonical(description())})
    assert Router.load(tmp_path / "r").labels == ("a", "b", "c")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "obd"},
        {"format": 1},
        {"labels": ["a"]},
        {"labels": ["a", "b"]},
        {"labels": ["a", "b", "b"]},
        {"labels": ["a", "b", "../c"]},
        {"labels": ["a", "b", 3]},
        {"labels": "abc"},
        {"features": {"kind": "ngrams", "dimension": 9, "sizes": [1]}},
        {"features": {"kind": "pickle", "dimension": 8}},
        {"metrics": []},
        {"more": 1},
        {"version": 1},
    ],
)
def test_a_bad_description_is_refused(
    make_router: Make, tmp_path: Path, change: dict[str, Any]
) -> None:
    save_file(tensors(make_router()), tmp_path / "r", {KEY: canonical(description(**change))})
    with pytest.raises(FormatError):
        Router.load(tmp_path / "r")


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "{", canonical(description()) + " ", '{"format":NaN}', "[" * 5000,
     canonical(description(metrics={"x": 0.5})), json.dumps(description()), "x" * (1 << 20)],
    ids=range(10),
)  # fmt: skip
def test_a_description_that_is_not_canonical_json_is_refused(
    make_router: Make, tmp_path: Path, text: str
) -> None:
    save_file(tensors(make_router()), tmp_path / "r", {KEY: text})
    with pytest.raises(FormatError):
        Router.load(tmp_path / "r")


def test_a_newer_version_is_not_called_broken(make_router: Make, tmp_path: Path) -> None:
    text = canonical({"format": "obd-router", "version": "2.0", "else": 1})
    save_file(tensors(make_router()), tmp_path / "r", {KEY: text})
    with pytest.raises(UnsupportedError, match="update"):
        Router.load(tmp_path / "r")


@pytest.mark.parametrize(
    "change",
    [
        {"extra": np.zeros(1, np.float32)},
        {"temperature": None},
        {"temperature": np.zeros(1, np.float32)},
        {"temperature": np.full(1, -1, np.float32)},
        {"temperature": np.full(1, np.nan, np.float32)},
        {"temperature": np.ones(2, np.float32)},
        {"temperature": np.ones(1, np.float64)},
        {"layers.0.weight": np.zeros((3, 7), np.float32)},
        {"layers.0.weight": np.zeros((2, 8), np.float32)},
        {"layers.0.weight": np.zeros(24, np.float32)},
        {"layers.0.weight": np.zeros((3, 8), np.float16)},
        {"layers.0.weight": np.full((3, 8), np.inf, np.float32)},
        {"layers.0.bias": np.zeros(4, np.float32)},
        {"layers.0.bias": None},
        {"layers.1.weight": np.zeros((4, 3), np.float32),
         "layers.1.bias": np.zeros(4, np.float32)},
        {"layers.2.weight": np.zeros((3, 3), np.float32),
         "layers.2.bias": np.zeros(3, np.float32)},
    ],
    ids=range(16),
)  # fmt: skip
def test_bad_tensors_are_refused(make_router: Make, tmp_path: Path, change: Any) -> None:
    changed = {k: v for k, v in (tensors(make_router()) | change).items() if v is not None}
    save_file(changed, tmp_path / "r", {KEY: canonical(description())})
    with pytest.raises(FormatError):
        Router.load(tmp_path / "r")


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {KEY: "{}", "format": "pt"}])
def test_another_safetensors_file_is_refused(
    make_router: Make, tmp_path: Path, metadata: dict[str, str]
) -> None:
    save_file(tensors(make_router()), tmp_path / "r", metadata)
    with pytest.raises(FormatError, match="not a router"):
        Router.load(tmp_path / "r")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FormatError, match="no such file"):
            Router.load(path)
    (tmp_path / "huge").write_bytes(struct.pack("<Q", 1 << 60))
    with pytest.raises(FormatError):
        Router.load(tmp_path / "huge")


def test_damage_never_escapes_as_another_error(make_router: Make, tmp_path: Path) -> None:
    path = tmp_path / "r"
    make_router().save(path)
    good = path.read_bytes()
    rng = np.random.default_rng(3)
    text = len(good.rstrip(b"\0").split(b"   ")[0])
    for place in [*rng.integers(0, text, 300), *rng.integers(4096, len(good), 50)]:
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        with contextlib.suppress(FormatError):
            Router.load(path)
    for length in range(0, len(good), 97):
        path.write_bytes(good[:length])
        with pytest.raises(FormatError):
            Router.load(path)


def test_writing_replaces_only_when_asked(make_router: Make, tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        make_router().save(path)
    assert path.read_text() == "mine"
    make_router().save(path, overwrite=True)
    assert Router.load(path).labels == ("a", "b", "c")
    with pytest.raises(OutputError, match="folder"):
        make_router().save(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="cannot be written"):
        make_router().save(tmp_path / "no" / "r")


def test_what_could_not_be_read_is_not_written(make_router: Make, tmp_path: Path) -> None:
    for bad in (
        make_router(temperature=0.0),
        make_router(labels=("a", "a b")),
        make_router(metrics={"accuracy": 0.5}),
        replace(make_router(), layers=()),
    ):
        with pytest.raises(UsageError, match="cannot be stored"):
            bad.save(tmp_path / "r")
    assert list(tmp_path.iterdir()) == []
