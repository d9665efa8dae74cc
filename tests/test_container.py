"""A bundle written by hand, and every way to damage its folder."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from blake3 import blake3

from onebitfmt.bundle import Bundle
from onebitfmt.checkpoint import Checkpoint
from onebitfmt.container import Container, stored_names
from onebitfmt.errors import FormatError, MissingBundleError
from onebitfmt.format.manifest import Exact, Same, SignTerm, TensorEntry, Terms, Tied
from onebitfmt.verbs.verify import verify

MLP, OTHER, CONFIG = "mlp.obd.safetensors", "other.obd.safetensors", "expert/config.json"
MANIFEST: Final = "obd.json"

# One chunk of zero symbols, and the table of its length: the prediction is the tensor.
ZEROS: Final = b"\x00" + struct.pack("<I", 1)
SIGNS: Final = bytes([0b10110001, 0b1, 0b00001111, 0b0])
ROWS: Final = np.array([0.5, 0.25], "<f4").tobytes()
COLUMNS: Final = np.arange(9, dtype="<f2").tobytes()
BASE: Final = bytes(range(36))


def canonical(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def sealed(manifest: dict[str, Any]) -> bytes:
    rest = {k: v for k, v in manifest.items() if k != "digest"}
    return canonical(rest | {"digest": hashlib.sha256(canonical(rest)).hexdigest()})


def group_file(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode().ljust(4096 - 8)
    return struct.pack("<Q", len(text)) + text + data


def part(dtype: str, shape: list[int], begin: int, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}


MLP_HEADER: Final = {
    "__metadata__": {"format": "obd"},
    "w/sign/0": part("U8", [2, 2], 0, 4),
    "/padding": part("U8", [4], 4, 4),
    "w/row/0": part("F32", [2, 1], 8, 8),
    "w/column/0": part("F16", [1, 9], 16, 18),
}
MLP_FILE: Final = group_file(MLP_HEADER, SIGNS + bytes(4) + ROWS + COLUMNS)
OTHER_FILE: Final = group_file(
    {"__metadata__": {"format": "obd"}, "new/exact": part("U8", [5], 0, 5)}, ZEROS
)


def digest(data: bytes) -> str:
    return blake3(data).hexdigest()


def new_manifest() -> dict[str, Any]:
    return {
        "format": "obd",
        "version": "1.0",
        "requires": [],
        "base": {"fingerprint": "0" * 64},
        "expert": {"name": "by hand", "dtype": "BF16"},
        "groups": [{"name": "mlp", "files": [MLP]}, {"name": "other", "files": [OTHER]}],
        "files": {},
        "tensors": {
            "w": {
                "group": "mlp",
                "dtype": "BF16",
                "shape": [2, 9],
                "base": {"digest": digest(BASE)},
                "coding": {
                    "kind": "terms",
                    "digest": digest(SIGNS + ROWS + COLUMNS),
                    "terms": [{"kind": "sign", "scale": "rank1"}],
                },
            },
            "new": {
                "group": "other",
                "dtype": "U16",
                "shape": [3],
                "base": None,
                "coding": {"kind": "exact", "digest": digest(ZEROS), "content": digest(bytes(6))},
            },
            "tied": {
                "group": "other",
                "dtype": "U16",
                "shape": [3],
                "base": None,
                "coding": {"kind": "tied", "to": "new"},
            },
        },
    }


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_bundle(
    folder: Path, files: dict[str, bytes], manifest: dict[str, Any] | None = None
) -> Path:
    """A bundle of these files, with sizes, hashes and digest as they should be."""
    manifest = new_manifest() if manifest is None else manifest
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_bytes(sealed(manifest))
    return folder


FILES: Final = {MLP: MLP_FILE, OTHER: OTHER_FILE, CONFIG: b'{"model_type":"llama"}\n'}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "hand.obd", FILES)


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    path = tmp_path / "base.safetensors"
    text = json.dumps({"w": part("BF16", [2, 9], 0, 36)}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + BASE)
    return Checkpoint.open(path)


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """The bundle where the Hub's cache would have it."""
    snapshot = tmp_path / "cache" / "models--ns--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return write_bundle(snapshot / "hand.obd", FILES)


def ids(folder: Path) -> list[str]:
    return [finding.id for finding in verify(folder, jobs=1).findings]


def refusal(folder: Path) -> FormatError:
    with pytest.raises(FormatError) as caught:
        Container.open(folder)
    return caught.value


# --- a good bundle --------------------------------------------------------------------------------


