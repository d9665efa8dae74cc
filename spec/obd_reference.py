"""A verifying decoder of .obd bundles, to be read beside `obd-v1.md` (whose sections it names).

It checks every requirement and prefers plain code to fast code. It refuses, with the id "LIMIT"
that no requirement has, to rebuild more bytes than its caller allows. Run it as
`python obd_reference.py BUNDLE [BASE.safetensors]`: one line a tensor, or the broken requirement.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import blake3
import numpy as np
import numpy.typing as npt
import zstandard

Bits = npt.NDArray[np.uint64]  # bit patterns of any width: one array type keeps the code short
Singles = npt.NDArray[np.float32]
Octets = npt.NDArray[np.uint8]
Check = Callable[[Any, str], None]

# dtype -> (bytes an element, exponent bits; 0 where symbols are plain differences)
DTYPES: Final = {
    "F64": (8, 11), "F32": (4, 8), "F16": (2, 5), "BF16": (2, 8), "F8_E4M3": (1, 0),
    "F8_E5M2": (1, 0), "I64": (8, 0), "I32": (4, 0), "I16": (2, 0), "I8": (1, 0), "U64": (8, 0),
    "U32": (4, 0), "U16": (2, 0), "U8": (1, 0), "BOOL": (1, 0),
}  # fmt: skip
FLOATS: Final = ("F32", "F16", "BF16")
NARROWINGS: Final = (("F32", "BF16"), ("F32", "F16"), ("F16", "BF16"))
SCALES: Final = {"matrix": ("matrix",), "row": ("row",), "column": ("column",),
                 "rank1": ("row", "column")}  # fmt: skip
MAX_INTEGER: Final = 2**53 - 1
CHUNK: Final = 2**20


class Violation(Exception):
    """A bundle breaks a requirement: `id` as in the specification, `path` the place."""

    def __init__(self, id: str, path: str, message: str) -> None:
        super().__init__(f"{path}: {message} [{id}]")
        self.id, self.path = id, path


def require(holds: object, id: str, path: str, message: str) -> None:
    """Raises `Violation` unless `holds`."""
    if not holds:
        raise Violation(id, path, message)


class Tensor(NamedTuple):
    """A tensor as a safetensors file holds it: little-endian, row-major bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def canonical(value: Any) -> bytes:
    """Spec 4.2: the one byte string that stands for a JSON value."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def parse_json(data: bytes, path: str) -> Any:
    """Spec 4.1: parses the JSON subset; raises `Violation` for anything else."""

    def integer(word: str) -> int:
        short = len(word) <= 17 and word != "-0"  # length first: int() of a long word is costly
        require(short and abs(int(word)) <= MAX_INTEGER, "OBD-JSON-NUMBER", path, word[:20])
        return int(word)

    def refuse(word: str) -> None:
        raise Violation("OBD-JSON-NUMBER", path, f"not an integer: {word[:20]}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require(len(dict(pairs)) == len(pairs), "OBD-JSON-DUPLICATE", path, "duplicate key")
        return dict(pairs)

    require(not data.startswith(b"\xef\xbb\xbf"), "OBD-JSON-UTF8", path, "byte order mark")
    try:
        text, depth, quoted = data.decode("utf-8"), 0, False
        for token in re.finditer(r'\\.|["\[\]{}]', text, re.DOTALL):  # before a recursive parser
            quoted ^= token[0] == '"'
            depth += 0 if quoted else {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
            require(depth <= 16, "OBD-JSON-LIMIT", path, "nested deeper than 16")
        value = json.loads(text, parse_int=integer, parse_float=refuse, parse_constant=refuse,
                           object_pairs_hook=unique)  # fmt: skip
        canonical(value)
    except UnicodeError as error:  # also a lone surrogate, which cannot be encoded again
        raise Violation("OBD-JSON-UTF8", path, "not valid Unicode") from error
    except ValueError as error:
        raise Violation("OBD-JSON-SYNTAX", path, "not JSON") from error
    return value


# Spec 4.3: a check takes a value and its path, and raises Violation unless the value is right.


def kind(json_type: type, allowed: Callable[[Any], object] = lambda value: True) -> Check:
    """A check for a JSON type (true is not an integer) and then for the value alone."""

    def check(value: Any, path: str) -> None:
        right = isinstance(value, json_type) and not isinstance(value, bool)
        require(right, "OBD-MAN-TYPE", path, f"expected {json_type.__name__}")
        require(allowed(value), "OBD-MAN-VALUE", path, f"not allowed: {ascii(value)[:80]}")

    return check


def each(
    container: type, element: Check, allowed: Callable[[Any], object] = lambda value: True
) -> Check:
    """A check for an array or an object with free keys, and for each of its elements."""

    def check(value: Any, path: str) -> None:
        kind(container)(value, path)
        for key in value if container is dict else range(len(value)):
            element(value[key], f"{path}[{key!a}]")
        require(allowed(value), "OBD-MAN-VALUE", path, "not allowed")

    return check


def record(required: dict[str, Check], optional: dict[str, Check] | None = None) -> Check:
    """A check for an object: all required fields, none unknown, each by its own check."""
    known = {**required, **(optional or {})}

    def check(value: Any, path: str) -> None:
        kind(dict)(value, path)
        for name in [*value, *required]:
            require(name in known, "OBD-MAN-FIELD", f"{path}.{name!a}", "unknown field")
            require(name in value, "OBD-MAN-FIELD", f"{path}.{name}", "missing field")
        for name in value:
            known[name](value[name], f"{path}.{name}")

    return check


def is_name(name: str) -> bool:
    """Spec 4.3: 1 to 1024 bytes and no control characters."""
    return 1 <= len(name.encode()) <= 1024 and not re.search(r"[\x00-\x1f\x7f]", name)


def one_of(*words: str) -> Check:
    """A check for one of a few strings."""
    return kind(str, lambda value: value in words)


def check_base(value: Any, path: str) -> None:
    """Spec 4.4: the field `base` of a tensor, null or an object."""
    if value is not None:
        BASE(value, path)


def check_coding(value: Any, path: str) -> None:
    """Spec 4.5: the fields of a coding, which depend on its kind."""
    kind(dict)(value, path)
    require("kind" in value, "OBD-MAN-FIELD", path, "missing kind")
    one_of(*CODINGS)(value["kind"], f"{path}.kind")
    CODINGS[value["kind"]](value, path)


# fmt: off
STRING: Final = kind(str)
NATURAL: Final = kind(int, lambda value: value >= 0)
HEX64: Final = kind(str, re.compile("[0-9a-f]{64}").fullmatch)
DTYPE: Final = one_of(*DTYPES)
SHAPE: Final = each(list, NATURAL, lambda value: len(value) <= 8)
SOURCE: Final = {"repo": STRING, "revision": STRING}
TERM: Final = record({"kind": one_of("sign"), "scale": one_of(*SCALES)})
CODINGS: Final[dict[str, Check]] = {
    "same": record({"kind": STRING}),
    "tied": record({"kind": STRING, "to": STRING}),
    "exact": record({"kind": STRING, "digest": HEX64, "content": HEX64},
                    {"coded": DTYPE, "shard": NATURAL}),
    "terms": record({"kind": STRING, "digest": HEX64,
                     "terms": each(list, TERM, lambda value: 1 <= len(value) <= 16)},
                    {"shard": NATURAL}),
}
BASE: Final = record({"digest": HEX64}, {"name": kind(str, is_name), "dtype": DTYPE,
                                          "shape": SHAPE})
STORED: Final = record({"dtype": DTYPE, "shape": SHAPE,
                        "data_offsets": each(list, NATURAL, lambda value: len(value) == 2)})
GROUP: Final = record({"name": kind(str, re.compile("[a-z][a-z0-9_]{0,31}").fullmatch),
                       "files": each(list, STRING)})
MANIFEST: Final = record({
    "format": STRING, "version": STRING, "requires": each(list, STRING), "digest": STRING,
    "base": record({"fingerprint": HEX64}, SOURCE),
    "expert": record({"name": kind(str, bool), "dtype": DTYPE}, {**SOURCE, "license": STRING}),
    "groups": each(list, GROUP, lambda value: len({g["name"] for g in value}) == len(value)),
    "files": each(dict, record({"size": NATURAL, "sha256": HEX64})),
    "tensors": each(dict, record({"group": STRING, "dtype": DTYPE, "shape": SHAPE,
                                  "base": check_base, "coding": check_coding})),
}, {"metadata": each(dict, STRING)})
# fmt: on


def check_head(manifest: Any) -> None:
    """Spec 8: is this the format, and a version of it that this reader knows?"""
    for name in ("format", "version", "requires", "digest"):
        require(name in manifest, "OBD-MAN-FIELD", name, "missing field")
    STRING(manifest["format"], "format")
    require(manifest["format"] == "obd", "OBD-MAN-FORMAT", "format", "not an obd manifest")
    version = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)")
    kind(str, version.fullmatch)(manifest["version"], "version")
    require(manifest["version"][:2] == "1.", "OBD-MAN-VERSION", "version", "not supported")
    each(list, STRING, lambda v: v == sorted(set(v)))(manifest["requires"], "requires")
    require(not manifest["requires"], "OBD-MAN-REQUIRES", "requires", "not supported")


def element_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Spec 4.4: the bytes of a tensor, where an axis of length zero counts as one."""
    return math.prod(n or 1 for n in shape) * DTYPES[dtype][0]


