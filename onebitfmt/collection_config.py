"""What config.json of a collection says: its records, and their strict canonical JSON.

`load_config` and `dump_config` are inverse. Whatever bytes a stranger sends, reading them succeeds
or raises `FormatError`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from onebitfmt.errors import FormatError, UnsupportedError
from onebitfmt.format.manifest import FILE_NAME
from onebitfmt.format.strict_json import Cursor, canonical, parse
from onebitfmt.routing.names import MAX_EXPERTS, is_expert_name

CONFIG: Final = "config.json"
EXPERTS: Final = "experts"
FORMAT: Final = "obd-collection"
VERSION: Final = "1.0"
CONFIG_ID: Final = "OBD-COLL-CONFIG"
MAX_CONFIG_BYTES: Final = 4 << 20
# As canonical JSON writes it.
_OURS: Final = f'"format":"{FORMAT}"'.encode()

_HEX64: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectionBase:
    """The base model: fingerprint of its tensors, and its place on the Hub when known."""

    fingerprint: str
    repo: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        """A short name for messages."""
        known = f"{self.repo}@{self.revision}" if self.revision else self.repo
        return f"{known or 'a local model'} (fingerprint {self.fingerprint[:12]})"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertGroup:
    """A layer group of an expert.

    `nbytes` are those of its files, `full` those of its tensors in the expert's checkpoint;
    `onebit` counts the elements that are one-bit, `codings` the tensors of each coding.
    """

    name: str
    nbytes: int
    full: int
    elements: int
    onebit: int
    codings: Mapping[str, int]
    relative_squared_error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertEntry:
    """A bundle of the collection, as its own manifest describes it.

    `sha256` is that of the manifest, `nbytes` the bundle's bytes on disk; `repo` and `revision` are
    the fine-tune that it was made from, when known.
    """

    path: str
    sha256: str
    nbytes: int
    dtype: str
    groups: tuple[ExpertGroup, ...]
    repo: str | None = None
    revision: str | None = None
    license: str | None = None

    @property
    def full(self) -> int:
        """Bytes of the tensors in the expert's checkpoint."""
        return sum(group.full for group in self.groups)


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterEntry:
    """The router's file: SHA-256 and bytes."""

    sha256: str
    nbytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What config.json says; `recipe` is the default merge recipe as YAML text."""

    base: CollectionBase
    experts: Mapping[str, ExpertEntry]
    recipe: str
    router: RouterEntry | None = None


def dump_config(config: Config) -> bytes:
    """The canonical bytes of config.json."""
    base = {name: getattr(config.base, name) for name in config.base.__slots__}
    value: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "base": {k: v for k, v in base.items() if v is not None},
        "experts": {name: _dump_expert(entry) for name, entry in config.experts.items()},
        "recipe": config.recipe,
    }
    if config.router is not None:
        value["router"] = {"sha256": config.router.sha256, "bytes": config.router.nbytes}
    return canonical(value)


def _dump_expert(entry: ExpertEntry) -> dict[str, Any]:
    value = {name: getattr(entry, name) for name in ("repo", "revision", "license")}
    return {k: v for k, v in value.items() if v is not None} | {
        "path": entry.path,
        "sha256": entry.sha256,
        "bytes": entry.nbytes,
        "dtype": entry.dtype,
        "groups": [_dump_group(group) for group in entry.groups],
    }


def _dump_group(group: ExpertGroup) -> dict[str, Any]:
    value: dict[str, Any] = {
        "name": group.name,
        "bytes": group.nbytes,
        "full": group.full,
        "elements": group.elements,
        "onebit": group.onebit,
        "codings": dict(group.codings),
    }
    if group.relative_squared_error is not None:
        value["relative_squared_error"] = group.relative_squared_error
    return value


def load_config(data: bytes, where: str = CONFIG) -> Config:
    """The record in these bytes; `where` names them in errors.

    Raises `UnsupportedError` for a newer major version, else `FormatError`.
    """
    if len(data) > MAX_CONFIG_BYTES:
        raise FormatError(CONFIG_ID, where, f"larger than {MAX_CONFIG_BYTES} bytes")
    if _OURS not in data:
        # A model's checkpoint has a config.json, too; what the strict reader says of it helps none.
        problem = "not the config.json of a collection; a model becomes a bundle with: obd convert"
        raise FormatError(CONFIG_ID, where, problem)
    value = parse(data, where)
    cursor = Cursor(value=value, path=where)
    try:
        config = _load_config(cursor)
    except UnsupportedError:
        raise
    except FormatError as e:
        raise FormatError(CONFIG_ID, e.where, e.problem) from None
    if canonical(value) != data:
        raise FormatError(CONFIG_ID, where, "not in canonical form")
    return config


def _load_config(cursor: Cursor) -> Config:
    head = dict(cursor.entries())
    if "format" not in head or head["format"].string() != FORMAT:
        cursor.fail(CONFIG_ID, "this is not the config.json of a collection")
    version = head["version"].string() if "version" in head else ""
    if version.partition(".")[0] != VERSION.partition(".")[0]:
        problem = f"collection version {version!r} needs another reader; update onebitfmt"
        raise UnsupportedError("OBD-COLL-VERSION", cursor.path, problem)
    f = cursor.fields("format version base experts recipe", "router")
    experts = {name: _load_expert(name, c) for name, c in f["experts"].entries()}
    if not 1 <= len(experts) <= MAX_EXPERTS:
        f["experts"].fail(CONFIG_ID, f"expected 1 to {MAX_EXPERTS} experts")
    # File systems that ignore case would mix the two.
    if len({name.lower() for name in experts}) < len(experts):
        f["experts"].fail(CONFIG_ID, "two names differ in upper and lower case alone")
    router = None
    if "router" in f:
        g = f["router"].fields("sha256 bytes")
        router = RouterEntry(sha256=_hex64(g["sha256"]), nbytes=g["bytes"].integer())
    return Config(
        base=_load_base(f["base"]), experts=experts, recipe=f["recipe"].string(), router=router
    )


def _load_base(cursor: Cursor) -> CollectionBase:
    f = cursor.fields("fingerprint", "repo revision")
    repo, revision = _source(cursor, f)
    return CollectionBase(fingerprint=_hex64(f["fingerprint"]), repo=repo, revision=revision)


def _source(cursor: Cursor, f: Mapping[str, Cursor]) -> tuple[str | None, str | None]:
    if "revision" in f and "repo" not in f:
        cursor.fail(CONFIG_ID, "field 'revision' stands without 'repo'")
    return _optional(f, "repo"), _optional(f, "revision")


def _optional(f: Mapping[str, Cursor], name: str) -> str | None:
    if name not in f:
        return None
    text = f[name].string()
    if not text.isprintable():
        f[name].fail(CONFIG_ID, "has control characters")
    return text


def _load_expert(name: str, cursor: Cursor) -> ExpertEntry:
    if not is_expert_name(name):
        cursor.fail(CONFIG_ID, f"{name!r} is not a name of an expert")
    f = cursor.fields("path sha256 bytes dtype groups", "repo revision license")
    if f["path"].string() != bundle_path(name):
        f["path"].fail(CONFIG_ID, f"the path of this expert is {bundle_path(name)}")
    repo, revision = _source(cursor, f)
    return ExpertEntry(
        path=bundle_path(name),
        sha256=_hex64(f["sha256"]),
        nbytes=f["bytes"].integer(),
        dtype=f["dtype"].string(),
        groups=tuple(_load_group(c) for c in f["groups"].items()),
        repo=repo,
        revision=revision,
        license=_optional(f, "license"),
    )


def _load_group(cursor: Cursor) -> ExpertGroup:
    f = cursor.fields("name bytes full elements onebit codings", "relative_squared_error")
    return ExpertGroup(
        name=f["name"].string(),
        nbytes=f["bytes"].integer(),
        full=f["full"].integer(),
        elements=f["elements"].integer(),
        onebit=f["onebit"].integer(),
        codings={name: count.integer() for name, count in f["codings"].entries()},
        relative_squared_error=_optional(f, "relative_squared_error"),
    )


def _hex64(cursor: Cursor) -> str:
    text = cursor.string()
    if not _HEX64.fullmatch(text):
        cursor.fail(CONFIG_ID, "expected 64 lower-case hexadecimal digits")
    return text


def bundle_path(name: str) -> str:
    """The folder of an expert's bundle in its collection."""
    return f"{EXPERTS}/{name}.obd"


def holds_collection(folder: Path) -> bool:
    """True for a folder with a config.json that is not a bundle's folder."""
    return (folder / CONFIG).is_file() and not (folder / FILE_NAME).is_file()