def test_the_bundle_by_hand_is_valid(folder: Path, base: Checkpoint) -> None:
    report = verify(folder, base, jobs=1)
    assert report.findings == ()
    assert (report.files, report.tensors, report.with_base) == (3, 3, True)


def test_parts_are_the_stored_bytes_in_digest_order(folder: Path) -> None:
    container = Container.open(folder)
    parts = container.parts("w", container.manifest.tensors["w"])
    assert [(p.dtype, p.shape, p.bits.tobytes()) for p in parts] == [
        ("U8", (2, 2), SIGNS),
        ("F32", (2, 1), ROWS),
        ("F16", (1, 9), COLUMNS),
    ]
    container.release("w")
    container.release("tied")
    [again, *_] = container.parts("w", container.manifest.tensors["w"])
    assert again.bits.tobytes() == SIGNS


def test_bytes_of_a_bundle_are_those_of_its_files(folder: Path) -> None:
    expected = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert Container.open(folder).nbytes == expected


@pytest.mark.parametrize(
    ("coding", "names"),
    [
        (Same(), []),
        (Tied(to="x"), []),
        (Exact(digest="", content="", coded="F32"), ["n/exact"]),
        (Terms(digest="", terms=(SignTerm(scale="matrix"),)), ["n/sign/0", "n/matrix/0"]),
        (
            Terms(digest="", terms=tuple(SignTerm(scale=s) for s in ("row", "column", "rank1"))),
            ["n/sign/0", "n/row/0", "n/sign/1", "n/column/1", "n/sign/2", "n/row/2", "n/column/2"],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_stored_names(coding: Any, names: list[str]) -> None:
    entry = TensorEntry(group="g", dtype="F32", shape=(2, 2), base=None, coding=coding)
    assert stored_names("n", entry) == names


def test_empty_folders_are_ignored(folder: Path) -> None:
    (folder / "empty" / "deeper").mkdir(parents=True)
    assert ids(folder) == []


def test_a_bundle_of_nothing_is_valid(tmp_path: Path) -> None:
    manifest = new_manifest() | {"groups": [], "tensors": {}}
    assert ids(write_bundle(tmp_path / "x.obd", {}, manifest)) == []


# --- the folder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["no folder", "a file", "empty", "a folder", "a link"])
def test_without_a_manifest_there_is_no_bundle(kind: str, folder: Path) -> None:
    manifest = folder / MANIFEST
    if kind == "a link":
        manifest.rename(folder.parent / "elsewhere")
        manifest.symlink_to(folder.parent / "elsewhere")
    elif kind != "no folder":
        manifest.unlink()
    if kind == "a folder":
        manifest.mkdir()
    place = {"no folder": folder / "x", "a file": folder / CONFIG}.get(kind, folder)
    assert refusal(place).id == "OBD-DIR-MANIFEST"
    if place == folder:
        assert ids(place) == ["OBD-DIR-MANIFEST"]
    else:
        with pytest.raises(MissingBundleError, match="no such bundle folder"):
            verify(place)


def test_a_manifest_over_the_limit_is_not_read(folder: Path) -> None:
    with (folder / MANIFEST).open("r+b") as f:
        f.truncate((64 << 20) + 1)
    assert refusal(folder).id == "OBD-JSON-LIMIT"


@pytest.mark.parametrize(
    "name", ["README.md", ".hidden", "expert/more.json", "expert/a/b/c", "OBD.json", "sub/obd.json"]
)
def test_an_unlisted_file_is_refused(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    error = refusal(folder)
    assert (error.id, error.where) == ("OBD-DIR-UNLISTED", str(folder / name))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_is_refused(name: str, change: int, folder: Path) -> None:
    with (folder / name).open("r+b") as f:
        f.truncate(len(FILES[name]) + change)
    error = refusal(folder)
    assert (error.id, error.where) == ("OBD-DIR-SIZE", str(folder / name))


def move_and_link(path: Path, target: Path) -> None:
    path.rename(target)
    path.symlink_to(target)


@pytest.mark.parametrize("name", [MLP, CONFIG, "expert"])
def test_a_link_is_refused(name: str, folder: Path) -> None:
    move_and_link(folder / name, folder.parent / "moved")
    error = refusal(folder)
    assert (error.id, error.where) == ("OBD-DIR-LINK", str(folder / name))


@pytest.mark.parametrize("name", [MANIFEST, MLP, CONFIG])
@pytest.mark.parametrize("blobs", ["models--ns--name/blobs", "blobs/ab"])
def test_links_of_the_hubs_cache_are_followed(name: str, blobs: str, cached: Path) -> None:
    (cached.parents[3] / blobs).mkdir(parents=True)
    move_and_link(cached / name, cached.parents[3] / blobs / "moved")
    assert ids(cached) == []
    assert Bundle.open(cached).manifest == Container.open(cached).manifest


def test_the_cache_may_be_reached_by_a_link(cached: Path, tmp_path: Path) -> None:
    move_and_link(cached / MLP, cached.parents[2] / "blob")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "cache")
    (tmp_path / "math.obd").symlink_to(cached)
    assert ids(tmp_path / "elsewhere" / cached.relative_to(tmp_path / "cache")) == []
    assert ids(tmp_path / "math.obd") == []


@pytest.mark.parametrize("name", [MANIFEST, MLP, CONFIG])
def test_a_link_out_of_the_cache_is_refused(name: str, cached: Path, tmp_path: Path) -> None:
    move_and_link(cached / name, tmp_path / "moved")
    assert refusal(cached).id in ("OBD-DIR-LINK", "OBD-DIR-MANIFEST")


def test_the_target_of_a_link_is_checked(cached: Path) -> None:
    blob = cached.parents[2] / "blob"
    blob.write_bytes(FILES[MLP][:-1] + b"\xff")
    (cached / MLP).unlink()
    (cached / MLP).symlink_to(blob)
    assert set(ids(cached)) == {"OBD-DIR-SHA256", "OBD-TENSOR-DIGEST"}


def test_a_link_to_nowhere_is_a_fault_of_the_bundle(cached: Path) -> None:
    (cached / CONFIG).unlink()
    (cached / CONFIG).symlink_to(cached.parents[2] / "nowhere")
    assert refusal(cached).id in ("OBD-DIR-LINK", "OBD-DIR-MISSING")


def test_a_link_to_a_folder_hides_nothing(cached: Path) -> None:
    move_and_link(cached / "expert", cached.parents[2] / "moved")
    (cached.parents[2] / "moved" / "more.json").write_bytes(b"{}")
    assert ids(cached)


def test_a_folder_in_the_place_of_a_file_is_no_file(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()
    assert ids(folder) == ["OBD-DIR-MISSING"]


# --- what is not there ----------------------------------------------------------------------------


def test_what_is_left_of_a_partial_bundle_is_served(folder: Path, base: Checkpoint) -> None:
    (folder / MLP).unlink()
    bundle = Bundle.open(folder)
    assert bundle.container.missing_files == [MLP]
    assert bundle.tensor("new", base).bits.tolist() == [0, 0, 0]
    assert bundle.tensor("tied", base).bits.tolist() == [0, 0, 0]
    with pytest.raises(FormatError, match=r"mlp.*\[OBD-DIR-MISSING\]$") as caught:
        bundle.tensor("w", base)
    assert (caught.value.id, caught.value.where) == ("OBD-DIR-MISSING", str(folder / MLP))


@pytest.mark.parametrize("name", FILES)
def test_verify_finds_what_is_missing(name: str, folder: Path) -> None:
    (folder / name).unlink()
    assert ids(folder) == ["OBD-DIR-MISSING"]


def test_a_listed_name_that_no_file_system_has_room_for_is_missing(tmp_path: Path) -> None:
    manifest = new_manifest()
    manifest["files"]["expert/" + "a" * 300] = {"size": 0, "sha256": "0" * 64}
    folder = write_bundle(tmp_path / "x.obd", FILES, manifest)
    assert ids(folder) == ["OBD-DIR-MISSING"]


# --- group files whose hashes are right -----------------------------------------------------------


def resealed(folder: Path, header: dict[str, Any], data: bytes) -> Path:
    return write_bundle(folder, FILES | {OTHER: group_file(header, data)})


@pytest.mark.parametrize(
    ("change", "data", "id"),
    [
        ({"__metadata__": {"format": "pt"}}, ZEROS, "OBD-ST-METADATA"),
        ({"new/exact": part("U8", [4], 0, 4)}, ZEROS, "OBD-ST-OFFSETS"),
        ({"odd": part("U8", [0], 5, 5)}, ZEROS, "OBD-ST-OFFSETS"),
        ({"odd": part("U8", [1], 5, 1)}, ZEROS + b"\0", "OBD-ST-TENSORS"),
        ({"/padding": part("U8", [1], 5, 1)}, ZEROS + b"\1", "OBD-ST-PADDING"),
        ({"new/exact": part("U8", [5], 0, 5)}, ZEROS[:-1] + b"\1", "OBD-TENSOR-DIGEST"),
        ({"new/exact": part("I8", [5], 0, 5)}, ZEROS, "OBD-EXACT-TABLE"),
        ({"new/exact": part("U8", [5, 1], 0, 5)}, ZEROS, "OBD-EXACT-TABLE"),
    ],
)
def test_faults_in_a_group_file(
    change: dict[str, Any], data: bytes, id: str, tmp_path: Path
) -> None:
    header = {"__metadata__": {"format": "obd"}, "new/exact": part("U8", [5], 0, 5)} | change
    assert id in ids(resealed(tmp_path / "x.obd", header, data))


@pytest.mark.parametrize(
    "shape", [[0, 2**53 - 1], [0, 2**53 - 1, 2**53 - 1], [2**53 - 1, 2**53 - 1, 0]], ids=str
)
def test_absurd_shapes_of_empty_tensors_never_reach_an_array(
    shape: list[int], tmp_path: Path
) -> None:
    manifest = new_manifest()
    empty = {"kind": "exact", "digest": digest(b""), "content": digest(b"")}
    manifest["tensors"]["new"] |= {"shape": [0], "coding": empty}
    manifest["tensors"]["tied"] |= {"shape": [0]}
    header = {"__metadata__": {"format": "obd"}, "new/exact": part("U8", shape, 0, 0)}
    files = FILES | {OTHER: group_file(header, b"")}
    [found] = set(ids(write_bundle(tmp_path / "x.obd", files, manifest)))
    assert found in ("OBD-ST-HEADER", "OBD-ST-OFFSETS", "OBD-EXACT-TABLE")


ODD: Final[list[Any]] = [
    None, True, 0, 1, -1, 4, 5, 8, 2**31, 2**53 - 1, "", "U8", "F16", "F64", "BOOL", [], {}, [0],
    [0, 0], [0, 5], [5, 5], [4, 8], [2, 2], [0, 2**53 - 1, 2**53 - 1], {"format": "obd"},
]  # fmt: skip


def test_of_changed_headers_of_group_files_only_findings_come(tmp_path: Path) -> None:
    random_ = random.Random(0)
    folder = tmp_path / "x.obd"
    found = 0
    for _ in range(250):
        header: dict[str, Any] = json.loads(json.dumps(MLP_HEADER))
        name = random_.choice(list(header))
        field = random_.choice(["dtype", "shape", "data_offsets", "format", "x", None])
        if field is None:
            header[random_.choice([name, "x", "/padding"])] = random_.choice(ODD)
        elif random_.random() < 0.2:
            header[name].pop(field, None)
        else:
            header[name][field] = random_.choice(ODD)
        changed = header != MLP_HEADER
        write_bundle(folder, FILES | {MLP: group_file(header, MLP_FILE[4096:])})
        findings = ids(folder)
        assert bool(findings) == changed, header
        found += bool(findings)
    assert found > 150


# --- bits and bytes ---------------------------------------------------------------------


def is_dense(data: bytes, i: int) -> bool:
    """False inside the spaces behind a header, all of which are alike, but for a few of them."""
    return data[max(0, i - 8) : i + 8].strip(b" ") != b"" or i % 61 == 0


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_flipped_bits_are_found(name: str, folder: Path) -> None:
    path = folder / name
    good = path.read_bytes()
    # The stride meets every bit position of bytes, and leaves out none of a short file.
    stride = 1 if len(good) < 100 else 9
    for i, bit in (divmod(k, 8) for k in range(0, 8 * len(good), stride)):
        if is_dense(good, i):
            path.write_bytes(good[:i] + bytes([good[i] ^ 1 << bit]) + good[i + 1 :])
            assert ids(folder), (i, bit)
    path.write_bytes(good)
    assert ids(folder) == []


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_truncations_are_found(name: str, folder: Path) -> None:
    path = folder / name
    good = path.read_bytes()
    for length in range(len(good)):
        if is_dense(good, length) and (length % 2 == 0 or len(good) - length < 100):
            path.write_bytes(good[:length])
            assert ids(folder), length


@pytest.mark.parametrize("name", FILES)
def test_damage_that_keeps_the_size_is_found_by_its_hash(name: str, folder: Path) -> None:
    data = bytearray(FILES[name])
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    assert "OBD-DIR-SHA256" in ids(folder)
