from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import obd_reference
import pytest

from onebitfmt.bundle import Bundle
from onebitfmt.checkpoint import Checkpoint
from onebitfmt.codecs.sign import SignOptions
from onebitfmt.errors import BaseMismatchError, FormatError, UsageError
from onebitfmt.parallel import Workers
from onebitfmt.verbs.convert import convert
from onebitfmt.verbs.plan import ConvertOptions

if TYPE_CHECKING:
    from tests.conftest import Content, Models, Pair, Tensors

UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"
LARGE = "model.embed_tokens.weight"
CUTS = (
    None, slice(None), slice(0, 1), slice(3, 7), slice(8, 24), slice(5, None), slice(None, -2),
    slice(-3, None), slice(4, 4), slice(6, 2), slice(0, 10**6),
)  # fmt: skip


class Case:
    """A bundle that holds every coding, its base, and what the reference decoder makes of it."""

    def __init__(self, models: Models) -> None:
        base = models.random(1, {
            "layers.0.mlp.matrix.weight": (9, 37),
            "layers.0.mlp.stack.weight": (3, 9, 37),
            "layers.0.mlp.stacks.weight": (2, 3, 9, 37),
            "layers.0.mlp.exact.weight": (9, 37),
            "layers.0.mlp.exact.bias": (37,),
            "layers.0.mlp.exact.stack": (3, 4, 37),
            "layers.0.same.weight": (9, 37),
            "embed_tokens.weight": (30, 16),
            "head.weight": (30, 16),
        })  # fmt: skip
        expert = models.tuned(base, 2)
        expert["layers.0.same.weight"] = base["layers.0.same.weight"]
        expert["head.weight"] = expert["embed_tokens.weight"]
        expert |= models.random(3, {"new.weight": (9, 37)})
        expert |= models.random(4, {"embed_tokens.weight": (33, 16)})
        expert["head.weight"] = expert["embed_tokens.weight"]
        wide = models.widen("BF16", expert["layers.0.mlp.exact.weight"][1])
        expert["layers.0.mlp.exact.weight"] = ("F32", models.narrow("F32", wide))
        self.path = models.root / "all.obd"
        self.base_folder = models.save("all-base", base)
        of_expert = models.save("all-expert", expert)
        options = ConvertOptions(
            preset="none",
            onebit=("*.mlp.matrix.*", "*.mlp.stack*.weight"),
            sign=SignOptions(planes=2),
        )
        convert(self.base_folder, of_expert, self.path, options)
        self.base = Checkpoint.open(self.base_folder)
        found = obd_reference.decode(self.path, self.base_folder / "model.safetensors")
        self.content: Content = {n: (d, s, data) for n, (d, s, data) in found.items()}
        self.base_tensors = base

    def whole(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        dtype, shape, data = self.content[name]
        return np.frombuffer(data, "<u4" if dtype == "F32" else "<u2").reshape(shape)


NAMES = (
    "layers.0.mlp.matrix.weight", "layers.0.mlp.stack.weight", "layers.0.mlp.stacks.weight",
    "layers.0.mlp.exact.weight", "layers.0.mlp.exact.stack", "layers.0.same.weight",
    "embed_tokens.weight", "head.weight", "new.weight",
)  # fmt: skip
NO_TASK_VECTOR = ("embed_tokens.weight", "head.weight", "new.weight")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, models_at: Any) -> Case:
    return Case(models_at(tmp_path_factory.mktemp("case")))


def numpy_index(ndim: int, rows: slice | None, columns: slice | None) -> tuple[slice, ...]:
    whole = [slice(None)] * ndim
    whole[0], whole[-1] = rows or slice(None), columns or slice(None)
    return tuple(whole)


