from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.codecs.sign import SignOptions
from onebitfmt.container import Container
from onebitfmt.errors import FormatError
from onebitfmt.report.storage import StorageReport, storage, stored_bytes
from onebitfmt.verbs.convert import convert
from onebitfmt.verbs.plan import ConvertOptions

if TYPE_CHECKING:
    from tests.conftest import Models, Pair, Tensors

EMBEDDING = "model.embed_tokens.weight"
STACK = "model.layers.0.mlp.experts.up_proj"


def tensors_of(models: Models, seed: int) -> Tensors:
    found = models.random(
        seed,
        {
            EMBEDDING: (50, 64),
            "model.layers.0.self_attn.q_proj.weight": (64, 65),
            STACK: (3, 64, 70),
            "model.norm.weight": (64,),
            "lm_head.weight": (50, 64),
        },
    )
    found["lm_head.weight"] = found[EMBEDDING]
    found["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", np.arange(8, dtype=np.uint32))
    return found


@pytest.fixture
def family(models: Models) -> tuple[Path, list[Path]]:
    base = models.save("base", tensors_of(models, 1))
    bundles = []
    for seed, preset in ((2, "linear"), (3, "none")):
        name = f"expert{seed}"
        expert = models.save(name, tensors_of(models, seed), files={"config.json": "{}" * seed})
        bundles.append(models.root / f"{name}.obd")
        convert(base, expert, bundles[-1], ConvertOptions(preset=preset))
    return base, bundles


@pytest.fixture
def report(family: tuple[Path, list[Path]]) -> StorageReport:
    base, bundles = family
    return storage(bundles, Checkpoint.open(base))


FULL = {
    "attention": 2 * 64 * 65,
    "mlp": 2 * 3 * 64 * 70,
    "embedding": 2 * 50 * 64,
    "head": 2 * 50 * 64,
    "norm": 2 * 64,
    "other": 4 * 8,
}
# A row of 65 signs takes 9 bytes, one of 70 likewise; a scale takes 2; a tied head nothing.
PAPER = {
    "attention": 64 * 9 + 2,
    "mlp": 3 * (64 * 9 + 2),
    "embedding": 2 * 50 * 64,
    "head": 0,
    "norm": 2 * 64,
    "other": 2 * 8,
}


def test_full_bytes_are_those_of_the_tensors(report: StorageReport) -> None:
    for expert in report.experts:
        assert {g.name: g.full for g in expert.groups} == FULL
        assert {g.name: g.tensors for g in expert.groups} == dict.fromkeys(FULL, 1)
    assert report.base == sum(FULL.values())
    assert report.full == 2 * sum(FULL.values()) + 4 + 6


def test_the_papers_bytes_follow_from_the_shapes(report: StorageReport) -> None:
    onebit, exact = report.experts
    kept = {**PAPER, "attention": FULL["attention"], "mlp": FULL["mlp"]}
    assert {g.name: g.paper for g in onebit.groups} == PAPER
    assert {g.name: g.paper for g in exact.groups} == kept
    assert onebit.paper == sum(PAPER.values()) + 4
    assert report.paper == sum(PAPER.values()) + sum(kept.values()) + 4 + 6


def test_onebit_elements_are_counted(report: StorageReport) -> None:
    onebit, exact = report.experts
    expected = dict.fromkeys(FULL, 0) | {"attention": 64 * 65, "mlp": 3 * 64 * 70}
    assert {g.name: g.onebit for g in onebit.groups} == expected
    assert {g.onebit for g in exact.groups} == {0}
    assert {g.name: g.elements for g in onebit.groups}["other"] == 8


def test_stored_bytes_are_those_on_disk(
    family: tuple[Path, list[Path]], report: StorageReport
) -> None:
    for bundle, expert in zip(family[1], report.experts, strict=True):
        sizes = {p.relative_to(bundle).as_posix(): p.stat().st_size
                 for p in bundle.rglob("*") if p.is_file()}  # fmt: skip
        assert expert.stored == sum(sizes.values())
        assert expert.manifest == sizes["obd.json"]
        assert expert.small_files == sizes["expert/config.json"]
        assert (expert.name, expert.path) == (bundle.stem, bundle)
        for group in expert.groups:
            assert group.stored == sizes.get(f"{group.name}.obd.safetensors", 0)
    assert report.stored == sum(expert.stored for expert in report.experts)


def test_without_a_base_its_bytes_are_left_out(family: tuple[Path, list[Path]]) -> None:
    assert storage(family[1]).base == 0


def test_stored_bytes_of_a_tensor_are_signs_and_scales(family: tuple[Path, list[Path]]) -> None:
    container = Container.open(family[1][0])
    # rank1: a scale of 2 bytes for each row and each column.
    assert stored_bytes(container, STACK) == 3 * (64 * 9 + 2 * (64 + 70))
    assert stored_bytes(container, "lm_head.weight") == 0


@pytest.mark.parametrize(
    ("scale", "planes", "scales"), [("matrix", 1, 1), ("row", 2, 64), ("column", 1, 70)]
)
def test_stored_bytes_of_other_scales(models: Models, scale: str, planes: int, scales: int) -> None:
    base = models.save("base", tensors_of(models, 1))
    expert = models.save("expert", tensors_of(models, 2))
    options = ConvertOptions(preset="chat", sign=SignOptions(scale=scale, planes=planes))
    convert(base, expert, models.root / "o.obd", options)
    found = stored_bytes(Container.open(models.root / "o.obd"), STACK)
    assert found == planes * 3 * (64 * 9 + 2 * scales)


def test_missing_group_files_do_not_matter(pair: Pair, tmp_path: Path) -> None:
    copy = tmp_path / "copy.obd"
    shutil.copytree(pair.bundle, copy)
    (copy / "mlp.obd.safetensors").unlink()
    before, after = storage([pair.bundle]), storage([copy])
    assert (before.stored, before.full, before.paper) == (after.stored, after.full, after.paper)


def test_what_is_no_bundle_is_refused(pair: Pair) -> None:
    with pytest.raises(FormatError, match="OBD-DIR-MANIFEST"):
        storage([pair.bundle, pair.base])
