from __future__ import annotations

import copy
import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebitfmt.errors import FormatError, UnsupportedError
from onebitfmt.format.manifest import (
    Base,
    BaseTensor,
    Coding,
    Exact,
    Expert,
    FileEntry,
    LayerGroup,
    Manifest,
    Same,
    SignTerm,
    TensorEntry,
    Terms,
    Tied,
    group_file_names,
)
from onebitfmt.format.manifest_json import dump, load

SPEC: Final = Path(__file__).resolve().parents[2] / "spec" / "obd-v1.md"
REMOVED: Final = "<removed>"
LARGEST: Final = 2**53 - 1
DTYPES: Final = (
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U64", "U32",
    "U16", "U8", "BOOL",
)  # fmt: skip


def digit(i: int) -> str:
    """A digest-like string that differs from the others."""
    return f"{i:064x}"


def canonical(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def sealed(value: dict[str, Any]) -> bytes:
    """Canonical bytes with a digest that is right, whatever the rest is."""
    rest = {k: v for k, v in value.items() if k != "digest"}
    return canonical(rest | {"digest": hashlib.sha256(canonical(rest)).hexdigest()})


def edited(value: dict[str, Any], *path: str | int, to: Any) -> dict[str, Any]:
    """A copy with the value at `path` replaced, added or taken out."""
    new = copy.deepcopy(value)
    parent: Any = new
    for step in path[:-1]:
        parent = parent[step]
    if to is REMOVED:
        del parent[path[-1]]
    elif isinstance(parent, list) and path[-1] == len(parent):
        parent.append(to)
    else:
        parent[path[-1]] = to
    return new


def refusal(data: bytes) -> FormatError:
    with pytest.raises(FormatError) as caught:
        load(data)
    return caught.value


# --- a manifest with one of everything, as JSON and as records ------------------------------------

SHARDS: Final = ("mlp-00001-of-00002.obd.safetensors", "mlp-00002-of-00002.obd.safetensors")
ATTENTION: Final = "attention.obd.safetensors"

RICH: Final[dict[str, Any]] = {
    "format": "obd",
    "version": "1.0",
    "requires": [],
    "base": {"fingerprint": digit(1), "repo": "ns/base", "revision": "main"},
    "expert": {
        "name": "exp\u00e9rt",
        "dtype": "BF16",
        "repo": "ns/expert",
        "revision": "v1",
        "license": "mit",
    },
    "groups": [
        {"name": "attention", "files": [ATTENTION]},
        {"name": "mlp", "files": list(SHARDS)},
        {"name": "norm", "files": []},
    ],
    "files": {
        ATTENTION: {"size": 5000, "sha256": digit(2)},
        SHARDS[0]: {"size": 4096, "sha256": digit(3)},
        SHARDS[1]: {"size": LARGEST, "sha256": digit(4)},
        "expert/config.json": {"size": 0, "sha256": digit(5)},
    },
    "tensors": {
        "exact": {
            "group": "mlp",
            "dtype": "F32",
            "shape": [5, 3],
            "base": {"digest": digit(6), "name": "old", "dtype": "BF16", "shape": [4, 3]},
            "coding": {
                "kind": "exact",
                "digest": digit(7),
                "content": digit(8),
                "coded": "F16",
                "shard": 1,
            },
        },
        "new": {
            "group": "attention",
            "dtype": "I64",
            "shape": [],
            "base": None,
            "coding": {"kind": "exact", "digest": digit(9), "content": digit(10)},
        },
        "same": {
            "group": "norm",
            "dtype": "BOOL",
            "shape": [0, 7],
            "base": {"digest": digit(11)},
            "coding": {"kind": "same"},
        },
        "terms": {
            "group": "attention",
            "dtype": "BF16",
            "shape": [2, 3, 9],
            "base": {"digest": digit(12), "dtype": "F32"},
            "coding": {
                "kind": "terms",
                "digest": digit(13),
                "terms": [
                    {"kind": "sign", "scale": scale}
                    for scale in ("matrix", "row", "column", "rank1")
                ],
            },
        },
        "tied": {
            "group": "norm",
            "dtype": "BF16",
            "shape": [2, 3, 9],
            "base": None,
            "coding": {"kind": "tied", "to": "terms"},
        },
    },
    "metadata": {"tool": "by hand", "": "\x00\u20ac"},
}

RECORDS: Final = Manifest(
    base=Base(fingerprint=digit(1), repo="ns/base", revision="main"),
    expert=Expert(name="exp\u00e9rt", dtype="BF16", repo="ns/expert", revision="v1", license="mit"),
    groups=(
        LayerGroup(name="attention", files=(ATTENTION,)),
        LayerGroup(name="mlp", files=SHARDS),
        LayerGroup(name="norm"),
    ),
    files={
        ATTENTION: FileEntry(size=5000, sha256=digit(2)),
        SHARDS[0]: FileEntry(size=4096, sha256=digit(3)),
        SHARDS[1]: FileEntry(size=LARGEST, sha256=digit(4)),
        "expert/config.json": FileEntry(size=0, sha256=digit(5)),
    },
    tensors={
        "exact": TensorEntry(
            group="mlp",
            dtype="F32",
            shape=(5, 3),
            base=BaseTensor(name="old", dtype="BF16", shape=(4, 3), digest=digit(6)),
            coding=Exact(digest=digit(7), content=digit(8), coded="F16", shard=1),
        ),
        "new": TensorEntry(
            group="attention",
            dtype="I64",
            shape=(),
            base=None,
            coding=Exact(digest=digit(9), content=digit(10), coded="I64"),
        ),
        "same": TensorEntry(
            group="norm",
            dtype="BOOL",
            shape=(0, 7),
            base=BaseTensor(name="same", dtype="BOOL", shape=(0, 7), digest=digit(11)),
            coding=Same(),
        ),
        "terms": TensorEntry(
            group="attention",
            dtype="BF16",
            shape=(2, 3, 9),
            base=BaseTensor(name="terms", dtype="F32", shape=(2, 3, 9), digest=digit(12)),
            coding=Terms(
                digest=digit(13),
                terms=tuple(SignTerm(scale=s) for s in ("matrix", "row", "column", "rank1")),
            ),
        ),
        "tied": TensorEntry(
            group="norm", dtype="BF16", shape=(2, 3, 9), base=None, coding=Tied(to="terms")
        ),
    },
    metadata={"tool": "by hand", "": "\x00\u20ac"},
)


# --- writing and reading --------------------------------------------------------------------------


def test_records_become_the_canonical_bytes_of_the_json() -> None:
    assert dump(RECORDS) == sealed(RICH)


def test_the_json_becomes_the_records() -> None:
    assert load(sealed(RICH)) == RECORDS


def test_bytes_and_digest_of_a_small_manifest() -> None:
    manifest = Manifest(
        base=Base(fingerprint="0" * 64),
        expert=Expert(name="e", dtype="BF16"),
        groups=(LayerGroup(name="mlp"),),
        files={"expert/a": FileEntry(size=1, sha256="f" * 64)},
        tensors={},
    )
    head = b'{"base":{"fingerprint":"' + b"0" * 64 + b'"}'
    tail = (
        b',"expert":{"dtype":"BF16","name":"e"},"files":{"expert/a":{"sha256":"' + b"f" * 64
        + b'","size":1}},"format":"obd","groups":[{"files":[],"name":"mlp"}],"requires":[],'
        b'"tensors":{},"version":"1.0"}'
    )  # fmt: skip
    digest = hashlib.sha256(head + tail).hexdigest().encode()
    assert dump(manifest) == head + b',"digest":"' + digest + b'"' + tail


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (0, ()),
        (1, ("mlp.obd.safetensors",)),
        (2, SHARDS),
        (3, tuple(f"mlp-0000{i}-of-00003.obd.safetensors" for i in (1, 2, 3))),
    ],
)
def test_names_of_group_files(count: int, names: tuple[str, ...]) -> None:
    assert group_file_names("mlp", count) == names