def test_every_coding_is_in_the_case(case: Case) -> None:
    tensors = json.loads((case.path / "obd.json").read_bytes())["tensors"]
    assert {n: t["coding"]["kind"] for n, t in tensors.items()} == {
        "layers.0.mlp.matrix.weight": "terms",
        "layers.0.mlp.stack.weight": "terms",
        "layers.0.mlp.stacks.weight": "terms",
        "layers.0.mlp.exact.weight": "exact",
        "layers.0.mlp.exact.bias": "exact",
        "layers.0.mlp.exact.stack": "exact",
        "layers.0.same.weight": "same",
        "embed_tokens.weight": "exact",
        "head.weight": "tied",
        "new.weight": "exact",
    }
    assert tensors["layers.0.mlp.exact.weight"]["coding"]["coded"] == "BF16"


@pytest.mark.parametrize("name", [*NAMES, "layers.0.mlp.exact.bias"])
def test_a_whole_tensor_is_the_reference_decoders(case: Case, name: str) -> None:
    found = Bundle.open(case.path).tensor(name, case.base)
    assert (found.dtype, found.shape, found.bits.tobytes()) == case.content[name]


@pytest.mark.parametrize("name", NAMES)
def test_slices_are_those_of_the_whole_tensor(case: Case, name: str) -> None:
    bundle, whole = Bundle.open(case.path), case.whole(name)
    for rows in CUTS:
        for columns in CUTS:
            found = bundle.tensor(name, case.base, rows, columns)
            expected = whole[numpy_index(whole.ndim, rows, columns)]
            assert found.shape == expected.shape
            assert np.array_equal(found.bits, expected)


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_slices_of_a_vector(case: Case, axis: str, cut: slice | None) -> None:
    name = "layers.0.mlp.exact.bias"
    found = Bundle.open(case.path).tensor(name, case.base, **{axis: cut})
    assert np.array_equal(found.bits, case.whole(name)[cut or slice(None)])


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NO_TASK_VECTOR])
def test_task_vectors_and_their_slices(case: Case, models: Models, name: str) -> None:
    bundle = Bundle.open(case.path)
    whole = bundle.task_vector(name, case.base)
    dtype, _, data = case.content[name]
    values = models.widen(dtype, np.frombuffer(data, "<u4" if dtype == "F32" else "<u2"))
    origin = models.widen("BF16", case.base_tensors[name][1])
    rebuilt = (origin + whole).reshape(-1)
    assert whole.dtype == np.float32
    assert whole.shape == origin.shape
    assert models.narrow(dtype, rebuilt).tobytes() == models.narrow(dtype, values).tobytes()
    for rows in CUTS:
        for columns in CUTS:
            found = bundle.task_vector(name, case.base, rows, columns)
            assert np.array_equal(found, whole[numpy_index(whole.ndim, rows, columns)])


def test_a_onebit_task_vector_is_the_sum_of_its_planes(case: Case, models: Models) -> None:
    name = "layers.0.mlp.stack.weight"
    stored = models.load(case.path)
    total = np.zeros((3, 9, 37), np.float32)
    for k in range(2):
        signs = np.frombuffer(stored[f"{name}/sign/{k}"][2], np.uint8).reshape(3, 9, 5)
        plus = np.unpackbits(signs, axis=2, bitorder="little")[..., :37] == 1
        row, column = (
            np.frombuffer(data, f"<f{2 if dtype == 'F16' else 4}").reshape(shape)
            for dtype, shape, data in (stored[f"{name}/{kind}/{k}"] for kind in ("row", "column"))
        )
        size = row.astype(np.float32) * column.astype(np.float32)
        total += np.where(plus, size, -size)
    assert np.array_equal(Bundle.open(case.path).task_vector(name), total)


def test_a_onebit_task_vector_needs_no_base(case: Case) -> None:
    bundle = Bundle.open(case.path)
    name = "layers.0.mlp.matrix.weight"
    assert np.array_equal(bundle.task_vector(name), bundle.task_vector(name, case.base))
    assert not bundle.task_vector("layers.0.same.weight").any()