def check_names(manifest: Any) -> None:
    """Spec 4.3: paths are safe; groups and files refer to each other without loose ends."""
    for source in (manifest["base"], manifest["expert"]):
        alone = "revision" in source and "repo" not in source
        require(not alone, "OBD-MAN-FIELD", "revision", "without repo")
    for path in manifest["files"]:
        parts = path.split("/")
        safe = is_name(path) and len(parts) <= 8 and not set(parts) & {"", ".", ".."}
        require(safe and not set(path) & {"\\", ":"}, "OBD-MAN-PATH", ascii(path), "not allowed")
    grouped = set()
    for group in manifest["groups"]:
        name, count = group["name"], len(group["files"])
        wanted = [f"{name}.obd.safetensors"] * count
        if count > 1:
            wanted = [f"{name}-{i + 1:05}-of-{count:05}.obd.safetensors" for i in range(count)]
        require(group["files"] == wanted, "OBD-MAN-FILE", name, "file names not as stated")
        grouped.update(wanted)
    free = {path for path in manifest["files"] if path.startswith("expert/")}
    loose = grouped ^ (set(manifest["files"]) - free)
    require(not loose, "OBD-MAN-FILE", ascii(sorted(loose)[:1]), "listed on one side only")


def check_fit(manifest: Any, name: str) -> None:
    """Spec 4.4 and 4.5: an entry fits its group, its base and its coding."""
    entry, path = manifest["tensors"][name], f"tensors.{name!a}"
    coding, dtype, shape = entry["coding"], entry["dtype"], entry["shape"]
    if entry["base"] is not None:  # what is left out there is as in the tensor
        entry["base"] = {"name": name, "dtype": dtype, "shape": shape, **entry["base"]}
    base = entry["base"]
    sizes = [element_bytes(one["dtype"], one["shape"]) for one in (entry, base) if one]
    require(is_name(name) and max(sizes) <= MAX_INTEGER, "OBD-MAN-VALUE", path, "name or size")
    shards = [len(g["files"]) for g in manifest["groups"] if g["name"] == entry["group"]]
    right = shards and (coding["kind"] in ("same", "tied") or coding.get("shard", 0) < shards[0])
    require(right, "OBD-MAN-GROUP", path, "no such group or shard")
    if coding["kind"] == "tied":
        to = manifest["tensors"].get(coding["to"], entry)
        right = base is None and (to["dtype"], to["shape"]) == (dtype, shape)
        right = right and to["coding"]["kind"] != "tied"
        return require(right, "OBD-MAN-TIED", path, "not tied to a tensor like this one")
    floats = base and base["dtype"] in FLOATS and dtype in FLOATS
    fits = {
        "same": base and (base["dtype"], base["shape"]) == (dtype, shape),
        "terms": floats and base["shape"] == shape and len(shape) >= 2 and 0 not in shape,
        "exact": (dtype, coding.get("coded")) in ((dtype, None), *NARROWINGS) and (
            not base or (len(base["shape"]) == len(shape) and (floats or base["dtype"] == dtype))),
    }  # fmt: skip
    return require(fits[coding["kind"]], "OBD-MAN-CODING", path, "does not fit the tensor")


