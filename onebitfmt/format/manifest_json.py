"""The manifest's bytes: written canonically, read from strangers (spec section 4).

`load` and `dump` are inverse: one set of rules for reading and writing. A `Manifest` that came
from `load` is well-formed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

from onebitfmt.errors import FormatError, UnsupportedError
from onebitfmt.format.dtypes import DTYPES, HALF_AND_SINGLE, NARROWER, nbytes
from onebitfmt.format.limits import (
    MAX_DIMENSIONS,
    MAX_INTEGER,
    MAX_MANIFEST_BYTES,
    MAX_NAME_BYTES,
    MAX_PATH_BYTES,
    MAX_PATH_COMPONENTS,
    MAX_TERMS,
)
from onebitfmt.format.manifest import (
    EXPERT_FOLDER,
    FILE_NAME,
    SCALE_TENSORS,
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
from onebitfmt.format.strict_json import Cursor, canonical, parse

FORMAT: Final = "obd"
_HEX64: Final = re.compile(r"[0-9a-f]{64}")
_GROUP: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_VERSION: Final = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def dump(manifest: Manifest) -> bytes:
    """The canonical bytes of the manifest, its digest included."""
    value = {
        "format": FORMAT,
        "version": manifest.version,
        "requires": [],
        "base": _record(manifest.base),
        "expert": _record(manifest.expert),
        "groups": [{"name": g.name, "files": list(g.files)} for g in manifest.groups],
        "files": {k: _record(f) for k, f in manifest.files.items()},
        "tensors": {k: _dump_entry(k, t) for k, t in manifest.tensors.items()},
    }
    if manifest.metadata:
        value["metadata"] = dict(manifest.metadata)
    value["digest"] = hashlib.sha256(canonical(value)).hexdigest()
    return canonical(value)


def _record(record: Base | Expert | FileEntry) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in record.__slots__}
    return {k: v for k, v in values.items() if v is not None}


def _dump_entry(name: str, entry: TensorEntry) -> dict[str, Any]:
    base: dict[str, Any] | None = None
    if entry.base is not None:
        own = {"name": name, "dtype": entry.dtype, "shape": list(entry.shape)}
        of_base = {
            "name": entry.base.name,
            "dtype": entry.base.dtype,
            "shape": list(entry.base.shape),
        }
        base = {k: v for k, v in of_base.items() if v != own[k]} | {"digest": entry.base.digest}
    return {
        "group": entry.group,
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        "base": base,
        "coding": _dump_coding(entry),
    }


def _dump_coding(entry: TensorEntry) -> dict[str, Any]:
    coding = entry.coding
    if isinstance(coding, Same):
        return {"kind": "same"}
    if isinstance(coding, Tied):
        return {"kind": "tied", "to": coding.to}
    value: dict[str, Any] = {"digest": coding.digest}
    if coding.shard:
        value["shard"] = coding.shard
    if isinstance(coding, Terms):
        terms = [{"kind": "sign", "scale": t.scale} for t in coding.terms]
        return value | {"kind": "terms", "terms": terms}
    if coding.coded != entry.dtype:
        value["coded"] = coding.coded
    return value | {"kind": "exact", "content": coding.content}


def load(data: bytes, where: str = FILE_NAME) -> Manifest:
    """The manifest in these bytes; `where` names them in errors.

    Raises `UnsupportedError` for a newer major version or an unknown required feature, and
    `FormatError` with the id of the first requirement that is broken (spec sections 4 and 8).
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise FormatError("OBD-JSON-LIMIT", where, f"larger than {MAX_MANIFEST_BYTES} bytes")
    value = parse(data, where)
    cursor = Cursor(value=value, path=where)
    _check_version(cursor)
    if canonical(value) != data:
        cursor.fail("OBD-JSON-CANONICAL", "not in canonical form")
    _check_digest(cursor)
    return _load_manifest(cursor)