@pytest.mark.parametrize(
    ("name", "with_base", "words"),
    [
        ("layers.0.mlp.exact.weight", False, "needs the base"),
        ("new.weight", True, "no base tensor of its shape"),
        ("embed_tokens.weight", True, "no base tensor of its shape"),
        ("head.weight", True, "no base tensor of its shape"),
        ("nosuch", True, "no tensor 'nosuch'"),
    ],
)
def test_a_task_vector_that_cannot_be_is_refused(
    case: Case, name: str, with_base: bool, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        Bundle.open(case.path).task_vector(name, case.base if with_base else None)


def test_integers_have_no_task_vector(models: Models) -> None:
    tensors: Tensors = {"x": ("I64", np.arange(4, dtype=np.uint64))}
    base = models.save("base", tensors)
    expert = models.save("expert", {"x": ("I64", np.arange(1, 5, dtype=np.uint64))})
    convert(base, expert, models.root / "o.obd", ConvertOptions(preset="none"))
    bundle = Bundle.open(models.root / "o.obd")
    with pytest.raises(UsageError, match="I64"):
        bundle.task_vector("x", Checkpoint.open(base))


@pytest.mark.parametrize("step", [2, -1])
@pytest.mark.parametrize("axis", ["rows", "columns"])
@pytest.mark.parametrize("name", NAMES[:1] + NAMES[3:4] + NAMES[5:6])
def test_a_step_is_never_silently_ignored(case: Case, name: str, axis: str, step: int) -> None:
    cut = slice(None, None, step)
    expected = case.whole(name)[numpy_index(2, *((cut, None) if axis == "rows" else (None, cut)))]
    try:
        found = Bundle.open(case.path).tensor(name, case.base, **{axis: cut})
    except UsageError:
        return
    assert np.array_equal(found.bits, expected)


@pytest.mark.parametrize("rows", [None, slice(1, 3)])
@pytest.mark.parametrize("columns", [None, slice(0, 2)])
@pytest.mark.parametrize("shape", [(5, 0), (0, 5), (2, 0, 3)], ids=str)
def test_slices_of_empty_tensors(
    models: Models, shape: tuple[int, ...], rows: slice | None, columns: slice | None
) -> None:
    base_tensors = models.random(1, {"x": shape, "y": (2,)})
    base = models.save("base", base_tensors)
    expert = models.save("expert", base_tensors | models.random(1, {"z": shape}))
    convert(base, expert, models.root / "o.obd", ConvertOptions(preset="none"))
    bundle = Bundle.open(models.root / "o.obd")
    for name in ("x", "z"):
        found = bundle.tensor(name, Checkpoint.open(base), rows, columns)
        assert found.shape == np.empty(shape)[numpy_index(len(shape), rows, columns)].shape


def test_scalars_have_no_axes(models: Models) -> None:
    base_tensors = models.random(1, {"same": (), "moved": ()})
    tensors = base_tensors | models.random(2, {"moved": ()})
    base = models.save("base", base_tensors)
    expert = models.save("expert", tensors)
    convert(base, expert, models.root / "o.obd", ConvertOptions(preset="none"))
    bundle, opened = Bundle.open(models.root / "o.obd"), Checkpoint.open(base)
    for name, (_, bits) in tensors.items():
        assert bundle.tensor(name, opened).shape == ()
        assert bundle.tensor(name, opened).bits.tobytes() == bits.tobytes()
        difference = models.widen("BF16", bits) - models.widen("BF16", base_tensors[name][1])
        found = bundle.task_vector(name, opened)
        assert found.shape == ()
        assert found == difference


def test_slices_across_chunks(models: Models) -> None:
    shape = (1100, 1000)
    base_tensors = models.random(1, {LARGE: shape})
    tensors = models.tuned(base_tensors, 2)
    base, expert = models.save("base", base_tensors), models.save("expert", tensors)
    convert(base, expert, models.root / "o.obd", ConvertOptions(preset="none"))
    bundle, opened = Bundle.open(models.root / "o.obd"), Checkpoint.open(base)
    bits = tensors[LARGE][1]
    for rows, columns in (
        (slice(0, 2), None), (slice(1048, 1049), slice(570, 580)), (slice(1000, 1100), None),
        (slice(1099, 1100), slice(999, 1000)), (slice(1049, 1060), slice(0, 1)),
    ):  # fmt: skip
        found = bundle.tensor(LARGE, opened, rows, columns)
        assert np.array_equal(found.bits, bits[rows, columns or slice(None)])


@pytest.mark.parametrize("name", [*NAMES, "layers.0.mlp.exact.bias"])
def test_blocks_join_to_the_whole_tensor(case: Case, name: str) -> None:
    with Workers(2) as workers:
        parts = list(Bundle.open(case.path).blocks(name, case.base, workers))
    assert b"".join(part.tobytes() for part in parts) == case.content[name][2]


def test_threads_may_share_a_bundle(case: Case) -> None:
    bundle = Bundle.open(case.path)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: bundle.tensor(name, case.base), NAMES * 5))
    for name, tensor in zip(NAMES * 5, found, strict=True):
        assert tensor.bits.tobytes() == case.content[name][2]