def test_redundant_fields_are_read_and_not_written() -> None:
    value = edited(RICH, "tensors", "same", "base", "name", to="same")
    value = edited(value, "tensors", "same", "base", "dtype", to="BOOL")
    value = edited(value, "tensors", "same", "base", "shape", to=[0, 7])
    value = edited(value, "tensors", "new", "coding", "shard", to=0)
    assert load(sealed(value)) == RECORDS


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (Base(fingerprint="0123456789abcdef" * 4), "base (fingerprint 0123456789ab)"),
        (Base(fingerprint="1" * 64, repo="ns/m"), "ns/m (fingerprint 111111111111)"),
        (Base(fingerprint="1" * 64, repo="n", revision="v1"), "n@v1 (fingerprint 111111111111)"),
    ],
)
def test_a_base_in_words(base: Base, expected: str) -> None:
    assert str(base) == expected


# --- any well-formed manifest ---------------------------------------------------------------------

hexes = st.integers(0, 2**256 - 1).map(digit)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = words.filter(lambda text: text and not re.search(r"[\x00-\x1f\x7f]", text))
floats = st.sampled_from(["F32", "F16", "BF16"])
shapes = st.lists(st.integers(0, 5), max_size=8).map(tuple)
matrices = st.lists(st.integers(1, 5), min_size=2, max_size=5).map(tuple)


