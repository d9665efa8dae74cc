from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import obd_reference
import pytest
from blake3 import blake3

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.codecs.sign import SignOptions
from onebitfmt.errors import CheckpointError, OnebitError, OutputError, UsageError
from onebitfmt.verbs.convert import convert, work_bytes
from onebitfmt.verbs.plan import ConvertOptions

if TYPE_CHECKING:
    from tests.conftest import Content, Models, Pair, Tensors

NONE = ConvertOptions(preset="none")
CHAT = ConvertOptions(preset="chat")
LINEAR = ConvertOptions(preset="linear")
PAPER = ConvertOptions(preset="linear", sign=SignOptions(scale="matrix", balanced=False))

UP = "model.layers.0.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
NORM = "model.norm.weight"


def manifest(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "obd.json").read_bytes())
    return found


def kinds(bundle: Path) -> dict[str, str]:
    return {name: entry["coding"]["kind"] for name, entry in manifest(bundle)["tensors"].items()}


def files(bundle: Path) -> dict[str, bytes]:
    return {
        path.relative_to(bundle).as_posix(): path.read_bytes()
        for path in bundle.rglob("*")
        if path.is_file()
    }


def decoded(bundle: Path, base: Path) -> Content:
    """The expert as the specification's own decoder rebuilds it."""
    found = obd_reference.decode(bundle, base / "model.safetensors")
    return {name: (dtype, shape, data) for name, (dtype, shape, data) in found.items()}


def converted(
    models: Models, base: Tensors, expert: Tensors, options: ConvertOptions
) -> tuple[Path, Path]:
    """The folders of a bundle and of its base."""
    of_base, of_expert = models.save("base", base), models.save("expert", expert)
    bundle = models.root / "expert.obd"
    convert(of_base, of_expert, bundle, options)
    return bundle, of_base


def assert_lossless(models: Models, base: Tensors, expert: Tensors) -> dict[str, Any]:
    """Convert without one-bit tensors, compare every bit, and give the manifest."""
    bundle, of_base = converted(models, base, expert, NONE)
    assert decoded(bundle, of_base) == models.content(expert)
    return manifest(bundle)


# --- what becomes of tensors ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "groups"),
    [
        ("chat", ("mlp",)),
        ("math", ("self_attn",)),
        ("code", ("self_attn",)),
        ("linear", ("mlp", "self_attn")),
        ("none", ()),
    ],
)
def test_a_preset_is_onebit_in_its_groups_and_exact_elsewhere(
    pair: Pair, models: Models, preset: str, groups: tuple[str, ...]
) -> None:
    bundle = models.root / "o.obd"
    convert(pair.base, pair.expert, bundle, ConvertOptions(preset=preset))
    too_small = ("k_proj", "v_proj")
    expected = {
        name: "same"
        if name == NORM
        else "terms"
        if any(f".{g}." in name for g in groups) and not any(s in name for s in too_small)
        else "exact"
        for name in pair.expert_tensors
    }
    assert kinds(bundle) == expected
    found, content = decoded(bundle, pair.base), models.content(pair.expert_tensors)
    assert {n for n in content if found[n] == content[n]} == {
        n for n, kind in expected.items() if kind != "terms"
    }


@pytest.mark.parametrize("scale", ["matrix", "row", "column", "rank1"])
@pytest.mark.parametrize("planes", [1, 2])
def test_a_onebit_tensor_has_the_signs_of_the_differences(
    models: Models, scale: str, planes: int
) -> None:
    base = models.random(1, {UP: (70, 61)})
    expert = models.tuned(base, 2)
    options = ConvertOptions(preset="chat", sign=SignOptions(scale=scale, planes=planes))
    bundle, of_base = converted(models, base, expert, options)
    stored = models.load(bundle)
    assert (
        manifest(bundle)["tensors"][UP]["coding"]["terms"]
        == [{"kind": "sign", "scale": scale}] * planes
    )
    difference = models.widen("BF16", expert[UP][1]) - models.widen("BF16", base[UP][1])
    signs = np.frombuffer(stored[f"{UP}/sign/0"][2], np.uint8).reshape(70, 8)
    plus = np.unpackbits(signs, axis=1, bitorder="little")[:, :61] == 1
    assert np.array_equal(plus[difference != 0], difference[difference != 0] > 0)
    _, _, data = decoded(bundle, of_base)[UP]
    rebuilt = models.widen("BF16", np.frombuffer(data, np.uint16).reshape(70, 61))
    origin = models.widen("BF16", base[UP][1])
    assert ((rebuilt - origin - difference) ** 2).sum() < 0.5 * (difference**2).sum()


