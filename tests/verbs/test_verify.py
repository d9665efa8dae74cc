from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from onebitfmt.bundle import Bundle
from onebitfmt.errors import CheckpointError
from onebitfmt.verbs.verify import verify, verify_bytes

if TYPE_CHECKING:
    from tests.conftest import Models, Pair

MLP = "mlp.obd.safetensors"
ATTENTION = "attention.obd.safetensors"
UP = "model.layers.0.mlp.up_proj.weight"
KEPT = "model.layers.0.self_attn.k_proj.weight"


@pytest.fixture
def bundle(pair: Pair, tmp_path: Path) -> Path:
    """A copy to damage."""
    copy = tmp_path / "copy.obd"
    shutil.copytree(pair.bundle, copy)
    return copy


def seal(bundle: Path, change: Callable[[Any], object]) -> None:
    """Change the manifest and make its digest right again."""
    value = json.loads((bundle / "obd.json").read_bytes())
    change(value)
    del value["digest"]
    value["digest"] = hashlib.sha256(canonical(value)).hexdigest()
    (bundle / "obd.json").write_bytes(canonical(value))


def canonical(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode()


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def reseal_files(bundle: Path) -> None:
    """Sizes and SHA-256 of all files as they are now."""

    def change(value: Any) -> None:
        for path in value["files"]:
            data = (bundle / path).read_bytes()
            value["files"][path] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    seal(bundle, change)


def ids(bundle: Path, base: Path | None = None) -> list[str]:
    return [finding.id for finding in verify(bundle, base).findings]


def test_a_valid_bundle_has_no_findings(pair: Pair) -> None:
    report = verify(pair.bundle)
    listed = json.loads((pair.bundle / "obd.json").read_bytes())["files"]
    assert report.findings == ()
    assert (report.path, report.with_base) == (pair.bundle, False)
    assert (report.files, report.tensors) == (len(listed), len(pair.expert_tensors))


def test_a_valid_bundle_is_rebuilt_from_its_base(pair: Pair) -> None:
    report = verify(pair.bundle, pair.base)
    assert report.findings == ()
    assert report.with_base


def remove(path: str) -> Callable[[Path], object]:
    return lambda bundle: (bundle / path).unlink()


def rewrite(path: str, data: bytes) -> Callable[[Path], object]:
    return lambda bundle: (bundle / path).write_bytes(data)


def replace_by_link(bundle: Path) -> None:
    target = bundle.parent / "elsewhere"
    (bundle / MLP).rename(target)
    (bundle / MLP).symlink_to(target)


def flip_scale_and_reseal(bundle: Path) -> None:
    flip(bundle / MLP, -1)
    reseal_files(bundle)


FAULTS: dict[str, tuple[Callable[[Path], object], str, set[str]]] = {
    "no manifest": (remove("obd.json"), "obd.json", {"OBD-DIR-MANIFEST"}),
    "no JSON": (rewrite("obd.json", b"{"), "obd.json", {"OBD-JSON-SYNTAX"}),
    "changed manifest": (
        lambda b: rewrite("obd.json", (b / "obd.json").read_bytes().replace(b"BF16", b"F16", 1))(b),
        "obd.json",
        {"OBD-MAN-DIGEST"},
    ),
    "newer version": (
        lambda b: seal(b, lambda value: value.update(version="2.0")),
        "obd.json",
        {"OBD-MAN-VERSION"},
    ),
    "unknown field": (
        lambda b: seal(b, lambda value: value.update(more=1)),
        "obd.json",
        {"OBD-MAN-FIELD"},
    ),
    "unlisted file": (rewrite("extra.txt", b""), "extra.txt", {"OBD-DIR-UNLISTED"}),
    "link": (replace_by_link, MLP, {"OBD-DIR-LINK"}),
    "cut short": (rewrite(MLP, b"x"), MLP, {"OBD-DIR-SIZE"}),
    "missing file": (remove(MLP), MLP, {"OBD-DIR-MISSING"}),
    "missing small file": (remove("expert/config.json"), "config.json", {"OBD-DIR-MISSING"}),
    "changed small file": (
        lambda b: flip(b / "expert" / "config.json", 0),
        "config.json",
        {"OBD-DIR-SHA256"},
    ),
    "damaged header": (lambda b: flip(b / MLP, 8), MLP, {"OBD-DIR-SHA256", "OBD-ST-HEADER"}),
    "damaged scale": (
        lambda b: flip(b / MLP, -1),
        MLP,
        {"OBD-DIR-SHA256", "OBD-TENSOR-DIGEST"},
    ),
    "damaged scale, files re-sealed": (flip_scale_and_reseal, UP[:13], {"OBD-TENSOR-DIGEST"}),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("with_base", [False, True])
def test_a_fault_is_found_and_its_place_named(
    pair: Pair, bundle: Path, fault: str, with_base: bool
) -> None:
    damage, place, expected = FAULTS[fault]
    damage(bundle)
    report = verify(bundle, pair.base if with_base else None)
    assert {finding.id for finding in report.findings} == expected
    for finding in report.findings:
        assert str(bundle) in finding.message
        assert place in finding.message
        assert finding.message.endswith(f"[{finding.id}]")


def test_several_faults_are_found_at_once(bundle: Path) -> None:
    (bundle / "norm.obd.safetensors").unlink()
    flip(bundle / "expert" / "config.json", 0)
    flip(bundle / MLP, -1)
    flip(bundle / ATTENTION, 8)
    found = verify(bundle).findings
    places = {(finding.id, Path(finding.message.split(":")[0]).name) for finding in found}
    assert places == {
        ("OBD-DIR-MISSING", "norm.obd.safetensors"),
        ("OBD-DIR-SHA256", "config.json"),
        ("OBD-DIR-SHA256", MLP),
        ("OBD-DIR-SHA256", ATTENTION),
        ("OBD-TENSOR-DIGEST", MLP),
        ("OBD-ST-HEADER", ATTENTION),
    }
    assert len(found) == len(places)


def test_a_wrong_content_digest_is_found_with_the_base_only(pair: Pair, bundle: Path) -> None:
    def change(value: Any) -> None:
        value["tensors"][KEPT]["coding"]["content"] = "0" * 64

    seal(bundle, change)
    assert ids(bundle) == []
    report = verify(bundle, pair.base)
    assert [f.id for f in report.findings] == ["OBD-EXACT-CONTENT"]
    assert KEPT in report.findings[0].message


def test_a_wrong_base_digest_is_found_with_the_base_only(pair: Pair, bundle: Path) -> None:
    seal(bundle, lambda value: value["tensors"][UP]["base"].update(digest="0" * 64))
    assert ids(bundle) == []
    assert ids(bundle, pair.base) == ["OBD-BASE-TENSOR"]


def test_another_base_is_a_finding_for_each_tensor(pair: Pair) -> None:
    report = verify(pair.bundle, pair.expert)
    same = [n for n in pair.base_tensors if n == "model.norm.weight"]
    assert {f.id for f in report.findings} == {"OBD-BASE-TENSOR"}
    assert len(report.findings) == len(pair.base_tensors) - len(same)


def test_a_base_that_cannot_be_opened_is_an_error(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing"):
        verify(pair.bundle, tmp_path / "no" / "nothing")


@pytest.mark.parametrize("with_base", [False, True])
def test_progress_adds_up(pair: Pair, with_base: bool) -> None:
    done: list[int] = []
    report = verify(pair.bundle, pair.base if with_base else None, progress=done.append)
    stored = sum(p.stat().st_size for p in pair.bundle.rglob("*") if p.is_file())
    stored -= (pair.bundle / "obd.json").stat().st_size
    rebuilt = sum(bits.nbytes for _, bits in pair.expert_tensors.values())
    total = verify_bytes(Bundle.open(pair.bundle), with_base=with_base)
    assert report.findings == ()
    assert sum(done) == total == stored + (rebuilt if with_base else 0)


def test_threads_do_not_change_the_findings(pair: Pair, bundle: Path, models: Models) -> None:
    flip(bundle / MLP, -1)
    flip(bundle / ATTENTION, -1)
    found = [verify(bundle, pair.base, jobs=jobs).findings for jobs in (1, 4)]
    assert found[0] == found[1] != ()