def read_manifest(bundle: Path) -> Any:
    """Spec 4: reads `obd.json` and checks everything that it alone can tell."""
    path, name = bundle / "obd.json", "obd.json"
    there = os.path.lexists(path) and stat.S_ISREG(os.lstat(path).st_mode)
    require(there, "OBD-DIR-MANIFEST", name, "not a regular file")
    require(os.lstat(path).st_size <= 64 * 2**20, "OBD-JSON-LIMIT", name, "larger than 64 MiB")
    data = path.read_bytes()
    manifest = parse_json(data, name)
    kind(dict)(manifest, name)
    check_head(manifest)
    require(canonical(manifest) == data, "OBD-JSON-CANONICAL", name, "not in canonical form")
    STRING(manifest["digest"], "digest")
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    digest = hashlib.sha256(canonical(rest)).hexdigest()
    require(digest == manifest["digest"], "OBD-MAN-DIGEST", "digest", f"computed {digest}")
    MANIFEST(manifest, "")
    check_names(manifest)
    for tensor in manifest["tensors"]:
        check_fit(manifest, tensor)
    return manifest


def read_files(bundle: Path, files: Any) -> dict[str, bytes]:
    """Spec 3: every listed file, and nothing else, as recorded."""
    found, contents = {}, {}
    for folder, folders, names in os.walk(bundle):
        for name in folders + names:
            status = os.lstat(os.path.join(folder, name))
            path = os.path.relpath(os.path.join(folder, name), bundle).replace(os.sep, "/")
            plain = stat.S_ISREG(status.st_mode)
            require(plain or stat.S_ISDIR(status.st_mode), "OBD-DIR-LINK", ascii(path), "a link")
            listed = path == "obd.json" or path in files
            require(listed or not plain, "OBD-DIR-UNLISTED", ascii(path), "not in the manifest")
            found.update({path: status.st_size} if plain else {})
    for path, entry in files.items():
        require(path in found, "OBD-DIR-MISSING", ascii(path), "listed but missing")
        require(found[path] == entry["size"], "OBD-DIR-SIZE", ascii(path), f"{found[path]} bytes")
        contents[path] = (bundle / path).read_bytes()
        digest = hashlib.sha256(contents[path]).hexdigest()
        require(digest == entry["sha256"], "OBD-DIR-SHA256", ascii(path), f"computed {digest}")
    return contents