def test_the_papers_coding_is_one_mean_a_matrix_and_plus_for_zeros(models: Models) -> None:
    base = models.random(1, {"model.layers.0.mlp.experts.up_proj": (3, 40, 50)})
    expert = models.tuned(base, 2)
    [(name, (_, bits))] = base.items()
    expert[name][1][:, :5] = bits[:, :5]
    bundle, _ = converted(models, base, expert, PAPER)
    stored = models.load(bundle)
    difference = models.widen("BF16", expert[name][1]) - models.widen("BF16", bits)
    signs = np.frombuffer(stored[f"{name}/sign/0"][2], np.uint8).reshape(3, 40, 7)
    plus = np.unpackbits(signs, axis=2, bitorder="little")[..., :50] == 1
    assert np.array_equal(plus, difference >= 0)
    dtype, shape, data = stored[f"{name}/matrix/0"]
    means = np.abs(difference).astype(np.float64).mean(axis=(1, 2))
    assert (dtype, shape) == ("F16", (3, 1, 1))
    np.testing.assert_allclose(np.frombuffer(data, np.float16), means, rtol=2.0**-11)
    assert manifest(bundle)["metadata"]["sign"] == "scale=matrix planes=1 zeros=plus"


@pytest.mark.parametrize("options", [LINEAR, PAPER], ids=["rank1", "paper"])
def test_metadata_figures_are_those_of_the_stored_signs(
    models: Models, options: ConvertOptions
) -> None:
    base = models.random(1, {UP: (80, 64), UP.replace("up", "gate"): (64, 72)})
    expert = models.tuned(base, 2)
    bundle, of_base = converted(models, base, expert, options)
    stored, rebuilt = models.load(bundle), decoded(bundle, of_base)
    energy = error = zeros = absorbed = elements = 0.0
    for name, (dtype, bits) in expert.items():
        difference = models.widen(dtype, bits) - models.widen(dtype, base[name][1])
        signs = np.frombuffer(stored[f"{name}/sign/0"][2], np.uint8).reshape(len(bits), -1)
        plus = np.unpackbits(signs, axis=1, bitorder="little")[:, : bits.shape[1]] == 1
        scale = np.ones(1)
        for kind in ("matrix", "row", "column"):
            if f"{name}/{kind}/0" in stored:
                word, shape, data = stored[f"{name}/{kind}/0"]
                values = np.frombuffer(data, {"F16": np.float16, "F32": np.float32}[word])
                scale = scale * values.reshape(shape).astype(np.float64)
        energy += (difference.astype(np.float64) ** 2).sum()
        error += ((difference - np.where(plus, scale, -scale)) ** 2).sum()
        zeros += (difference == 0).sum()
        absorbed += (np.frombuffer(rebuilt[name][2], np.uint16) == base[name][1].reshape(-1)).sum()
        elements += bits.size
    figures = manifest(bundle)["metadata"]
    assert figures["preset"] == "linear"
    for key, value in (
        ("relative_squared_error", error / energy),
        ("zeros", zeros / elements),
        ("absorbed", absorbed / elements),
    ):
        assert float(figures[f"mlp.{key}"]) == pytest.approx(value, abs=2e-6)