@st.composite
def stored_entries(
    draw: st.DrawFn, name: str, group: str, shard: st.SearchStrategy[int]
) -> TensorEntry:
    coding: Coding
    if draw(st.booleans()):
        shape = draw(matrices)
        terms = draw(st.lists(st.sampled_from(["matrix", "row", "column", "rank1"]), min_size=1))
        coding = Terms(
            digest=draw(hexes),
            terms=tuple(SignTerm(scale=s) for s in terms[:16]),
            shard=draw(shard),
        )
        origin = BaseTensor(name=draw(names), dtype=draw(floats), shape=shape, digest=draw(hexes))
        return TensorEntry(group=group, dtype=draw(floats), shape=shape, base=origin, coding=coding)
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(shapes)
    coded = {"F32": ["F32", "BF16", "F16"], "F16": ["F16", "BF16"]}.get(dtype, [dtype])
    coding = Exact(
        digest=draw(hexes),
        content=draw(hexes),
        coded=draw(st.sampled_from(coded)),
        shard=draw(shard),
    )
    base = None
    if draw(st.booleans()):
        of_base = draw(floats) if dtype in ("F32", "F16", "BF16") else dtype
        size = len(shape)
        other = tuple(draw(st.lists(st.integers(0, 5), min_size=size, max_size=size)))
        base = BaseTensor(name=name, dtype=of_base, shape=other, digest=draw(hexes))
    return TensorEntry(group=group, dtype=dtype, shape=shape, base=base, coding=coding)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    group_names = draw(
        st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True), unique=True, max_size=3)
    )
    counts = [draw(st.integers(0, 3)) for _ in group_names]
    groups = tuple(
        LayerGroup(name=g, files=group_file_names(g, n))
        for g, n in zip(group_names, counts, strict=True)
    )
    paths = [f for g in groups for f in g.files]
    paths += draw(st.sampled_from([[], ["expert/x"], ["expert/x", "expert/y/z"]]))
    tensors: dict[str, TensorEntry] = {}
    for group in groups:
        for name in draw(st.lists(names, max_size=2)):
            if group.files:
                shard = st.integers(0, len(group.files) - 1)
                tensors[name] = draw(stored_entries(name, group.name, shard))
            else:
                shape = draw(shapes)
                base = BaseTensor(name=draw(names), dtype="F8_E4M3", shape=shape, digest=digit(0))
                tensors[name] = TensorEntry(
                    group=group.name, dtype="F8_E4M3", shape=shape, base=base, coding=Same()
                )
    for name, entry in list(tensors.items()):
        tensors.setdefault(
            name + "'",
            TensorEntry(
                group=entry.group,
                dtype=entry.dtype,
                shape=entry.shape,
                base=None,
                coding=Tied(to=name),
            ),
        )
    repo = draw(st.none() | words)
    return Manifest(
        base=Base(fingerprint=draw(hexes), repo=repo, revision=repo and draw(st.none() | words)),
        expert=Expert(
            name=draw(names), dtype=draw(st.sampled_from(DTYPES)), license=draw(st.none() | words)
        ),
        groups=groups,
        files={
            path: FileEntry(size=draw(st.integers(0, LARGEST)), sha256=draw(hexes))
            for path in paths
        },
        tensors=tensors,
        metadata=draw(st.dictionaries(words, words, max_size=2)),
    )


@settings(max_examples=120, deadline=None, derandomize=True)
@given(manifests())
def test_what_was_dumped_loads_as_it_was(manifest: Manifest) -> None:
    data = dump(manifest)
    assert load(data) == manifest
    assert data == sealed(json.loads(data))