def _check_version(cursor: Cursor) -> None:
    """Version and features come before all else, so that "newer" is never called "broken"."""
    head = {k: v for k, v in cursor.entries() if k in ("format", "version", "requires")}
    missing = {"format", "version", "requires"} - head.keys()
    if "format" not in missing and head["format"].string() != FORMAT:
        head["format"].fail("OBD-MAN-FORMAT", "this is not an .obd bundle")
    if missing:
        cursor.fail("OBD-MAN-FIELD", f"field {min(missing)!r} is missing")
    version = head["version"].string()
    match = _VERSION.fullmatch(version)
    if not match:
        head["version"].fail("OBD-MAN-VALUE", f"{version!r} is not MAJOR.MINOR")
    if match[1] != "1":
        problem = f"format version {version} needs another reader; update onebitfmt"
        raise UnsupportedError("OBD-MAN-VERSION", cursor.path, problem)
    names = [c.string() for c in head["requires"].items()]
    if names != sorted(set(names)):
        head["requires"].fail("OBD-MAN-VALUE", "not sorted, or a name stands twice")
    if names:
        problem = f"needs {', '.join(names)}, which this reader lacks; update onebitfmt"
        raise UnsupportedError("OBD-MAN-REQUIRES", head["requires"].path, problem)


def _check_digest(cursor: Cursor) -> None:
    entries = dict(cursor.entries())
    if "digest" not in entries:
        cursor.fail("OBD-MAN-FIELD", "field 'digest' is missing")
    rest = {k: v for k, v in cursor.value.items() if k != "digest"}
    if entries["digest"].string() != hashlib.sha256(canonical(rest)).hexdigest():
        cursor.fail("OBD-MAN-DIGEST", "the manifest was changed or damaged: its digest differs")


def _load_manifest(cursor: Cursor) -> Manifest:
    required = "format version requires base expert groups files tensors digest"
    f = cursor.fields(required, "metadata")
    metadata = {k: c.string() for k, c in f["metadata"].entries()} if "metadata" in f else {}
    manifest = Manifest(
        base=_load_base(f["base"]),
        expert=_load_expert(f["expert"]),
        groups=tuple(_load_group(c) for c in f["groups"].items()),
        files={_check_path(k, c): _load_file(c) for k, c in f["files"].entries()},
        tensors={_check_name(k, c): _load_entry(k, c) for k, c in f["tensors"].entries()},
        metadata=metadata,
        version=f["version"].string(),
    )
    _check_groups(manifest, f["groups"], f["files"])
    groups = {g.name: g for g in manifest.groups}
    for name, entry_cursor in f["tensors"].entries():
        _check_entry(manifest, groups, name, entry_cursor)
    return manifest


def _load_base(cursor: Cursor) -> Base:
    f = cursor.fields("fingerprint", "repo revision")
    return Base(fingerprint=_hex64(f["fingerprint"]), **_provenance(cursor, f))


def _load_expert(cursor: Cursor) -> Expert:
    f = cursor.fields("name dtype", "repo revision license")
    name = f["name"].string()
    if not name:
        f["name"].fail("OBD-MAN-VALUE", "is empty")
    licence = f["license"].string() if "license" in f else None
    return Expert(name=name, dtype=_dtype(f["dtype"]), license=licence, **_provenance(cursor, f))


def _provenance(cursor: Cursor, f: Mapping[str, Cursor]) -> dict[str, str | None]:
    if "revision" in f and "repo" not in f:
        cursor.fail("OBD-MAN-FIELD", "field 'revision' stands without 'repo'")
    return {k: f[k].string() if k in f else None for k in ("repo", "revision")}


def _load_group(cursor: Cursor) -> LayerGroup:
    f = cursor.fields("name files")
    name = f["name"].string()
    if not _GROUP.fullmatch(name):
        f["name"].fail("OBD-MAN-VALUE", f"{name!r} is not a group name")
    return LayerGroup(name=name, files=tuple(c.string() for c in f["files"].items()))


def _load_file(cursor: Cursor) -> FileEntry:
    f = cursor.fields("size sha256")
    return FileEntry(size=f["size"].integer(), sha256=_hex64(f["sha256"]))