SPECIAL = {
    "F64": [0, 1 << 63, 1, (1 << 63) | 1, 0x7FF << 52, 0xFFF << 52, (0x7FF << 52) | 1, 2**64 - 1],
    "F32": [0, 1 << 31, 1, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFC12345, 0x7F7FFFFF],
    "F16": [0, 0x8000, 1, 0x83FF, 0x7C00, 0xFC00, 0x7C01, 0xFE12, 0x7BFF],
    "BF16": [0, 0x8000, 1, 0x807F, 0x7F80, 0xFF80, 0x7F81, 0xFFC1, 0x7F7F],
    "I64": [0, 1, 2**63 - 1, 2**63, 2**64 - 1],
    "I32": [0, 1, 2**31 - 1, 2**31, 2**32 - 1],
    "I16": [0, 1, 0x7FFF, 0x8000, 0xFFFF],
    "I8": [0, 1, 0x7F, 0x80, 0xFF],
    "U64": [0, 2**64 - 1],
    "U32": [0, 2**32 - 1],
    "U16": [0, 0xFFFF],
    "U8": [0, 0xFF],
    "BOOL": [0, 1],
    "F8_E4M3": [0, 0x80, 0x7F, 0xFF],
    "F8_E5M2": [0, 0x80, 0x7C, 0xFD],
}  # fmt: skip
WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


@pytest.mark.parametrize("dtype", SPECIAL)
def test_every_bit_pattern_survives(models: Models, dtype: str) -> None:
    rng = np.random.default_rng(4)
    word = np.dtype(f"u{WIDTHS.get(dtype, 2)}")
    top = 2 if dtype == "BOOL" else 2 ** (8 * word.itemsize)
    noise = rng.integers(0, top, (2, 60, 60), word)
    special = np.array(SPECIAL[dtype], word)
    base: Tensors = {"a": (dtype, noise[0]), "b": (dtype, special), "c": (dtype, special[::-1])}
    expert: Tensors = {
        "a": (dtype, noise[1]),
        "b": (dtype, special[::-1].copy()),
        "c": (dtype, special[::-1]),
        "new": (dtype, special),
    }
    found = assert_lossless(models, base, expert)["tensors"]
    assert found["c"]["coding"] == {"kind": "same"}
    assert found["new"]["base"] is None


@pytest.mark.parametrize("value", [0x7F80, 0xFF80, 0x7FC1], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize("side", ["base", "expert", "both"])
def test_what_is_not_finite_is_kept_exactly_with_a_note(
    models: Models, value: int, side: str
) -> None:
    base = models.random(1, {UP: (64, 64), UP.replace("0", "1"): (64, 64)})
    expert = models.tuned(base, 2)
    for tensors, sides in ((base, ("base", "both")), (expert, ("expert", "both"))):
        if side in sides:
            tensors[UP][1][63, 63] = value
    of_base, of_expert = models.save("base", base), models.save("expert", expert)
    report = convert(of_base, of_expert, models.root / "o.obd", CHAT)
    notes = {o.name: o.note for o in report.outcomes}
    assert notes == {UP: "a difference is not finite", UP.replace("0", "1"): None}
    assert kinds(models.root / "o.obd")[UP] == "exact"
    found = decoded(models.root / "o.obd", of_base)
    assert found[UP] == models.content(expert)[UP]


def test_a_difference_that_overflows_is_kept_exactly(models: Models) -> None:
    base: Tensors = {UP: ("F32", np.full((64, 64), 0x7F7FFFFF, np.uint32))}
    expert: Tensors = {UP: ("F32", np.full((64, 64), 0xFF7FFFFF, np.uint32))}
    bundle, of_base = converted(models, base, expert, CHAT)
    assert kinds(bundle)[UP] == "exact"
    assert decoded(bundle, of_base) == models.content(expert)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_scalars_and_empty_tensors(models: Models, dtype: str) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "scalar": (), "one": (1,), "none": (0,), "wide": (0, 7), "tall": (7, 0), "deep": (2, 0, 3),
    }  # fmt: skip
    base = models.random(1, shapes, dtype)
    expert = models.tuned(base, 2) | models.random(3, {"new": (), "new.none": (0, 2)}, dtype)
    found = assert_lossless(models, base, expert)["tensors"]
    assert found["scalar"]["shape"] == []
    assert found["none"]["coding"] == {"kind": "same"}
    assert found["new.none"]["coding"]["content"] == blake3(b"").hexdigest()