def read_safetensors(data: bytes, path: str) -> tuple[Any, int, dict[str, Tensor]]:
    """Spec 5.1: metadata, begin of the data section, and tensors in the order of their offsets."""
    start = 8 + int.from_bytes(data[:8], "little")
    right = 8 <= len(data) >= start <= 8 + 100_000_000
    require(right, "OBD-ST-HEADER", path, "wrong header length")
    text = data[8:start].rstrip(b" ")
    try:
        header = parse_json(text, path)
        kind(dict)(header, path)
        metadata = header.pop("__metadata__", None)
        each(dict, STORED)(header, path)
    except Violation as violation:
        raise Violation("OBD-ST-HEADER", path, f"header: {violation}") from violation
    require((text[:1], text[-1:]) == (b"{", b"}"), "OBD-ST-HEADER", path, "not padded by spaces")
    tensors, end = {}, start
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = (start + offset for offset in entry["data_offsets"])
        size = math.prod(entry["shape"]) * DTYPES[entry["dtype"]][0]
        right = first == end and last - first == size and last <= len(data)
        require(right, "OBD-ST-OFFSETS", f"{path}:{name!a}", "hole, overlap or wrong size")
        tensors[name], end = Tensor(entry["dtype"], tuple(entry["shape"]), data[first:last]), last
    require(end == len(data), "OBD-ST-OFFSETS", path, "bytes after the last tensor")
    return metadata, start, tensors


def read_group_file(data: bytes, path: str) -> dict[str, Tensor]:
    """Spec 5: the stored tensors of a group file."""
    metadata, place, tensors = read_safetensors(data, path)
    require(metadata == {"format": "obd"}, "OBD-ST-METADATA", path, "wrong __metadata__")
    require(place % 4096 == 0, "OBD-ST-ALIGN", path, f"data begins at {place}")
    for name, tensor in tensors.items():
        aligned = place % DTYPES[tensor.dtype][0] == 0
        require(aligned, "OBD-ST-ITEM-ALIGN", f"{path}:{name!a}", f"begins at {place}")
        place += len(tensor.data)
    pad = tensors.pop("/padding", Tensor("U8", (1,), bytes(1)))
    right = pad.dtype == "U8" and len(pad.shape) == 1 and pad.data in map(bytes, range(1, 8))
    require(right, "OBD-ST-PADDING", path, "malformed /padding")
    return tensors