def _load_entry(name: str, cursor: Cursor) -> TensorEntry:
    f = cursor.fields("group dtype shape base coding")
    dtype = _dtype(f["dtype"])
    shape = _shape(f["shape"], dtype)
    return TensorEntry(
        group=f["group"].string(),
        dtype=dtype,
        shape=shape,
        base=None if f["base"].value is None else _load_base_tensor(name, dtype, shape, f["base"]),
        coding=_load_coding(dtype, f["coding"]),
    )


def _load_base_tensor(name: str, dtype: str, shape: tuple[int, ...], cursor: Cursor) -> BaseTensor:
    f = cursor.fields("digest", "name dtype shape")
    base_dtype = _dtype(f["dtype"]) if "dtype" in f else dtype
    return BaseTensor(
        name=_check_name(f["name"].string(), f["name"]) if "name" in f else name,
        dtype=base_dtype,
        shape=_shape(f["shape"], base_dtype) if "shape" in f else shape,
        digest=_hex64(f["digest"]),
    )


def _load_coding(dtype: str, cursor: Cursor) -> Coding:
    kinds = dict(cursor.entries())
    if "kind" not in kinds:
        cursor.fail("OBD-MAN-FIELD", "field 'kind' is missing")
    kind = kinds["kind"].string()
    if kind == "same":
        cursor.fields("kind")
        return Same()
    if kind == "tied":
        return Tied(to=cursor.fields("kind to")["to"].string())
    if kind == "exact":
        f = cursor.fields("kind digest content", "coded shard")
        coded = _dtype(f["coded"]) if "coded" in f else dtype
        if "coded" in f and (dtype, coded) not in NARROWER:
            f["coded"].fail("OBD-MAN-CODING", f"{dtype} cannot be coded as {coded}")
        return Exact(
            digest=_hex64(f["digest"]),
            content=_hex64(f["content"]),
            coded=coded,
            shard=f["shard"].integer() if "shard" in f else 0,
        )
    if kind == "terms":
        f = cursor.fields("kind digest terms", "shard")
        terms = tuple(_load_term(c) for c in f["terms"].items())
        if not 1 <= len(terms) <= MAX_TERMS:
            f["terms"].fail("OBD-MAN-VALUE", f"{len(terms)} terms, not 1 to {MAX_TERMS}")
        shard = f["shard"].integer() if "shard" in f else 0
        return Terms(digest=_hex64(f["digest"]), terms=terms, shard=shard)
    return kinds["kind"].fail("OBD-MAN-VALUE", f"coding {kind!r} is unknown")


def _load_term(cursor: Cursor) -> SignTerm:
    f = cursor.fields("kind scale")
    kind, scale = f["kind"].string(), f["scale"].string()
    if kind != "sign":
        f["kind"].fail("OBD-MAN-VALUE", f"term {kind!r} is unknown")
    if scale not in SCALE_TENSORS:
        f["scale"].fail("OBD-MAN-VALUE", f"scale {scale!r} is unknown")
    return SignTerm(scale=scale)


def _hex64(cursor: Cursor) -> str:
    text = cursor.string()
    if not _HEX64.fullmatch(text):
        cursor.fail("OBD-MAN-VALUE", "expected 64 lower-case hexadecimal digits")
    return text


def _dtype(cursor: Cursor) -> str:
    name = cursor.string()
    if name not in DTYPES:
        cursor.fail("OBD-MAN-VALUE", f"dtype {name!r} is unknown")
    return name


def _shape(cursor: Cursor, dtype: str) -> tuple[int, ...]:
    shape = tuple(c.integer() for c in cursor.items())
    # Zero-length axes must not hide an absurd product of the others.
    if len(shape) > MAX_DIMENSIONS or nbytes(dtype, tuple(max(n, 1) for n in shape)) > MAX_INTEGER:
        cursor.fail("OBD-MAN-VALUE", "too many dimensions or elements")
    return shape


def _check_name(name: str, cursor: Cursor) -> str:
    if not is_tensor_name(name):
        cursor.fail("OBD-MAN-VALUE", "not a tensor name: empty, too long, or control characters")
    return name


def _check_path(path: str, cursor: Cursor) -> str:
    if not is_path(path):
        cursor.fail("OBD-MAN-PATH", "not a plain relative path")
    return path