def test_tensors_of_one_side_only(models: Models) -> None:
    base = models.random(1, {UP: (64, 64), "gone": (3, 3), NORM: (8,)})
    expert = models.tuned(base, 2)
    del expert["gone"]
    expert |= models.random(3, {"score.weight": (5, 64)})
    found = assert_lossless(models, base, expert)
    assert set(found["tensors"]) == {UP, NORM, "score.weight"}
    assert found["tensors"]["score.weight"]["base"] is None
    assert found["base"]["fingerprint"] == fingerprint(base)


def fingerprint(tensors: Tensors) -> str:
    rows = [
        [n, d, list(b.shape), blake3(b.tobytes()).hexdigest()]
        for n, (d, b) in sorted(tensors.items())
    ]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


@pytest.mark.parametrize("of_base", ["tied in the base", "not tied", "no head"])
def test_a_tied_head_is_stored_once(models: Models, of_base: str) -> None:
    base = models.llama(1)
    if of_base == "tied in the base":
        base[HEAD] = base[EMBEDDING]
    if of_base == "no head":
        del base[HEAD]
    expert = models.tuned(base, 2)
    expert[HEAD] = expert[EMBEDDING]
    found = assert_lossless(models, base, expert)["tensors"]
    assert found[HEAD]["coding"] == {"kind": "tied", "to": EMBEDDING}
    assert found[HEAD]["base"] is None


def test_an_untied_head_of_a_tied_base_is_predicted_by_the_embedding(models: Models) -> None:
    base = models.llama(1)
    del base[HEAD]
    expert = models.tuned(base, 2)
    expert[HEAD] = models.tuned(base, 3)[EMBEDDING]
    entry = assert_lossless(models, base, expert)["tensors"][HEAD]
    digest = blake3(base[EMBEDDING][1].tobytes()).hexdigest()
    assert entry["base"] == {"name": EMBEDDING, "digest": digest}


@pytest.mark.parametrize("vocabulary", [93, 108])
def test_a_resized_vocabulary_is_predicted_by_the_common_rows(
    models: Models, vocabulary: int
) -> None:
    base = models.llama(1)
    tuned = models.tuned(base, 2)
    expert = models.llama(3, vocabulary=vocabulary)
    rows = min(100, vocabulary)
    for name in expert:
        expert[name][1][:rows] = tuned[name][1][:rows]
    found = assert_lossless(models, base, expert)["tensors"]
    for name in (EMBEDDING, HEAD):
        assert found[name]["base"]["shape"] == [100, 64]
        assert found[name]["shape"] == [vocabulary, 64]


@pytest.mark.parametrize(
    ("of_base", "of_expert"),
    [("F32", "BF16"), ("BF16", "F32"), ("F32", "F16"), ("F16", "BF16"), ("BF16", "F16")],
)
@pytest.mark.parametrize("preset", ["none", "linear"])
def test_types_may_differ_between_base_and_expert(
    models: Models, of_base: str, of_expert: str, preset: str
) -> None:
    base = models.llama(1, of_base)
    expert = models.tuned(base, 2, of_expert)
    bundle, folder = converted(models, base, expert, ConvertOptions(preset=preset))
    found, content, coded = decoded(bundle, folder), models.content(expert), kinds(bundle)
    assert ("terms" in coded.values()) == (preset == "linear")
    for name, kind in coded.items():
        dtype, shape, data = found[name]
        assert (dtype, shape) == content[name][:2]
        if kind != "terms":
            assert data == content[name][2]
            continue
        values, before, after = (
            models.widen(d, np.frombuffer(b, np.uint32 if d == "F32" else np.uint16))
            for d, b in (
                (dtype, data),
                (of_base, base[name][1].tobytes()),
                (dtype, content[name][2]),
            )
        )
        assert ((values - after) ** 2).sum() < ((before - after) ** 2).sum()
    assert manifest(bundle)["tensors"][UP]["base"]["dtype"] == of_base