def test_a_released_tensor_reads_the_same(case: Case) -> None:
    bundle = Bundle.open(case.path)
    for name in NAMES:
        bundle.tensor(name, case.base)
        bundle.release(name, case.base)
        assert bundle.tensor(name, case.base).bits.tobytes() == case.content[name][2]


def test_an_unknown_tensor_is_named(case: Case) -> None:
    with pytest.raises(UsageError, match="'nosuch'") as caught:
        Bundle.open(case.path).tensor("nosuch", case.base)
    assert str(case.path) in str(caught.value)


# --- the base ------------------------------------------------------------------------------------


def changed(tensors: Tensors, name: str, how: str) -> Tensors:
    dtype, bits = tensors[name]
    other = {
        "value": (dtype, bits ^ np.uint16(1)),
        "dtype": ("F16", bits),
        "shape": (dtype, bits.reshape(-1)),
    }
    return {n: t for n, t in tensors.items() if n != name} | (
        {} if how == "missing" else {name: other[how]}
    )


@pytest.mark.parametrize("how", ["value", "dtype", "shape", "missing"])
@pytest.mark.parametrize("name", NAMES[:1] + NAMES[3:4] + NAMES[5:6])
def test_another_base_is_refused_and_both_are_named(
    case: Case, models: Models, name: str, how: str
) -> None:
    folder = models.save("other", changed(case.base_tensors, name, how))
    with pytest.raises(BaseMismatchError) as caught:
        Bundle.open(case.path).tensor(name, Checkpoint.open(folder))
    fingerprint = json.loads((case.path / "obd.json").read_bytes())["base"]["fingerprint"]
    for word in (str(case.path), fingerprint[:12], str(folder), name, "[OBD-BASE-TENSOR]"):
        assert word in str(caught.value)


def test_a_known_base_is_named_by_its_repo(pair: Pair, models: Models) -> None:
    base = Checkpoint.open(pair.base, repo="ns/base", revision="abc")
    convert(base, pair.expert, models.root / "o.obd", ConvertOptions(preset="none"))
    other = Checkpoint.open(pair.expert, repo="ns/other", revision="def")
    with pytest.raises(BaseMismatchError, match=r"ns/base@abc.*ns/other@def"):
        Bundle.open(models.root / "o.obd").tensor(UP, other)


def test_only_the_tensors_that_are_used_are_checked(case: Case, models: Models) -> None:
    folder = models.save("other", changed(case.base_tensors, "layers.0.same.weight", "value"))
    name = "layers.0.mlp.matrix.weight"
    found = Bundle.open(case.path).tensor(name, Checkpoint.open(folder))
    assert found.bits.tobytes() == case.content[name][2]


def test_a_one_bit_task_vector_needs_no_base(case: Case, models: Models) -> None:
    name = "layers.0.mlp.matrix.weight"
    delta = Bundle.open(case.path).task_vector(name)
    assert np.array_equal(delta, Bundle.open(case.path).task_vector(name, case.base))


def test_one_base_does_not_vouch_for_another(case: Case, models: Models) -> None:
    name = "layers.0.mlp.matrix.weight"
    bundle = Bundle.open(case.path)
    bundle.tensor(name, case.base)
    folder = models.save("other", changed(case.base_tensors, name, "value"))
    with pytest.raises(BaseMismatchError):
        bundle.tensor(name, Checkpoint.open(folder))


