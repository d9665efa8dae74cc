from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import obd_reference
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from onebitfmt.bundle import Bundle
from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import BaseMismatchError, FormatError, OutputError
from onebitfmt.verbs.convert import convert
from onebitfmt.verbs.plan import ConvertOptions
from onebitfmt.verbs.restore import restore, restored_bytes

if TYPE_CHECKING:
    from tests.conftest import Models, Pair, Tensors

NONE = ConvertOptions(preset="none")
INDEX = "model.safetensors.index.json"
WORDS = {
    "F64": np.uint64, "F32": np.uint32, "F16": np.uint16, "BF16": np.uint16, "I64": np.uint64,
    "I32": np.uint32, "I16": np.uint16, "I8": np.uint8, "U8": np.uint8, "BOOL": np.uint8,
}  # fmt: skip
# Zeros, subnormals, infinities, NaN payloads of both signs.
SPECIAL = {
    "F64": [0, 1 << 63, 1, (1 << 63) | 1, 0x7FF << 52, 0xFFF << 52, (0x7FF << 52) | 9, 2**64 - 1],
    "F32": [0, 1 << 31, 1, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFC12345],
    "F16": [0, 0x8000, 1, 0x83FF, 0x7C00, 0xFC00, 0x7C01, 0xFE12],
    "BF16": [0, 0x8000, 1, 0x807F, 0x7F80, 0xFF80, 0x7F81, 0xFFC1],
}


def every_dtype(seed: int) -> Tensors:
    """A tensor of each type, special values included, of sizes that leave nothing aligned."""
    rng = np.random.default_rng(seed)
    found: Tensors = {"first": ("U8", rng.integers(0, 256, 3, np.uint8))}
    for dtype, word in WORDS.items():
        top = 2 if dtype == "BOOL" else 2 ** (8 * np.dtype(word).itemsize)
        noise = rng.integers(0, top, 91, word)
        special = np.array(SPECIAL.get(dtype, []), word)
        found[f"t.{dtype}"] = (dtype, rng.permutation(np.concatenate([noise, special])))
    found["scalar"] = ("F32", np.array(7, np.uint32))
    found["empty"] = ("F16", np.empty((0, 4), np.uint16))
    return found


@pytest.mark.parametrize("shard_size", [10**9, 1, 700])
def test_a_checkpoint_comes_back_bit_by_bit(models: Models, shard_size: int) -> None:
    expert_tensors = every_dtype(2) | {"new": ("F32", np.arange(5, dtype=np.uint32))}
    base = models.save("base", every_dtype(1))
    expert = models.save("expert", expert_tensors)
    convert(base, expert, models.root / "o.obd", NONE)
    files = restore(base, models.root / "o.obd", models.root / "back", shard_size=shard_size)
    assert models.load(models.root / "back") == models.content(expert_tensors)
    assert sorted((models.root / "back").glob("*.safetensors")) == sorted(files)


@pytest.mark.parametrize("preset", ["linear", "none"])
def test_restored_files_load_with_the_safetensors_library(
    pair: Pair, models: Models, preset: str
) -> None:
    bundle = models.root / "o.obd"
    convert(pair.base, pair.expert, bundle, ConvertOptions(preset=preset))
    [file] = restore(pair.base, bundle, models.root / "back")
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    expected = obd_reference.decode(bundle, pair.base / "model.safetensors")
    found = load_file(file)
    assert found.keys() == expected.keys()
    for name, (dtype, shape, data) in expected.items():
        wanted = torch.frombuffer(bytearray(data), dtype=torch.bfloat16).reshape(shape)
        assert dtype == "BF16"
        assert torch.equal(found[name], wanted)


def test_a_restored_llama_gives_equal_logits(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50, max_position_embeddings=32,
    )  # fmt: skip
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(transformers.LlamaForCausalLM(config).eval())
        models[-1].save_pretrained(tmp_path / str(seed))
    convert(tmp_path / "1", tmp_path / "2", tmp_path / "o.obd", NONE)
    restore(tmp_path / "1", tmp_path / "o.obd", tmp_path / "back", shard_size=20_000)
    assert (tmp_path / "back" / INDEX).exists()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    tokens = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, models[1](tokens).logits)


def test_shards_have_an_index_and_keep_to_their_size(pair: Pair, tmp_path: Path) -> None:
    files = restore(pair.base, pair.bundle, tmp_path / "back", shard_size=20_000)
    count = len(files)
    assert [f.name for f in files] == [
        f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)
    ]
    index = json.loads((tmp_path / "back" / INDEX).read_text())
    held: dict[str, str] = {}
    for file in files:
        tensors = load_file(file)
        assert sum(t.nbytes for t in tensors.values()) <= 20_000
        held |= dict.fromkeys(tensors, file.name)
    assert index["weight_map"] == held
    total = sum(bits.nbytes for _, bits in pair.expert_tensors.values())
    assert index["metadata"] == {"total_size": total}
    opened = Checkpoint.open(tmp_path / "back")
    assert set(opened) == set(pair.expert_tensors)


