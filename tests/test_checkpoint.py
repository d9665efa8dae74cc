from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from blake3 import blake3

from onebitfmt.checkpoint import Checkpoint, digest, fingerprint
from onebitfmt.errors import CheckpointError

if TYPE_CHECKING:
    from tests.conftest import Models, Tensors

WIDTHS = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4,
    "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
SHAPES = ((), (3,), (0, 4), (2, 3, 5))


def file_of(entries: Mapping[str, tuple[str, list[int], int]]) -> bytes:
    """A safetensors file of zeros: dtype, shape and bytes of each tensor."""
    header, position = {}, 0
    for name, (dtype, shape, size) in entries.items():
        offsets = [position, position + size]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        position += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(position)


def index_of(weight_map: object) -> bytes:
    return json.dumps({"weight_map": weight_map}).encode()


ONE = file_of({"a": ("U8", [2], 2)})
INDEX = "model.safetensors.index.json"


@pytest.fixture
def tensors(models: Models) -> Tensors:
    return models.random(5, {"b.weight": (4, 6), "a.weight": (3,), "c.10.weight": (2, 2, 2)})


LAYOUTS = {
    "folder": (),
    "shards": (("c.10.weight", "a.weight"), ("b.weight",)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_opens_in_every_layout(models: Models, tensors: Tensors, layout: str) -> None:
    opened = Checkpoint.open(models.save("m", tensors, shards=LAYOUTS[layout]))
    assert set(opened) == set(tensors)
    for name, (dtype, bits) in tensors.items():
        assert opened.tensor(name).dtype == dtype
        assert opened.tensor(name).shape == bits.shape
        assert np.array_equal(opened.bits(name), bits)


def test_a_single_file_opens_under_any_name(models: Models, tensors: Tensors) -> None:
    path = models.write(models.root / "weights.safetensors", tensors)
    opened = Checkpoint.open(path)
    assert set(opened) == set(tensors)
    assert opened.folder == models.root
    assert opened.small_files() == {}


def test_shards_without_an_index_are_all_read(models: Models, tensors: Tensors) -> None:
    names = list(tensors)
    folder = models.save("m", tensors, shards=(names[:1], names[1:]))
    (folder / INDEX).unlink()
    assert set(Checkpoint.open(folder)) == set(tensors)


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_of_every_dtype_at_any_offset(
    models: Models, dtype: str, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(3)
    word = np.dtype(f"<u{WIDTHS[dtype]}")
    high = 2 if dtype == "BOOL" else 256
    size = int(np.prod(shape)) * word.itemsize
    bits = rng.integers(0, high, size, np.uint8).view(word).reshape(shape)
    odd = np.array([1, 2, 3], np.uint8)
    opened = Checkpoint.open(models.save("m", {"first": ("U8", odd), "x": (dtype, bits)}))
    assert (opened.span("x").dtype, opened.span("x").shape) == (dtype, shape)
    assert opened.bits("x").shape == shape
    assert opened.bits("x").tobytes() == bits.tobytes()


def test_it_counts_like_a_mapping(models: Models, tensors: Tensors) -> None:
    opened = Checkpoint.open(models.save("m", tensors))
    assert len(opened) == 3
    assert "a.weight" in opened
    assert "z" not in opened
    assert opened.nbytes == 2 * (24 + 3 + 8)


@pytest.mark.parametrize("repo", ["ns/name", None])
def test_its_name_in_messages(models: Models, tensors: Tensors, repo: str | None) -> None:
    folder = models.save("m", tensors)
    opened = Checkpoint.open(folder, repo=repo, revision="abc")
    assert str(opened) == ("ns/name@abc" if repo else str(folder))


def test_a_released_tensor_reads_the_same(models: Models) -> None:
    tensors = models.random(6, {"x": (300, 100)})
    opened = Checkpoint.open(models.save("m", tensors))
    before = opened.bits("x").copy()
    opened.release("x")
    assert np.array_equal(opened.bits("x"), before)


def test_a_checkpoint_without_tensors_opens(models: Models) -> None:
    opened = Checkpoint.open(models.save("m", {}))
    assert (len(opened), opened.nbytes, list(opened)) == (0, 0, [])


REFUSED: dict[str, tuple[dict[str, bytes], tuple[str, ...]]] = {
    "nothing": ({}, ("no .safetensors weights",)),
    "only GGUF": ({"model.gguf": b"GGUF"}, ("no .safetensors weights",)),
    "pickle": ({"pytorch_model.bin": b"x"}, ("pickle", "save_pretrained")),
    "old pickle": ({"weights.pth": b"x"}, ("pickle", "save_pretrained")),
    "LoRA adapter": (
        {"adapter_config.json": b"{}", "adapter_model.safetensors": ONE},
        ("LoRA", "merge_and_unload"),
    ),
    "bundle": ({"obd.json": b"{}"}, (".obd bundle",)),
    "cut short": ({"model.safetensors": ONE[:-1]}, ("model.safetensors", "not a readable")),
    "cut within the header": ({"model.safetensors": ONE[:20]}, ("model.safetensors",)),
    "empty file": ({"model.safetensors": b""}, ("model.safetensors",)),
    "bytes left over": ({"model.safetensors": ONE + b"\0"}, ("model.safetensors",)),
    "tensor in two files": ({"a.safetensors": ONE, "b.safetensors": ONE}, ("'a' is in both",)),
    "missing shard": (
        {"s1.safetensors": ONE, INDEX: index_of({"a": "s1.safetensors", "b": "s2.safetensors"})},
        (INDEX, "1 of 2 shards", "s2.safetensors", "download complete"),
    ),
    "shard in another folder": (
        {INDEX: index_of({"a": "../model.safetensors"})},
        (INDEX, "outside its folder"),
    ),
    "shard at an absolute path": ({INDEX: index_of({"a": "/m.safetensors"})}, ("outside",)),
    "shard that is the folder above": ({INDEX: index_of({"a": ".."})}, (INDEX,)),
    "index that is no JSON": ({INDEX: b"{"}, (INDEX, "not a safetensors index")),
    "index without a map": ({INDEX: b"{}"}, (INDEX, "not a safetensors index")),
    "index that is a list": ({INDEX: b"[]"}, (INDEX, "not a safetensors index")),
    "index with a list for a map": ({INDEX: index_of(["a"])}, ("not a safetensors index",)),
    "index with numbers for files": ({INDEX: index_of({"a": 1})}, (INDEX,)),
    "index with lists for files": ({INDEX: index_of({"a": []})}, (INDEX,)),
    "complex numbers": ({"model.safetensors": file_of({"a": ("C64", [1], 8)})}, ("C64",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_is_refused_by_its_path_and_with_a_reason(tmp_path: Path, case: str) -> None:
    files, words = REFUSED[case]
    folder = tmp_path / "the-model"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    for word in (str(folder), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.bin", ("pickle", "save_pretrained")),
        ("model.pt", ("pickle", "save_pretrained")),
        ("model.gguf", ("not a .safetensors file",)),
    ],
)
def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / name
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder") as caught:
        Checkpoint.open(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in str(caught.value)


@pytest.mark.parametrize(
    "bits",
    [
        np.arange(10, dtype=np.uint16),
        np.arange(24, dtype=np.uint32).reshape(4, 6)[:, ::2],
        np.arange(6, dtype=np.uint64).reshape(2, 3).T,
        np.array(7, np.uint16),
        np.empty((0, 3), np.uint32),
    ],
    ids=["vector", "strided", "transposed", "scalar", "empty"],
)
def test_a_digest_is_blake3_of_the_row_major_bytes(bits: np.ndarray) -> None:
    assert digest(bits) == blake3(bits.tobytes()).hexdigest()


def test_a_fingerprint_is_sha256_of_the_canonical_rows() -> None:
    tensors = {"é.b": ("BF16", (2, 3), "f" * 64), "a": ("F32", (), "0" * 64)}
    rows = [["a", "F32", [], "0" * 64], ["é.b", "BF16", [2, 3], "f" * 64]]
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()
    assert fingerprint(tensors) == hashlib.sha256(text).hexdigest()


def test_a_fingerprint_does_not_see_the_layout(models: Models, tensors: Tensors) -> None:
    names = list(tensors)
    found = set()
    for folder, shards in (("one", ()), ("two", (names[2:], names[:2]))):
        opened = Checkpoint.open(models.save(folder, tensors, shards=shards))
        spans = {name: opened.span(name) for name in opened}
        found.add(
            fingerprint({n: (s.dtype, s.shape, digest(opened.bits(n))) for n, s in spans.items()})
        )
    rows = [
        [n, d, list(b.shape), blake3(b.tobytes()).hexdigest()]
        for n, (d, b) in sorted(tensors.items())
    ]
    text = json.dumps(rows, separators=(",", ":")).encode()
    assert found == {hashlib.sha256(text).hexdigest()}


def test_a_fingerprint_sees_names_types_shapes_and_values() -> None:
    one = ("BF16", (2, 3), "f" * 64)
    others = [
        {"a": one},
        {"b": one},
        {"a": ("F16", *one[1:])},
        {"a": ("BF16", (3, 2), one[2])},
        {"a": ("BF16", (2, 3), "e" * 64)},
        {"a": one, "b": one},
    ]
    assert len({fingerprint(tensors) for tensors in others}) == len(others)


SMALL = (
    "LICENSE", "NOTICE.txt", "README.md", "config.json", "chat_template.jinja", "merges.txt",
    "tokenizer.model", "qwen.tiktoken", "sub/deeper/vocab.txt", "USE_POLICY.md",
)  # fmt: skip
NOT_SMALL = (
    "modeling.py", INDEX, "pytorch_model.bin.index.json", ".hidden.json", ".cache/config.json",
    "sub/.git/config.json", "training_args.json", "trainer_state.json", "weights.bin", "a.onnx",
    "one/two/three/config.json",
)  # fmt: skip


def test_small_files_are_configuration_and_tokenizer_only(models: Models, tensors: Tensors) -> None:
    files = dict.fromkeys((*SMALL, *NOT_SMALL), "{}")
    files[INDEX] = index_of(dict.fromkeys(tensors, "model.safetensors")).decode()
    folder = models.save("m", tensors, files=files)
    found = Checkpoint.open(folder).small_files()
    assert found == {name: folder / name for name in sorted(SMALL)}


def test_a_huge_json_is_not_a_small_file(models: Models, tensors: Tensors) -> None:
    folder = models.save("m", tensors, files={"config.json": "{}"})
    with (folder / "huge.json").open("wb") as f:
        f.truncate((64 << 20) + 1)
    assert list(Checkpoint.open(folder).small_files()) == ["config.json"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [('{"model_type": "llama"}', {"model_type": "llama"}), ("{", {}), ("[]", {}), (None, {})],
)
def test_config_is_a_hint_only(
    models: Models, tensors: Tensors, text: str | None, expected: dict[str, str]
) -> None:
    files = {} if text is None else {"config.json": text}
    assert Checkpoint.open(models.save("m", tensors, files=files)).config == expected