@pytest.mark.parametrize("single", [True, False])
def test_the_base_may_come_in_another_layout(case: Case, models: Models, single: bool) -> None:
    names = sorted(case.base_tensors, reverse=True)
    folder = models.save("copy", case.base_tensors, shards=(names[::2], names[1::2]))
    path: Path = folder
    if single:
        path = models.write(models.root / "copy.safetensors", case.base_tensors)
    bundle, copy = Bundle.open(case.path), Checkpoint.open(path)
    for name in NAMES:
        assert bundle.tensor(name, copy).bits.tobytes() == case.content[name][2]


PREFIXABLE: Sequence[str] = ("norm.weight", "layers.0.norm.weight", "layers.0.mlp.up_proj.weight")


@pytest.mark.parametrize(("original", "copy"), [("", "model."), ("model.", "")])
def test_the_base_may_have_gained_or_lost_a_prefix(
    models: Models, original: str, copy: str
) -> None:
    shapes: dict[str, tuple[int, ...]] = {n: (64, 64) if "mlp" in n else (64,) for n in PREFIXABLE}
    plain = models.random(1, shapes)
    tuned = models.tuned(plain, 2)

    def save(folder: str, tensors: Tensors, prefix: str) -> Path:
        return models.save(folder, {prefix + n: t for n, t in tensors.items()})

    base, expert = save("base", plain, original), save("expert", tuned, original)
    convert(base, expert, models.root / "o.obd", ConvertOptions(preset="none"))
    bundle = Bundle.open(models.root / "o.obd")
    other = Checkpoint.open(save("copy", plain, copy))
    for name, (_, bits) in tuned.items():
        assert np.array_equal(bundle.tensor(original + name, other).bits, bits)


# --- the folder ----------------------------------------------------------------------------------


def test_a_partial_bundle_serves_what_it_has(pair: Pair, tmp_path: Path) -> None:
    copy = tmp_path / "part.obd"
    shutil.copytree(pair.bundle, copy)
    (copy / "mlp.obd.safetensors").unlink()
    bundle, base = Bundle.open(copy), Checkpoint.open(pair.base)
    whole = Bundle.open(pair.bundle)
    for name in pair.expert_tensors:
        if ".mlp." not in name:
            found = bundle.tensor(name, base).bits
            assert np.array_equal(found, whole.tensor(name, base).bits)
    with pytest.raises(FormatError, match=r"'mlp'.*\[OBD-DIR-MISSING\]") as caught:
        bundle.tensor(UP, base)
    assert caught.value.id == "OBD-DIR-MISSING"
    assert str(copy / "mlp.obd.safetensors") in str(caught.value)
    assert bundle.container.missing_files == ["mlp.obd.safetensors"]


def test_links_are_refused_but_for_those_of_the_hubs_cache(pair: Pair, tmp_path: Path) -> None:
    repo = tmp_path / "models--ns--name"
    shutil.copytree(pair.bundle, repo / "blobs")
    cached = repo / "snapshots" / ("0" * 40) / "x.obd"
    for folder in (tmp_path / "x.obd", cached):
        for path in (p for p in (repo / "blobs").rglob("*") if p.is_file()):
            link = folder / path.relative_to(repo / "blobs")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    with pytest.raises(FormatError, match="OBD-DIR"):
        Bundle.open(tmp_path / "x.obd")
    base = Checkpoint.open(pair.base)
    found = Bundle.open(cached).tensor(UP, base)
    assert np.array_equal(found.bits, Bundle.open(pair.bundle).tensor(UP, base).bits)


@pytest.mark.parametrize("make", [None, Path.mkdir, Path.touch], ids=["nothing", "empty", "file"])
def test_what_is_no_bundle_is_refused_by_its_path(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "x.obd"
    if make is not None:
        make(path)
    with pytest.raises(FormatError, match="OBD-DIR-MANIFEST") as caught:
        Bundle.open(path)
    assert str(path) in str(caught.value)