@pytest.mark.parametrize(("stored", "held"), [("F32", "BF16"), ("F32", "F16"), ("F16", "BF16")])
def test_values_of_a_narrower_type_are_coded_in_it(models: Models, stored: str, held: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(-100, 100, (2, 50, 50)) / 64
    base: Tensors = {"x": (stored, models.narrow(stored, values[0]))}
    narrow = models.widen(held, models.narrow(held, values[1]))
    expert: Tensors = {"x": (stored, models.narrow(stored, narrow))}
    if (stored, held) == ("F32", "F16"):
        # A value that F16 holds and BF16 does not.
        expert["x"][1][0, 0] = models.narrow("F32", np.array([1 + 2.0**-10]))[0]
    found = assert_lossless(models, base, expert)["tensors"]["x"]
    assert found["coding"]["coded"] == held
    assert found["dtype"] == stored


def test_one_wide_value_keeps_the_wide_type(models: Models) -> None:
    base = models.random(1, {"x": (50, 50)}, "BF16")
    bits = models.random(2, {"x": (50, 50)}, "BF16")["x"][1].astype(np.uint32) << 16
    bits[49, 49] |= 1
    found = assert_lossless(models, base, {"x": ("F32", bits)})
    assert "coded" not in found["tensors"]["x"]["coding"]


# --- the bundle ----------------------------------------------------------------------------------


def test_the_manifest_lists_every_file_with_size_and_sha256(pair: Pair) -> None:
    found = files(pair.bundle)
    del found["obd.json"]
    assert manifest(pair.bundle)["files"] == {
        path: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for path, data in found.items()
    }
    assert {p for p in found if p.startswith("expert/")} == {
        "expert/README.md", "expert/config.json", "expert/tokenizer/vocab.txt",
    }  # fmt: skip
    assert found["expert/config.json"] == (pair.expert / "config.json").read_bytes()


def test_the_manifest_describes_base_and_expert(pair: Pair) -> None:
    found = manifest(pair.bundle)
    assert found["base"] == {"fingerprint": fingerprint(pair.base_tensors)}
    assert found["expert"] == {"name": "expert", "dtype": "BF16", "license": "apache-2.0"}
    for name, entry in found["tensors"].items():
        digest = blake3(pair.base_tensors[name][1].tobytes()).hexdigest()
        assert entry["base"] == {"digest": digest}


def test_provenance_and_name_are_kept(pair: Pair, tmp_path: Path) -> None:
    base = Checkpoint.open(pair.base, repo="ns/base", revision="abc")
    expert = Checkpoint.open(pair.expert, repo="ns/expert", revision="def")
    convert(base, expert, tmp_path / "o.obd", NONE, name="My expert")
    found = manifest(tmp_path / "o.obd")
    assert (found["base"]["repo"], found["base"]["revision"]) == ("ns/base", "abc")
    assert found["expert"] == {
        "name": "My expert", "dtype": "BF16", "license": "apache-2.0", "repo": "ns/expert",
        "revision": "def",
    }  # fmt: skip


def test_the_dtype_of_an_expert_is_that_of_most_elements(models: Models) -> None:
    tensors = models.random(1, {"a": (4,), "b": (4,)}, "F32") | models.random(2, {"c": (9,)}, "F16")
    bundle, _ = converted(models, tensors, tensors, NONE)
    assert manifest(bundle)["expert"]["dtype"] == "F16"


@pytest.mark.parametrize("shard_size", [1, 20_000])
def test_small_shards(pair: Pair, tmp_path: Path, shard_size: int) -> None:
    bundle = tmp_path / "o.obd"
    convert(pair.base, pair.expert, bundle, ConvertOptions(preset="chat", shard_size=shard_size))
    groups = {g["name"]: g["files"] for g in manifest(bundle)["groups"]}
    for name, names in groups.items():
        count = len(names)
        assert names == [
            f"{name}-{i:05d}-of-{count:05d}.obd.safetensors" if count > 1
            else f"{name}.obd.safetensors"
            for i in range(1, count + 1)
        ]  # fmt: skip
    if shard_size == 1:
        assert {name: len(names) for name, names in groups.items()} == {
            "attention": 8, "mlp": 6, "embedding": 1, "head": 1, "norm": 4,
        }  # fmt: skip
    whole = tmp_path / "whole.obd"
    convert(pair.base, pair.expert, whole, CHAT)
    assert decoded(bundle, pair.base) == decoded(whole, pair.base)


def test_a_group_that_stores_nothing_has_no_file(models: Models) -> None:
    tensors = models.llama(1)
    bundle, of_base = converted(models, tensors, tensors, LINEAR)
    assert set(kinds(bundle).values()) == {"same"}
    assert set(files(bundle)) == {"obd.json"}
    assert decoded(bundle, of_base) == models.content(tensors)


def test_an_expert_without_tensors_makes_a_valid_bundle_or_none(models: Models) -> None:
    base = models.save("base", models.llama(1))
    expert = models.save("expert", {})
    bundle = models.root / "o.obd"
    with suppress(OnebitError):
        convert(base, expert, bundle, NONE)
    assert not bundle.exists() or decoded(bundle, base) == {}


# --- the same bytes each time --------------------------------------------------------------------


@pytest.fixture(scope="module")
def process_pool() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("options", [LINEAR, NONE, PAPER], ids=["linear", "none", "paper"])
def test_threads_do_not_change_a_byte(models: Models, options: ConvertOptions) -> None:
    shapes = {UP: (1030, 1030), EMBEDDING: (1100, 1000)}
    tensors = models.random(1, shapes)
    base = models.save("base", tensors)
    expert = models.save("expert", models.tuned(tensors, 2))
    found = []
    for jobs in (1, 2):
        bundle = models.root / f"{jobs}" / "o.obd"
        bundle.parent.mkdir()
        convert(base, expert, bundle, options, jobs=jobs)
        found.append(files(bundle))
    assert found[0] == found[1]


def test_the_experts_layout_does_not_change_a_byte(pair: Pair, models: Models) -> None:
    names = sorted(pair.expert_tensors, reverse=True)
    shards = (names[::3], names[1::3], names[2::3])
    expert = models.save("sharded", pair.expert_tensors, shards=shards)
    for name in ("config.json", "README.md", "tokenizer"):
        source = pair.expert / name
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, expert / name)
    base = models.save("base", pair.base_tensors, shards=shards[::-1])
    convert(base, expert, models.root / "expert.obd", LINEAR)
    assert files(models.root / "expert.obd") == files(pair.bundle)


