"""Damaged bundles: nothing but `Violation` may leave the reference decoder, and the library agrees.

Two kinds of damage: bytes flipped, cut or inserted in any file; and fields of the manifest or of a
group file's header changed with every digest made right again, so that the checks behind the
digests are reached.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blake3
import obd_reference as reference
import pytest

from tests.spec.implementations import Refused, library_check

ROOT = Path(__file__).resolve().parents[2]
VALID = ROOT / "spec" / "vectors" / "valid"
CASES = (
    "worked-example",
    "sign-scales-f32",
    "exact-modes",
    "same-and-tied",
    "exact-frames",
    "shards",
)
MUTANTS = 35  # a test: about 900 in all, three seconds of one core


@pytest.fixture
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copytree(VALID / request.param, tmp_path / "case")
    return tmp_path / "case" / "bundle.obd"


def canonical(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def seal(bundle: Path, manifest: Any) -> None:
    """Writes a manifest whose digest is right."""
    if isinstance(manifest, dict):
        manifest.pop("digest", None)
        manifest["digest"] = hashlib.sha256(canonical(manifest)).hexdigest()
    (bundle / "obd.json").write_bytes(canonical(manifest))


def seal_file(bundle: Path, manifest: Any, name: str, data: bytes) -> None:
    """Writes a file and a manifest that vouches for it."""
    (bundle / name).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    manifest["files"][name] = {"size": len(data), "sha256": digest}
    seal(bundle, manifest)


def outcome(bundle: Path) -> str:
    """Decodes; every exception but `Violation` fails the test that called."""
    try:
        reference.decode(bundle, bundle.parent / "base.safetensors")
    except reference.Violation as violation:
        return str(violation.id)
    return "valid"


def common_outcome(bundle: Path) -> str:
    """The same, and the library refuses just what the reference refuses."""
    found = outcome(bundle)
    assert library_accepts(bundle) == (found == "valid") or found == "LIMIT", found
    return found


def library_accepts(bundle: Path) -> bool:
    try:
        library_check(bundle.parent)
    except Refused:
        return False
    return True


def damaged(data: bytes, dice: random.Random) -> bytes:
    """One of: a bit flipped, a byte replaced, a cut, an insertion, a repeated piece."""
    at = dice.randrange(len(data))
    return dice.choice(
        [
            data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :],
            data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :],
            data[:at],
            data[:at] + dice.randbytes(dice.randint(1, 4)) + data[at:],
            data[:at] + data[max(0, at - 5) : at] + data[at:],
        ]
    )


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(pairs):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from places(inner)


def odd_value(old: Any, dice: random.Random) -> Any:
    """A value that is of the wrong type, out of range, or only slightly wrong."""
    anything: list[Any] = [
        None,
        True,
        0,
        -1,
        2**53 - 1,
        2**53,
        1.5,
        "",
        "x",
        "\ud800",
        [],
        {},
        [[]],
    ]
    near: list[Any] = [old, [old], {"kind": old}]
    if isinstance(old, str):
        near += [
            old[:-1],
            old + "\n",
            old.upper(),
            "F64",
            "BF16",
            "rank1",
            "exact",
            "terms",
            "tied",
        ]
    if isinstance(old, int):
        near += [old + 1, old - 1, 2**40, old * 3]
    if isinstance(old, list):
        near += [old[::-1], old * 2, old[:-1], [*old, 1], [0, 2**53 - 1], [2**30], [1] * 9]
    return dice.choice(anything + near * 2)


def mutate(value: Any, dice: random.Random) -> None:
    """Replaces, removes, renames or adds one field somewhere."""
    container, key = dice.choice(list(places(value)))
    action = dice.randrange(6)
    if action == 0:
        del container[key]
    elif action == 1 and isinstance(container, dict):
        container[dice.choice([key + "x", "", "shard", "coded", "../x", "to"])] = container.pop(key)
    elif action == 2 and isinstance(container, dict):
        container[dice.choice(["shard", "coded", "name", "shape", "x"])] = dice.choice(
            [0, 1, "F16", [2]]
        )
    else:
        container[key] = odd_value(container[key], dice)


@pytest.mark.parametrize("bundle", CASES, indirect=True)
def test_damaged_files_are_found(bundle: Path) -> None:
    dice = random.Random(1)
    files = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    for _ in range(MUTANTS):
        path = dice.choice(sorted(files))
        data = damaged(files[path], dice)
        path.write_bytes(data)
        assert (outcome(bundle) == "valid") == (data == files[path]), f"{path}: {len(data)} bytes"
        path.write_bytes(files[path])


@pytest.mark.parametrize("bundle", CASES, indirect=True)
def test_changed_manifest_with_right_digest(bundle: Path) -> None:
    dice = random.Random(2)
    text = (bundle / "obd.json").read_bytes()
    seen = set()
    for _ in range(MUTANTS):
        manifest = json.loads(text)
        for _ in range(dice.randint(1, 2)):
            mutate(manifest, dice)
        seal(bundle, manifest)
        seen.add(common_outcome(bundle))
    assert {"OBD-MAN-FIELD", "OBD-MAN-TYPE", "OBD-MAN-VALUE"} <= seen


@pytest.mark.parametrize("bundle", CASES, indirect=True)
def test_changed_group_file_with_right_digests(bundle: Path) -> None:
    dice = random.Random(3)
    text = (bundle / "obd.json").read_bytes()
    names = sorted(path.name for path in bundle.glob("*.safetensors"))
    files = {name: (bundle / name).read_bytes() for name in names}
    for _ in range(MUTANTS):
        name = dice.choice(names)
        header = json.loads(files[name][8:4096])
        mutate(header, dice)
        head = json.dumps(header).encode().ljust(4088)
        data = len(head).to_bytes(8, "little") + head + files[name][4096:]
        if dice.random() < 0.3:
            data = damaged(files[name], dice)
        seal_file(bundle, json.loads(text), name, data)
        common_outcome(bundle)
        (bundle / name).write_bytes(files[name])


@pytest.mark.parametrize("bundle", ["exact-modes", "exact-frames", "exact-wide"], indirect=True)
def test_changed_blobs_with_right_digests(bundle: Path) -> None:
    dice = random.Random(4)
    text = (bundle / "obd.json").read_bytes()
    name = "other.obd.safetensors"
    data = (bundle / name).read_bytes()
    header = json.loads(data[8:4096])
    seen = set()
    for _ in range(2 * MUTANTS):
        manifest = json.loads(text)
        tensor = dice.choice(sorted(manifest["tensors"]))
        begin, end = (4096 + o for o in header[f"{tensor}/exact"]["data_offsets"])
        blob = bytearray(data[begin:end])
        for _ in range(dice.randint(1, 2)):
            at = min(dice.randrange(len(blob)), dice.randrange(len(blob)))
            blob[at] = dice.choice([dice.randrange(256), blob[at] ^ 1 << dice.randrange(8)])
        coding = manifest["tensors"][tensor]["coding"]
        coding["digest"] = blake3.blake3(blob).hexdigest()
        seal_file(bundle, manifest, name, data[:begin] + blob + data[end:])
        seen.add(common_outcome(bundle))
    assert "OBD-EXACT-CONTENT" in seen
    assert len(seen) >= 5


@pytest.mark.parametrize("bundle", ["worked-example"], indirect=True)
def test_damaged_base_is_found(bundle: Path) -> None:
    dice = random.Random(5)
    path = bundle.parent / "base.safetensors"
    data = path.read_bytes()
    for _ in range(MUTANTS):
        path.write_bytes(damaged(data, dice))
        assert outcome(bundle) in ("valid", "OBD-BASE-TENSOR")