# --- the bytes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "id"),
    [
        (b"", "OBD-JSON-SYNTAX"),
        (b"\xff", "OBD-JSON-UTF8"),
        (b"[]", "OBD-MAN-TYPE"),
        (b"null", "OBD-MAN-TYPE"),
        (b"{}", "OBD-MAN-FIELD"),
        (sealed(RICH) + b"\n", "OBD-JSON-CANONICAL"),
        (b" " + sealed(RICH), "OBD-JSON-CANONICAL"),
        (sealed(RICH).replace(b",", b", ", 1), "OBD-JSON-CANONICAL"),
        (sealed(RICH).replace("\u00e9".encode(), b"\\u00e9"), "OBD-JSON-CANONICAL"),
        (sealed(RICH).replace(b"ns/base", b"ns\\/base"), "OBD-JSON-CANONICAL"),
        (sealed(RICH).replace(b"ns/base", b"ns/Base"), "OBD-MAN-DIGEST"),
        (json.dumps(json.loads(sealed(RICH))).encode(), "OBD-JSON-CANONICAL"),
        (b" " * (64 * 2**20) + b"{}", "OBD-JSON-LIMIT"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)
def test_bytes_that_are_no_manifest(data: bytes, id: str) -> None:
    assert refusal(data).id == id


def test_the_place_of_a_fault_begins_with_the_name_of_the_file() -> None:
    value = edited(RICH, "tensors", "terms", "coding", "terms", 2, "scale", to="x")
    with pytest.raises(FormatError) as caught:
        load(sealed(value), "folder/obd.json")
    where = "folder/obd.json.tensors['terms'].coding.terms[2].scale"
    assert str(caught.value) == f"{where}: scale 'x' is unknown [OBD-MAN-VALUE]"


# --- versions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.7", "1.10", "1.123456789012345678901"])
def test_any_minor_version_is_accepted_and_kept(version: str) -> None:
    data = sealed(edited(RICH, "version", to=version))
    assert load(data).version == version
    assert dump(load(data)) == data


@pytest.mark.parametrize("version", ["2.0", "0.9", "10.0", "11.1", "12345678901.0"])
def test_another_major_version_is_newer_and_not_broken(version: str) -> None:
    error = refusal(sealed(edited(RICH, "version", to=version)))
    assert type(error) is UnsupportedError
    assert error.id == "OBD-MAN-VERSION"
    assert version in str(error)


@pytest.mark.parametrize(
    "version",
    ["", "1", "1.", ".0", "1.0.0", "01.0", "1.00", "1.-1", "+1.0", " 1.0", "1.0\n", "1,0", "v1.0",
     "1.x", "\u0661.0", "1.\u0660"],
)  # fmt: skip
def test_a_version_is_two_plain_numbers(version: str) -> None:
    error = refusal(sealed(edited(RICH, "version", to=version)))
    assert (type(error), error.id) == (FormatError, "OBD-MAN-VALUE")


@pytest.mark.parametrize("names", [["lowrank"], ["a", "lowrank"], [""]])
def test_what_a_bundle_requires_is_not_there(names: list[str]) -> None:
    error = refusal(sealed(edited(RICH, "requires", to=names)))
    assert type(error) is UnsupportedError
    assert error.id == "OBD-MAN-REQUIRES"


@pytest.mark.parametrize("names", [["b", "a"], ["a", "a"], ["a", "B"]])
def test_requirements_are_sorted_and_unique(names: list[str]) -> None:
    error = refusal(sealed(edited(RICH, "requires", to=names)))
    assert (type(error), error.id) == (FormatError, "OBD-MAN-VALUE")


@pytest.mark.parametrize(("field", "to"), [("version", "2.0"), ("requires", ["lowrank"])])
def test_newer_is_said_before_any_fault_that_it_may_explain(field: str, to: Any) -> None:
    value = edited(edited(RICH, field, to=to), "novelty", to=[1])
    value = edited(value, "tensors", to="elsewhere")
    assert type(refusal(b" " + canonical(value))) is UnsupportedError


# --- one fault each -------------------------------------------------------------------------------

Fault = tuple[str, tuple[str | int, ...], Any]
TERMS: Final = ("tensors", "terms")
EXACT: Final = ("tensors", "exact")
SIGN: Final = {"kind": "sign", "scale": "row"}
HEX_FIELDS: Final[list[tuple[str | int, ...]]] = [
    ("base", "fingerprint"),
    ("files", ATTENTION, "sha256"),
    (*EXACT, "base", "digest"),
    (*EXACT, "coding", "digest"),
    (*EXACT, "coding", "content"),
    (*TERMS, "coding", "digest"),
]

FAULTS: Final[list[Fault]] = [
    *[("OBD-MAN-FIELD", path, REMOVED) for path in [
        ("format",), ("version",), ("requires",), ("base",), ("expert",), ("groups",), ("files",),
        ("tensors",), ("base", "fingerprint"), ("base", "repo"), ("expert", "name"),
        ("expert", "dtype"), ("expert", "repo"), ("groups", 0, "name"), ("groups", 0, "files"),
        ("files", ATTENTION, "size"), ("files", ATTENTION, "sha256"), (*EXACT, "group"),
        (*EXACT, "dtype"), (*EXACT, "shape"), (*EXACT, "base"), (*EXACT, "coding"),
        (*EXACT, "base", "digest"), (*EXACT, "coding", "kind"), (*EXACT, "coding", "digest"),
        (*EXACT, "coding", "content"), (*TERMS, "coding", "digest"), (*TERMS, "coding", "terms"),
        (*TERMS, "coding", "terms", 0, "scale"), (*TERMS, "coding", "terms", 0, "kind"),
        ("tensors", "tied", "coding", "to"),
    ]],
    *[("OBD-MAN-FIELD", (*path, "extra"), 0) for path in [
        (), ("base",), ("expert",), ("groups", 0), ("files", ATTENTION), EXACT, (*EXACT, "base"),
        (*EXACT, "coding"), (*TERMS, "coding"), (*TERMS, "coding", "terms", 0),
        ("tensors", "tied", "coding"), ("tensors", "same", "coding"),
    ]],
    ("OBD-MAN-FIELD", ("tensors", "same", "coding", "shard"), 0),
    ("OBD-MAN-FIELD", (*TERMS, "coding", "coded"), "BF16"),
    *[("OBD-MAN-TYPE", path, None) for path in [
        ("format",), ("version",), ("requires",), ("base",), ("base", "repo"), ("expert",),
        ("expert", "license"), ("groups",), ("groups", 0), ("groups", 0, "files"), ("files",),
        ("files", ATTENTION), ("tensors",), EXACT, (*EXACT, "group"), (*EXACT, "shape"),
        (*EXACT, "coding"), (*EXACT, "coding", "coded"), (*EXACT, "coding", "shard"),
        (*TERMS, "coding", "terms", 0), ("metadata",), ("metadata", "tool"),
    ]],
    *[("OBD-MAN-TYPE", path, True) for path in [
        ("files", ATTENTION, "size"), (*EXACT, "shape", 0), (*EXACT, "base", "shape", 0),
        (*EXACT, "coding", "shard"), ("expert", "name"), ("requires",),
    ]],
    *[("OBD-MAN-TYPE", path, "1") for path in [
        ("files", ATTENTION, "size"), (*EXACT, "shape"), (*EXACT, "base"), (*EXACT, "coding"),
        (*TERMS, "coding", "terms"), ("groups", 0, "files"), ("requires",),
    ]],
    *[("OBD-MAN-TYPE", path, [0]) for path in [
        ("requires",), ("groups", 0, "files"), (*EXACT, "coding", "kind"), ("expert", "dtype"),
    ]],
    ("OBD-MAN-TYPE", ("groups",), {}),
    ("OBD-MAN-TYPE", ("files",), []),
    *[("OBD-MAN-VALUE", path, bad) for path in HEX_FIELDS
      for bad in ("", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n", "\u0660" * 64)],
    *[("OBD-MAN-VALUE", path, bad) for bad in ("F12", "", "bf16", "C64", "F8_E8M0", "BF16 ")
      for path in [("expert", "dtype"), (*EXACT, "dtype"), (*EXACT, "base", "dtype"),
                   (*EXACT, "coding", "coded")]],
    *[("OBD-MAN-VALUE", ("groups", 2, "name"), bad)
      for bad in ("", "MLP", "1mlp", "_mlp", "m-p", "m" * 33, "mlp\n", "\u00e9", "mlp/x", "mlp")],
    ("OBD-MAN-VALUE", ("expert", "name"), ""),
    ("OBD-MAN-VALUE", ("files", ATTENTION, "size"), -1),
    *[("OBD-MAN-VALUE", (*EXACT, *at, "shape"), bad) for at in ((), ("base",))
      for bad in ([-1, 3], [1] * 9, [LARGEST, 1], [2**27, 2**27], [0, LARGEST], [0] * 9)],
    ("OBD-MAN-VALUE", (*EXACT, "coding", "kind"), "lowrank"),
    ("OBD-MAN-VALUE", (*EXACT, "coding", "kind"), ""),
    ("OBD-MAN-VALUE", (*EXACT, "coding", "shard"), -1),
    ("OBD-MAN-VALUE", (*TERMS, "coding", "terms"), []),
    ("OBD-MAN-VALUE", (*TERMS, "coding", "terms"), [SIGN] * 17),
    ("OBD-MAN-VALUE", (*TERMS, "coding", "terms", 0, "kind"), "ternary"),
    ("OBD-MAN-VALUE", (*TERMS, "coding", "terms", 0, "scale"), "rank2"),
    *[("OBD-MAN-VALUE", ("tensors", bad), RICH["tensors"]["new"])
      for bad in ("", "a\nb", "\x00", "\x1f", "\x7f", "n" * 1025, "\u20ac" * 342)],
    *[("OBD-MAN-VALUE", (*EXACT, "base", "name"), bad) for bad in ("", "a\tb", "n" * 1025)],
    ("OBD-MAN-FORMAT", ("format",), "OBD"),
    ("OBD-MAN-FORMAT", ("format",), ""),
    ("OBD-MAN-VERSION", ("version",), "2.0"),
    ("OBD-MAN-REQUIRES", ("requires",), ["lowrank"]),
    *[("OBD-MAN-PATH", ("files", bad), RICH["files"][ATTENTION]) for bad in (
        "", "/", "/etc/passwd", "expert/", "expert//a", "expert/.", "expert/./a", "expert/..",
        "../a", "expert/../a", "..", ".", "expert\\a", "expert/a\\..\\b", "C:/a", "expert/a:b",
        "expert/a\x7f", "expert/a\x00", "expert/a\nb", "expert/" + "a" * 1018,
        "expert/" + "\u00e9" * 509, "expert/2/3/4/5/6/7/8/9")],
    *[("OBD-MAN-FILE", ("files", bad), RICH["files"][ATTENTION]) for bad in (
        "README.md", "obd.json", "expert", "Expert/a", "other.obd.safetensors",
        "mlp.obd.safetensors", "norm.obd.safetensors", "attention/a", "sub/expert/a")],
    *[("OBD-MAN-FILE", ("groups", 0, "files"), bad) for bad in (
        ["attention.safetensors"], ["Attention.obd.safetensors"], [ATTENTION, ATTENTION], [],
        ["attention-00001-of-00001.obd.safetensors"], ["mlp.obd.safetensors"],
        ["expert/config.json"], [f"./{ATTENTION}"])],
    *[("OBD-MAN-FILE", ("groups", 1, "files"), bad) for bad in (
        [SHARDS[1], SHARDS[0]], [SHARDS[0]], [SHARDS[1]], [SHARDS[0], SHARDS[0]],
        [SHARDS[0], ATTENTION], [name.replace("0000", "") for name in SHARDS])],
    ("OBD-MAN-FILE", ("files", ATTENTION), REMOVED),
    ("OBD-MAN-FILE", ("files", SHARDS[1]), REMOVED),
    *[("OBD-MAN-GROUP", (*EXACT, "group"), bad) for bad in ("head", "", "MLP", "norm")],
    ("OBD-MAN-GROUP", (*EXACT, "coding", "shard"), 2),
    ("OBD-MAN-GROUP", (*EXACT, "coding", "shard"), LARGEST),
    ("OBD-MAN-GROUP", (*TERMS, "coding", "shard"), 1),
    ("OBD-MAN-GROUP", ("tensors", "same", "group"), "head"),
    ("OBD-MAN-GROUP", ("tensors", "tied", "group"), "head"),
    ("OBD-MAN-CODING", ("tensors", "same", "base"), None),
    ("OBD-MAN-CODING", ("tensors", "same", "base", "dtype"), "U8"),
    ("OBD-MAN-CODING", ("tensors", "same", "base", "shape"), [7, 0]),
    ("OBD-MAN-CODING", (*EXACT, "base", "shape"), [5, 3, 1]),
    ("OBD-MAN-CODING", (*EXACT, "base", "shape"), []),
    ("OBD-MAN-CODING", (*EXACT, "base", "dtype"), "F64"),
    ("OBD-MAN-CODING", (*EXACT, "base", "dtype"), "I32"),
    *[("OBD-MAN-CODING", (*EXACT, "coding", "coded"), bad) for bad in ("F32", "F64", "U8")],
    ("OBD-MAN-CODING", ("tensors", "new", "coding", "coded"), "I64"),
    ("OBD-MAN-CODING", ("tensors", "new", "coding", "coded"), "I32"),
    ("OBD-MAN-CODING", (*TERMS, "base"), None),
    ("OBD-MAN-CODING", (*TERMS, "base", "shape"), [3, 2, 9]),
    ("OBD-MAN-CODING", (*TERMS, "base", "dtype"), "F64"),
    ("OBD-MAN-CODING", (*TERMS, "shape"), [9]),
    ("OBD-MAN-CODING", (*TERMS, "shape"), []),
    ("OBD-MAN-CODING", (*TERMS, "shape"), [2, 0, 9]),
    *[("OBD-MAN-TIED", ("tensors", "tied", "coding", "to"), bad)
      for bad in ("tied", "nowhere", "", "exact", "same")],
    ("OBD-MAN-TIED", ("tensors", "tied", "base"), {"digest": digit(1)}),
    ("OBD-MAN-TIED", ("tensors", "tied", "dtype"), "F16"),
    ("OBD-MAN-TIED", ("tensors", "tied", "shape"), [2, 3, 8]),
    ("OBD-MAN-TIED", ("tensors", "chain"),
     RICH["tensors"]["tied"] | {"coding": {"kind": "tied", "to": "tied"}}),
]  # fmt: skip


def described(fault: Fault) -> str:
    id, path, to = fault
    value = "removed" if to is REMOVED else repr(to)[:24]
    return f"{id} {'.'.join(map(str, path))[:60]} {value}"


@pytest.mark.parametrize("fault", FAULTS, ids=described)
def test_a_fault_is_refused_by_its_id(fault: Fault) -> None:
    id, path, to = fault
    assert refusal(sealed(edited(RICH, *path, to=to))).id == id


@pytest.mark.parametrize("digest", ["", "0" * 64, hashlib.sha256(b"").hexdigest(), "x"])
def test_the_digest_is_the_only_right_one(digest: str) -> None:
    assert refusal(canonical(RICH | {"digest": digest})).id == "OBD-MAN-DIGEST"


def test_upper_case_digits_are_another_digest() -> None:
    value = json.loads(sealed(RICH))
    assert refusal(canonical(value | {"digest": value["digest"].upper()})).id == "OBD-MAN-DIGEST"


@pytest.mark.parametrize(("digest", "id"), [(REMOVED, "OBD-MAN-FIELD"), (None, "OBD-MAN-TYPE")])
def test_the_digest_is_there_and_a_string(digest: Any, id: str) -> None:
    value = RICH if digest is REMOVED else RICH | {"digest": digest}
    assert refusal(canonical(value)).id == id


def test_every_requirement_on_manifests_is_broken_by_some_fault() -> None:
    required = set(re.findall(r"\[(OBD-MAN-[A-Z]+)\]", SPEC.read_text(encoding="utf-8")))
    assert required == {id for id, _, _ in FAULTS} | {"OBD-MAN-DIGEST"}


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("base", "revision"), REMOVED),
        (("base",), {"fingerprint": digit(0)}),
        (("expert", "license"), ""),
        (("metadata",), REMOVED),
        (("metadata",), {}),
        (("groups", 3), {"name": "m" * 32, "files": []}),
        (("groups", 3), {"name": "a_9", "files": []}),
        (("files", "expert/" + "a" * 1017), RICH["files"][ATTENTION]),
        (("files", "expert/" + "\u00e9" * 508), RICH["files"][ATTENTION]),
        (("files", "expert/2/3/4/5/6/7/8"), RICH["files"][ATTENTION]),
        (("files", "expert/...a/ b/.hidden"), RICH["files"][ATTENTION]),
        (("tensors", "n" * 1024), RICH["tensors"]["new"]),
        (("tensors", "\u20ac" * 341), RICH["tensors"]["new"]),
        (("tensors", "__metadata__"), RICH["tensors"]["new"]),
        ((*EXACT, "base", "name"), "exact"),
        ((*EXACT, "base"), None),
        ((*EXACT, "coding", "coded"), "BF16"),
        ((*EXACT, "shape"), [0, LARGEST // 4]),
        ((*EXACT, "shape"), [2**25, 2**25]),
        (("tensors", "new", "shape"), [1] * 8),
        ((*TERMS, "coding", "terms"), [SIGN] * 16),
    ],
    ids=repr,
)
def test_what_the_rules_allow_is_accepted(path: tuple[str | int, ...], to: Any) -> None:
    manifest = load(sealed(edited(RICH, *path, to=to)))
    assert load(dump(manifest)) == manifest


def test_a_bundle_may_hold_nothing() -> None:
    manifest = load(sealed(RICH | {"groups": [], "files": {}, "tensors": {}}))
    assert (manifest.groups, manifest.files, manifest.tensors) == ((), {}, {})


# --- structural fuzz ------------------------------------------------------------------------------

ODD: Final[list[Any]] = [
    None, True, False, 0, 1, -1, 2, 8, LARGEST, -LARGEST, "", "x", "obd", "1.0", "2.0", "row",
    "same", "exact", "terms", "tied", "BF16", "F32", "U8", "mlp", "norm", "expert/x", "../x",
    "\x00", "\x7f", "\u20ac", "\U0001f600", "n" * 1100, digit(1), digit(1)[1:], digit(1) + "0",
    [], {}, [0], [None], [1, 2], [[]], {"a": 0}, {"kind": "same"}, {"kind": "sign", "scale": "row"},
    {"digest": digit(3)}, ["a"], [0] * 9, [2**30, 2**30],
]  # fmt: skip


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths of all values inside a value."""
    found: list[tuple[str | int, ...]] = []
    steps = value if isinstance(value, dict) else range(len(value) if type(value) is list else 0)
    for step in steps:
        found += [(*path, step), *places(value[step], (*path, step))]
    return found


def at(value: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def mutate(value: dict[str, Any], random_: random.Random) -> None:
    """Change one thing in place: swap a type, drop or add or rename a key, move a value."""
    paths = places(value)
    path = random_.choice(paths)
    parent, last = at(value, path[:-1]), path[-1]
    action = random_.randrange(6)
    if action == 0:
        del parent[last]
    elif action == 1 and isinstance(parent, dict):
        new = random_.choice(["extra", "", "kind", "shard", "name", "repo", "base", "a/b", "\x00"])
        parent[new] = parent.pop(last) if random_.random() < 0.5 else random_.choice(ODD)
    elif action == 1:
        parent.insert(random_.randrange(len(parent) + 1), copy.deepcopy(parent[last]))
    elif action == 2:
        parent[last] = copy.deepcopy(at(value, random_.choice(paths)))
    elif action == 3 and isinstance(parent[last], str):
        text = parent[last]
        i = random_.randrange(len(text) + 1)
        new = random_.choice(["", "0", "/", ".", "\u00e9", "\n"])
        parent[last] = text[:i] + new + text[i + 1 :]
    elif action == 3 and type(parent[last]) is int:
        parent[last] += random_.choice([-1, 1, 2**31, -(2**31)])
    else:
        parent[last] = copy.deepcopy(random_.choice(ODD))


@pytest.mark.parametrize("seed", range(5))
def test_of_a_changed_manifest_only_format_errors_escape(seed: int) -> None:
    random_ = random.Random(seed)
    accepted = refused = 0
    for _ in range(1000):
        value = copy.deepcopy(RICH)
        for _ in range(random_.choice([1, 1, 1, 2, 3])):
            mutate(value, random_)
        data = sealed(value)
        try:
            manifest = load(data)
        except FormatError:
            refused += 1
            continue
        accepted += 1
        assert load(dump(manifest)) == manifest, data
    assert accepted > 50
    assert refused > 500