def is_tensor_name(name: str) -> bool:
    """True for what may name a tensor (spec 4.6)."""
    return 1 <= _size(name) <= MAX_NAME_BYTES and not _CONTROL.search(name)


def is_path(path: str) -> bool:
    """True for a path that leaves the bundle on no operating system (spec 11)."""
    parts = path.split("/")
    return (
        1 <= _size(path) <= MAX_PATH_BYTES
        and len(parts) <= MAX_PATH_COMPONENTS
        and not any(part in ("", ".", "..") for part in parts)
        and not any(c in path for c in "\\:")
        and not _CONTROL.search(path)
    )


def _size(text: str) -> int:
    """Bytes in UTF-8; 0 for a file name that is not text, which no manifest can hold."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return 0


def _check_groups(manifest: Manifest, groups: Cursor, files: Cursor) -> None:
    names = [g.name for g in manifest.groups]
    if len(set(names)) != len(names):
        groups.fail("OBD-MAN-VALUE", "a group stands twice")
    of_groups: set[str] = set()
    for group in manifest.groups:
        if group.files != group_file_names(group.name, len(group.files)):
            groups.fail("OBD-MAN-FILE", f"files of group {group.name!r} are not named as required")
        of_groups.update(group.files)
    if missing := of_groups - manifest.files.keys():
        groups.fail("OBD-MAN-FILE", f"{min(missing)!r} is not among the files")
    for path in manifest.files:
        if path not in of_groups and not path.startswith(EXPERT_FOLDER):
            files.fail("OBD-MAN-FILE", f"{path!r} belongs to no group and not to {EXPERT_FOLDER}")


def _check_entry(
    manifest: Manifest, groups: Mapping[str, LayerGroup], name: str, cursor: Cursor
) -> None:
    entry = manifest.tensors[name]
    group = groups.get(entry.group)
    if group is None:
        cursor.fail("OBD-MAN-GROUP", f"group {entry.group!r} is not listed")
    coding = entry.coding
    if isinstance(coding, Tied):
        _check_tied(manifest, entry, coding, cursor)
    elif isinstance(coding, Same):
        _check_same(entry, cursor)
    else:
        if coding.shard >= len(group.files):
            cursor.fail("OBD-MAN-GROUP", f"shard {coding.shard} of {len(group.files)}")
        if isinstance(coding, Exact):
            _check_exact(entry, cursor)
        else:
            _check_terms(entry, cursor)


def _check_tied(manifest: Manifest, entry: TensorEntry, coding: Tied, cursor: Cursor) -> None:
    target = manifest.tensors.get(coding.to)
    if target is None or isinstance(target.coding, Tied):
        cursor.fail("OBD-MAN-TIED", f"tied to {coding.to!r}, which is missing or tied itself")
    if entry.base is not None or (entry.dtype, entry.shape) != (target.dtype, target.shape):
        cursor.fail("OBD-MAN-TIED", "a tied tensor has no base and the type and shape of the other")


def _check_same(entry: TensorEntry, cursor: Cursor) -> None:
    base = entry.base
    if base is None or (base.dtype, base.shape) != (entry.dtype, entry.shape):
        cursor.fail("OBD-MAN-CODING", "'same' needs a base tensor of the same type and shape")


def _check_exact(entry: TensorEntry, cursor: Cursor) -> None:
    base = entry.base
    if base is None:
        return
    convertible = {base.dtype, entry.dtype} <= HALF_AND_SINGLE or base.dtype == entry.dtype
    if not convertible or len(base.shape) != len(entry.shape):
        cursor.fail("OBD-MAN-CODING", "the base tensor cannot predict this type or dimensionality")


def _check_terms(entry: TensorEntry, cursor: Cursor) -> None:
    base = entry.base
    if base is None or base.shape != entry.shape:
        cursor.fail("OBD-MAN-CODING", "terms need a base tensor of the same shape")
    if not {base.dtype, entry.dtype} <= HALF_AND_SINGLE:
        cursor.fail("OBD-MAN-CODING", "terms need F32, F16 or BF16 on both sides")
    if len(entry.shape) < 2 or 0 in entry.shape:
        cursor.fail("OBD-MAN-CODING", "terms need a matrix, or a stack of them, with elements")