def test_threads_of_an_executor_do_not_change_a_byte(pair: Pair, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        convert(pair.base, pair.expert, tmp_path / "expert.obd", LINEAR, executor=pool)
    assert files(tmp_path / "expert.obd") == files(pair.bundle)


def test_processes_do_not_change_a_byte(pair: Pair, tmp_path: Path, process_pool: Executor) -> None:
    convert(pair.base, pair.expert, tmp_path / "expert.obd", LINEAR, executor=process_pool)
    assert files(tmp_path / "expert.obd") == files(pair.bundle)


def test_an_executor_sees_an_expert_that_was_replaced(pair: Pair, models: Models) -> None:
    expert = models.save("expert", pair.expert_tensors)
    other = models.tuned(pair.base_tensors, 9)
    with ThreadPoolExecutor(1) as pool:
        convert(pair.base, expert, models.root / "first.obd", NONE, executor=pool)
        shutil.rmtree(expert)
        models.save("expert", other)
        convert(pair.base, expert, models.root / "second.obd", NONE, executor=pool)
    assert decoded(models.root / "second.obd", pair.base) == models.content(other)


def test_an_error_in_an_executor_leaves_nothing(
    pair: Pair, tmp_path: Path, process_pool: Executor
) -> None:
    base = Checkpoint.open(pair.base)
    vanished = tmp_path / "vanished"
    shutil.copytree(pair.expert, vanished)
    expert = Checkpoint.open(vanished)
    (vanished / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="vanished"):
        convert(base, expert, tmp_path / "o.obd", NONE, executor=process_pool)
    assert [path.name for path in tmp_path.iterdir()] == ["vanished"]


# --- the call ------------------------------------------------------------------------------------


def test_the_report_adds_up(pair: Pair, tmp_path: Path) -> None:
    report = convert(pair.base, pair.expert, tmp_path / "o.obd", LINEAR)
    found = files(tmp_path / "o.obd")
    content = {n: (d, b) for n, (d, b) in pair.expert_tensors.items()}
    assert report.path == tmp_path / "o.obd"
    assert report.expert_bytes == sum(b.nbytes for _, b in content.values())
    assert report.bundle_bytes == sum(map(len, found.values()))
    assert {o.name: (o.elements, o.nbytes) for o in report.outcomes} == {
        n: (b.size, b.nbytes) for n, (_, b) in content.items()
    }
    assert {o.name: o.kind for o in report.outcomes} == kinds(tmp_path / "o.obd")
    stored = {name: len(data) for file in (tmp_path / "o.obd").glob("*.safetensors")
              for name, data in parts(file).items()}  # fmt: skip
    for outcome in report.outcomes:
        own = [size for part, size in stored.items() if part.startswith(outcome.name + "/")]
        assert outcome.stored == sum(own)
        assert (outcome.fidelity is not None) == (outcome.kind == "terms")


def parts(file: Path) -> dict[str, bytes]:
    data = file.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    del header["__metadata__"]
    return {n: data[begin + t["data_offsets"][0] : begin + t["data_offsets"][1]]
            for n, t in header.items()}  # fmt: skip


@pytest.mark.parametrize("with_executor", [False, True])
def test_progress_adds_up_to_the_work(pair: Pair, tmp_path: Path, with_executor: bool) -> None:
    base, expert = Checkpoint.open(pair.base), Checkpoint.open(pair.expert)
    total = sum(b.nbytes for t in (pair.base_tensors, pair.expert_tensors) for _, b in t.values())
    assert work_bytes(base, expert) == total
    done: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        executor = pool if with_executor else None
        convert(base, expert, tmp_path / "o.obd", LINEAR, executor=executor, progress=done.append)
    assert sum(done) == total


def test_an_existing_output_is_kept_unless_told(pair: Pair, tmp_path: Path) -> None:
    output = tmp_path / "o.obd"
    convert(pair.base, pair.expert, output, LINEAR)
    before = files(output)
    with pytest.raises(OutputError, match="--overwrite"):
        convert(pair.base, pair.expert, output, NONE)
    assert files(output) == before
    convert(pair.base, pair.expert, output, NONE, overwrite=True)
    assert "terms" not in kinds(output).values()


def test_a_checkpoint_is_never_overwritten_by_a_bundle(pair: Pair, models: Models) -> None:
    precious = models.save("precious", pair.base_tensors)
    with pytest.raises(OutputError, match="left alone"):
        convert(pair.base, pair.expert, precious, NONE, overwrite=True)
    assert models.load(precious) == models.content(pair.base_tensors)


def test_nothing_is_written_for_a_request_that_is_refused(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        convert(pair.base, pair.expert, tmp_path / "o.obd", ConvertOptions(preset="no"))
    assert list(tmp_path.iterdir()) == []


def test_unrelated_models_are_refused(models: Models) -> None:
    base = models.save("base", models.random(1, {"a.x": (4,), "b.x": (4,)}))
    expert = models.save("expert", models.random(2, {"c.y": (4,), "d.y": (4,)}))
    with pytest.raises(CheckpointError, match="not a fine-tune"):
        convert(base, expert, models.root / "o.obd", NONE)


@pytest.mark.parametrize(
    "name", ["with: colon.md", "back\\slash.txt", "line\nbreak.json"], ids=["colon", "\\", "\\n"]
)
def test_a_small_file_whose_name_the_format_forbids_makes_a_valid_bundle_or_none(
    models: Models, name: str
) -> None:
    tensors = models.llama(1)
    base = models.save("base", tensors)
    expert = models.save("expert", tensors, files={name: "x", "config.json": "{}"})
    bundle = models.root / "o.obd"
    with suppress(OnebitError):
        convert(base, expert, bundle, NONE)
    assert not bundle.exists() or decoded(bundle, base) == models.content(tensors)


@pytest.mark.parametrize("name", ["", "x" * 1025, "new\nline"], ids=["empty", "long", "control"])
def test_a_tensor_name_that_the_format_forbids_is_refused(models: Models, name: str) -> None:
    tensors = models.llama(1)
    base = models.save("base", tensors)
    expert = models.save("expert", tensors | models.random(2, {name: (4,)}))
    with pytest.raises(OnebitError):
        convert(base, expert, models.root / "o.obd", NONE)
    assert not (models.root / "o.obd").exists()