def test_a_single_file_has_no_index(pair: Pair, tmp_path: Path) -> None:
    files = restore(pair.base, pair.bundle, tmp_path / "back")
    assert files == [tmp_path / "back" / "model.safetensors"]
    assert not (tmp_path / "back" / INDEX).exists()


def test_every_tensor_is_aligned_to_its_items(models: Models) -> None:
    base = models.save("base", every_dtype(1))
    convert(base, base, models.root / "o.obd", NONE)
    [file] = restore(base, models.root / "o.obd", models.root / "back")
    data = file.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    for name, (dtype, _) in every_dtype(1).items():
        offset = begin + header[name]["data_offsets"][0]
        assert offset % np.dtype(WORDS[dtype]).itemsize == 0


def test_small_files_come_back_where_they_were(pair: Pair, tmp_path: Path) -> None:
    restore(pair.base, pair.bundle, tmp_path / "back")
    for name in ("config.json", "README.md", "tokenizer/vocab.txt"):
        assert (tmp_path / "back" / name).read_bytes() == (pair.expert / name).read_bytes()
    found = {p.relative_to(tmp_path / "back").as_posix() for p in (tmp_path / "back").rglob("*.*")}
    assert found == {"config.json", "README.md", "tokenizer/vocab.txt", "model.safetensors"}


def test_a_restored_expert_converts_to_the_same_tensors(pair: Pair, models: Models) -> None:
    convert(pair.base, pair.expert, models.root / "1.obd", NONE, name="expert")
    restore(pair.base, models.root / "1.obd", models.root / "back")
    convert(pair.base, models.root / "back", models.root / "2.obd", NONE, name="expert")
    assert models.load(models.root / "1.obd") == models.load(models.root / "2.obd")
    first, second = (models.root / f"{i}.obd" / "obd.json" for i in (1, 2))
    assert first.read_bytes() == second.read_bytes()


def test_an_open_bundle_and_base_will_do(pair: Pair, models: Models) -> None:
    base, bundle = Checkpoint.open(pair.base), Bundle.open(pair.bundle)
    restore(base, bundle, models.root / "1", jobs=1)
    restore(pair.base, pair.bundle, models.root / "2", jobs=2)
    assert models.load(models.root / "1") == models.load(models.root / "2")


def test_progress_adds_up_to_the_bytes_restored(pair: Pair, tmp_path: Path) -> None:
    done: list[int] = []
    restore(pair.base, pair.bundle, tmp_path / "back", progress=done.append)
    total = sum(bits.nbytes for _, bits in pair.expert_tensors.values())
    assert sum(done) == restored_bytes(Bundle.open(pair.bundle)) == total


def test_another_base_leaves_nothing(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(BaseMismatchError):
        restore(pair.expert, pair.bundle, tmp_path / "back")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["mlp.obd.safetensors", "expert/config.json"])
def test_an_incomplete_bundle_is_refused_by_what_it_lacks(
    pair: Pair, tmp_path: Path, file: str
) -> None:
    copy = tmp_path / "part.obd"
    shutil.copytree(pair.bundle, copy)
    (copy / file).unlink()
    with pytest.raises(FormatError, match="OBD-DIR-MISSING") as caught:
        restore(pair.base, copy, tmp_path / "back")
    assert str(copy) in str(caught.value)
    assert file in str(caught.value)
    assert not (tmp_path / "back").exists()


def test_damage_is_found_before_there_is_an_output(pair: Pair, models: Models) -> None:
    bundle = models.root / "o.obd"
    convert(pair.base, pair.expert, bundle, NONE)
    file = bundle / "embedding.obd.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(FormatError, match="OBD-TENSOR-DIGEST"):
        restore(pair.base, bundle, models.root / "back")
    assert not (models.root / "back").exists()


def test_an_existing_checkpoint_is_replaced_only_on_request(pair: Pair, models: Models) -> None:
    back = models.save("back", models.random(1, {"old": (2,)}), files={"stale.json": "{}"})
    with pytest.raises(OutputError, match="--overwrite"):
        restore(pair.base, pair.bundle, back)
    restore(pair.base, pair.bundle, back, overwrite=True)
    assert models.load(back).keys() == pair.expert_tensors.keys()
    assert not (back / "stale.json").exists()


@pytest.mark.parametrize("content", ["notes.txt", "model.safetensors/.git", "obd.json"])
def test_other_folders_are_left_alone(pair: Pair, models: Models, content: str) -> None:
    back = models.root / "back"
    (back / ".git" if ".git" in content else back).mkdir(parents=True)
    (back / content.split("/")[0]).write_text("precious")
    with pytest.raises(OutputError, match="left alone"):
        restore(pair.base, pair.bundle, back, overwrite=True)
    assert (back / content.split("/")[0]).read_text() == "precious"