def stored_names(name: str, coding: Any) -> list[str]:
    """Spec 5.2: the names under which a tensor is stored, in the order of its digest."""
    if coding["kind"] == "exact":
        return [f"{name}/exact"]
    terms = enumerate(coding.get("terms", []))
    return [f"{name}/{part}/{k}" for k, term in terms for part in ("sign", *SCALES[term["scale"]])]


def read_stored(manifest: Any, contents: dict[str, bytes]) -> dict[str, Tensor]:
    """Spec 5.2: each group file holds exactly the tensors that the manifest implies."""
    stored: dict[str, Tensor] = {}
    for group in manifest["groups"]:
        for shard, file in enumerate(group["files"]):
            here = read_group_file(contents[file], file)
            implied = {
                part
                for name, entry in manifest["tensors"].items()
                if (entry["group"], entry["coding"].get("shard", 0)) == (group["name"], shard)
                for part in stored_names(name, entry["coding"])
            }
            require(set(here) == implied, "OBD-ST-TENSORS", file, "not the implied tensors")
            stored.update(here)
    return stored


def to_bits(data: bytes, dtype: str) -> Bits:
    """The bit patterns of a tensor's bytes."""
    return np.frombuffer(data, f"<u{DTYPES[dtype][0]}").astype(np.uint64)


def from_bits(bits: Bits, dtype: str) -> bytes:
    """The inverse of `to_bits`."""
    return bits.astype(f"<u{DTYPES[dtype][0]}").tobytes()


def widen(bits: Bits, dtype: str) -> Singles:
    """Spec 6.0: F32, F16 or BF16 as binary32 values, exactly."""
    if dtype == "F16":
        return np.asarray(bits.astype(np.uint16).view(np.float16), np.float32)
    shift = np.uint64(16 if dtype == "BF16" else 0)
    return np.asarray((bits << shift).astype(np.uint32).view(np.float32))


def narrow(values: Singles, dtype: str) -> Bits:
    """Spec 6.0: rounds to nearest even; a NaN keeps its sign alone."""
    bits = values.view(np.uint32).astype(np.uint64)
    sign = bits >> np.uint64(31) << np.uint64(8 * DTYPES[dtype][0] - 1)
    if dtype == "F16":
        bits = values.astype(np.float16).view(np.uint16).astype(np.uint64)
    elif dtype == "BF16":
        half = np.uint64(0x7FFF) + (bits >> np.uint64(16) & np.uint64(1))
        bits = bits + half >> np.uint64(16)
    quiet = np.uint64({"F32": 0x7FC00000, "F16": 0x7E00, "BF16": 0x7FC0}[dtype])
    return np.asarray(np.where(np.isnan(values), sign | quiet, bits))


def convert(bits: Bits, source: str, target: str) -> Bits:
    """Spec 6.0: values of one dtype as bit patterns of another."""
    return bits if source == target else narrow(widen(bits, source), target)


def sign_bits(tensor: Tensor, shape: tuple[int, ...], path: str) -> npt.NDArray[np.bool_]:
    """Spec 6.1.1: the signs of a term, True for plus."""
    packed = (*shape[:-1], -(-shape[-1] // 8))
    right = (tensor.dtype, tensor.shape) == ("U8", packed)
    require(right, "OBD-SIGN-SHAPE", path, f"expected U8 {packed}")
    rows = np.frombuffer(tensor.data, np.uint8).reshape(packed)
    bits = np.unpackbits(rows, axis=-1, bitorder="little").astype(np.bool_)
    require(not bits[..., shape[-1] :].any(), "OBD-SIGN-PAD", path, "unused bit set")
    return bits[..., : shape[-1]]


def scale_values(part: str, tensor: Tensor, shape: tuple[int, ...], path: str) -> Singles:
    """Spec 6.1.2: one scale tensor in binary32."""
    axes = {"matrix": (1, 1), "row": (shape[-2], 1), "column": (1, shape[-1])}[part]
    right = tensor.dtype in ("F16", "F32") and tensor.shape == (*shape[:-2], *axes)
    require(right, "OBD-SIGN-SHAPE", path, f"wrong dtype or shape of {part}")
    values = widen(to_bits(tensor.data, tensor.dtype), tensor.dtype).reshape(tensor.shape)
    right = bool(np.isfinite(values).all()) and not np.signbit(values).any()
    require(right, "OBD-SIGN-SCALE", path, "a scale is negative or not finite")
    return values


def task_vector(terms: Any, parts: list[Tensor], shape: tuple[int, ...], path: str) -> Singles:
    """Spec 6.1.3: the sum of the terms in binary32, in order."""
    total, rest = None, iter(parts)
    for term in terms:
        plus = sign_bits(next(rest), shape, path)
        size = scale_values(SCALES[term["scale"]][0], next(rest), shape, path)
        if term["scale"] == "rank1":
            size = size * scale_values("column", next(rest), shape, path)
        require(np.isfinite(size).all(), "OBD-SIGN-SCALE", path, "row times column overflows")
        signed = np.where(plus, size, -size)
        total = signed if total is None else total + signed
    return np.asarray(total, np.float32)


@dataclass(kw_only=True, slots=True)
class Cursor:
    """Reads a chunk from front to back, never beyond its end."""

    data: bytes
    path: str

    def take(self, count: int, id: str = "OBD-EXACT-CHUNK") -> bytes:
        """The next `count` bytes; raises `Violation` with `id` when there are fewer."""
        require(count <= len(self.data), id, self.path, "ends too early")
        taken, self.data = self.data[:count], self.data[count:]
        return taken


def read_plane(cursor: Cursor, size: int) -> Octets:
    """Spec 6.2.6: PLANE(size), raw or one zstd frame that states its size, and nothing after it."""
    word = int.from_bytes(cursor.take(4, "OBD-EXACT-PLANE"), "little")
    raw, length = word >> 31, word & 0x7FFFFFFF
    require(not raw or length == size, "OBD-EXACT-PLANE", cursor.path, "wrong raw length")
    data = cursor.take(length, "OBD-EXACT-PLANE")
    if raw:
        return np.frombuffer(data, np.uint8)
    try:
        require(data[:4] == b"\x28\xb5\x2f\xfd", "OBD-EXACT-FRAME", cursor.path, "not a frame")
        about = zstandard.get_frame_parameters(data)
        right = (about.content_size, about.dict_id) == (size, 0)
        require(right, "OBD-EXACT-FRAME", cursor.path, "another size, or a dictionary")
        plane = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Violation("OBD-EXACT-FRAME", cursor.path, f"invalid frame: {error}") from error
    return np.frombuffer(plane, np.uint8)


def unpack(data: Octets, k: int, count: int, path: str) -> Bits:
    """Spec 6.2.4 and 6.2.5: `count` values of k bits, least significant first."""
    bits = np.unpackbits(data, bitorder="little")
    require(not bits[count * k :].any(), "OBD-EXACT-PACK", path, "unused bit set")
    weights = np.uint64(1) << np.arange(k, dtype=np.uint64)
    return np.asarray(bits[: count * k].reshape(count, k) @ weights)


def read_split(cursor: Cursor, count: int, width: int) -> Bits:
    """Spec 6.2.5: SPLIT(count)."""
    low, planes = cursor.take(2)
    fits = low <= 7 and planes >= 1 and low + 8 * planes <= width + 7
    require(fits, "OBD-EXACT-SPLIT", cursor.path, f"{low} low bits, {planes} planes")
    packed = cursor.take(-(-count * low // 8), "OBD-EXACT-PLANE")
    symbols = unpack(np.frombuffer(packed, np.uint8), low, count, cursor.path)
    for shift in range(low, low + 8 * planes, 8):
        plane = read_plane(cursor, count).astype(np.uint64)
        fits = not (plane >> np.uint64(min(8, width - shift))).any()
        require(fits, "OBD-EXACT-RANGE", cursor.path, f"a symbol of more than {width} bits")
        symbols |= plane << np.uint64(shift)
    return symbols


def read_pack(cursor: Cursor, count: int, width: int) -> Bits:
    """Spec 6.2.4, mode 2: k bits a symbol, of which the largest value is an escape."""
    k = cursor.take(1)[0]
    require(k in (1, 2, 4), "OBD-EXACT-PACK", cursor.path, f"k is {k}")
    symbols = unpack(read_plane(cursor, -(-count * k // 8)), k, count, cursor.path)
    escape = np.uint64(2**k - 1)
    escaped = symbols == escape
    if escaped.any():
        more = read_split(cursor, int(escaped.sum()), width)
        fits = not (more > np.uint64(2**width - 1) - escape).any()
        require(fits, "OBD-EXACT-RANGE", cursor.path, "an escaped symbol is too large")
        symbols[escaped] += more
    return symbols


def group_sizes(keys: Bits) -> list[int]:
    """Spec 6.2.3: the sizes of the groups of one chunk."""
    ends, total = [0], 0
    for count in np.unique(keys, return_counts=True)[1].tolist():
        total += count
        if total - ends[-1] >= 2048:
            ends.append(total)
    ends[max(1, len(ends) - 1) :] = [total]  # what is left over joins the last closed group
    return [b - a for a, b in itertools.pairwise(ends)]


def chunk_symbols(data: bytes, prediction: Bits, dtype: str, path: str) -> Bits:
    """Spec 6.2.3: the symbols of one chunk, in element order."""
    width, exponent = 8 * DTYPES[dtype][0], DTYPES[dtype][1]
    cursor = Cursor(data=data, path=path)
    first = cursor.take(1)[0]
    require(first in (0, 1), "OBD-EXACT-CHUNK", path, f"chunk type {first}")
    symbols = np.zeros(len(prediction), np.uint64)
    if first:
        keys = prediction >> np.uint64(width - 1 - exponent) & np.uint64(2**exponent - 1)
        parts = []
        for count in group_sizes(keys):
            mode = cursor.take(1)[0]
            require(mode in (0, 1, 2), "OBD-EXACT-MODE", path, f"mode {mode}")
            read = (None, read_split, read_pack)[mode]
            parts.append(read(cursor, count, width) if read else np.zeros(count, np.uint64))
        symbols[np.argsort(keys, kind="stable")] = np.concatenate(parts)
    require(not cursor.data, "OBD-EXACT-CHUNK", path, "bytes left over")
    return symbols


def apply_symbols(symbols: Bits, prediction: Bits, dtype: str) -> Bits:
    """Spec 6.2.2: undoes zigzag, difference and map."""
    width, exponent = 8 * DTYPES[dtype][0], DTYPES[dtype][1]
    mask, top, one = np.uint64(2**width - 1), np.uint64(2 ** (width - 1)), np.uint64(1)
    step = symbols >> one ^ (np.uint64(0) - (symbols & one))
    if not exponent:
        return np.asarray((prediction + step) & mask)
    mapped = np.where(prediction & top, ~prediction, prediction | top) + step
    return np.asarray(np.where(mapped & top, mapped ^ top, ~mapped) & mask)


def split_blob(blob: Tensor, count: int, path: str) -> list[bytes]:
    """Spec 6.2.7: the chunks of a blob, cut by the table at its end."""
    table = len(blob.data) - 4 * -(-count // CHUNK)
    right = blob.dtype == "U8" and len(blob.shape) == 1 and table >= 0
    require(right, "OBD-EXACT-TABLE", path, "not one row of bytes, or too short")
    ends = np.cumsum([0, *np.frombuffer(blob.data[table:], "<u4").tolist()]).tolist()
    require(ends[-1] == table, "OBD-EXACT-TABLE", path, "chunk lengths do not add up")
    return [blob.data[a:b] for a, b in itertools.pairwise(ends)]


def predict(first: int, last: int, shape: tuple[int, ...], base: Tensor | None, dtype: str) -> Bits:
    """Spec 6.2.1: the prediction of elements `first` to `last`, as bit patterns of `dtype`."""
    result, rest = np.zeros(last - first, np.uint64), np.arange(first, last)
    if base is None:
        return result
    inside, place, step = rest >= 0, np.zeros_like(rest), 1
    for own, theirs in zip(reversed(shape), reversed(base.shape), strict=True):
        rest, index = np.divmod(rest, own)
        inside &= index < theirs
        place, step = place + index * step, step * theirs
    result[inside] = np.frombuffer(base.data, f"<u{DTYPES[base.dtype][0]}")[place[inside]]
    return convert(result, base.dtype, dtype)


def decode_exact(entry: Any, chunks: list[bytes], base: Tensor | None, path: str) -> bytes:
    """Spec 6.2: the bytes of a tensor coded `exact`, chunk by chunk."""
    dtype, shape, result = entry["dtype"], tuple(entry["shape"]), bytearray()
    coded, count = entry["coding"].get("coded", dtype), math.prod(shape)
    for index, chunk in enumerate(chunks):
        first, last = index * CHUNK, min(index * CHUNK + CHUNK, count)
        prediction = predict(first, last, shape, base, coded)
        symbols = chunk_symbols(chunk, prediction, coded, f"{path} chunk {index}")
        bits = apply_symbols(symbols, prediction, coded)
        result += from_bits(convert(bits, coded, dtype), dtype)
    digest = blake3.blake3(result).hexdigest()
    require(digest == entry["coding"]["content"], "OBD-EXACT-CONTENT", path, f"computed {digest}")
    return bytes(result)


def read_base(path: Path) -> dict[str, Tensor]:
    """Spec 7: the tensors of a base checkpoint in one file."""
    try:
        return read_safetensors(path.read_bytes(), str(path))[2]
    except (OSError, Violation) as error:
        raise Violation("OBD-BASE-TENSOR", str(path), f"cannot be read: {error}") from error


def base_tensor(base: Any, bases: dict[str, Tensor]) -> Tensor:
    """Spec 7: the recorded base tensor."""
    name, found = ascii(base["name"]), bases.get(base["name"])
    if found is None:
        raise Violation("OBD-BASE-TENSOR", name, "not in the base")
    right = (found.dtype, list(found.shape)) == (base["dtype"], base["shape"])
    right = right and blake3.blake3(found.data).hexdigest() == base["digest"]
    require(right, "OBD-BASE-TENSOR", name, "not the recorded base tensor")
    return found


def decode_tensor(
    name: str, entry: Any, parts: list[Tensor], bases: dict[str, Tensor] | None, limit: int
) -> bytes | None:
    """Spec 6: checks a tensor and rebuilds it; None where a base is needed and not given."""
    coding, shape, path = entry["coding"], tuple(entry["shape"]), ascii(name)
    digest = blake3.blake3(b"".join(part.data for part in parts)).hexdigest()
    right = not parts or digest == coding["digest"]
    require(right, "OBD-TENSOR-DIGEST", path, f"computed {digest}")
    exact = coding["kind"] == "exact"
    chunks = split_blob(parts[0], math.prod(shape), path) if exact else []
    delta = task_vector(coding["terms"], parts, shape, path) if "terms" in coding else None
    if entry["base"] is not None and bases is None:
        return None
    size = math.prod(shape) * DTYPES[entry["dtype"]][0]
    require(size <= limit, "LIMIT", path, f"{size} bytes to rebuild, where {limit} are left")
    base = base_tensor(entry["base"], bases or {}) if entry["base"] is not None else None
    if exact or base is None:
        return decode_exact(entry, chunks, base, path)
    if delta is None:
        return base.data
    values = widen(to_bits(base.data, base.dtype), base.dtype) + delta.reshape(-1)
    return from_bits(narrow(values, entry["dtype"]), entry["dtype"])


def decode(bundle: Path, base: Path | None = None, *, limit: int = 2**34) -> dict[str, Tensor]:
    """Verifies a bundle in full and rebuilds its tensors; without a base, those that need none.

    Raises `Violation` for the first requirement that is broken, or with the id "LIMIT", which is
    of no requirement, where the tensors that are not tied have more than `limit` bytes together.
    """
    manifest = read_manifest(bundle)
    entries = manifest["tensors"]
    stored = read_stored(manifest, read_files(bundle, manifest["files"]))
    own = {name: entry for name, entry in entries.items() if entry["coding"]["kind"] != "tied"}
    bases, rebuilt = None if base is None else read_base(base), {}
    with np.errstate(all="ignore"):  # overflow to infinity is the rule, not an accident
        for name, entry in own.items():
            parts = [stored[part] for part in stored_names(name, entry["coding"])]
            data = rebuilt[name] = decode_tensor(name, entry, parts, bases, limit)
            limit -= len(data or b"")
    result = {}
    for name, entry in entries.items():
        data = rebuilt[entry["coding"].get("to", name)]
        if data is not None:
            result[name] = Tensor(entry["dtype"], tuple(entry["shape"]), data)
    return result


def main(arguments: list[str]) -> int:
    """The command line: 0 valid, 1 invalid, 2 wrong usage."""
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        tensors = decode(*map(Path, arguments))
    except Violation as violation:
        print(violation)
        return 1
    for name, (dtype, shape, data) in tensors.items():
        print(f"{name!a} {dtype} {list(shape)} blake3 {blake3.blake3(data).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
