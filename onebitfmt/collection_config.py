"""What config.json of a collection says: its records, and their strict canonical JSON.

`load_config` and `dump_config` are inverse. Whatever bytes a stranger sends, reading them succeeds
or raises `FormatError`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from onebitfmt.errors import FormatError, UnsupportedError
from onebitfmt.format.manifest_json import is_path
from onebitfmt.format.strict_json import Cursor, canonical, parse
from onebitfmt.routing.names import MAX_EXPERTS, is_expert_name

CONFIG: Final = "config.json"
EXPERTS: Final = "experts"
FORMAT: Final = "obd-collection"
VERSION: Final = "1.0"
CONFIG_ID: Final = "OBD-COLL-CONFIG"
MAX_CONFIG_BYTES: Final = 4 << 20

_HEX64: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectionBase:
    """The base model: fingerprint of its tensors, and where it is.

    `repo` and `revision` are its place on the Hub, `path` its folder inside the collection, when
    there is one.
    """

    fingerprint: str
    repo: str | None = None
    revision: str | None = None
    path: str | None = None

    def __str__(self) -> str:
        """A short name for messages."""
        known = f"{self.repo}@{self.revision}" if self.revision else self.repo
        return f"{known or self.path or 'a local model'} (fingerprint {self.fingerprint[:12]})"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertGroup:
    """A layer group of an expert: bytes of its files, elements, and those that are one-bit."""

    name: str
    nbytes: int
    elements: int
    onebit: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertEntry:
    """A bundle of the collection: its folder, SHA-256 of its manifest, bytes on disk, groups."""

    path: str
    sha256: str
    nbytes: int
    groups: tuple[ExpertGroup, ...]


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
    groups = [
        {"name": g.name, "bytes": g.nbytes, "elements": g.elements, "onebit": g.onebit}
        for g in entry.groups
    ]
    return {
        "path": entry.path,
        "sha256": entry.sha256,
        "bytes": entry.nbytes,
        "groups": groups,
    }


def load_config(data: bytes, where: str = CONFIG) -> Config:
    """The record in these bytes; `where` names them in errors.

    Raises `UnsupportedError` for a newer major version, else `FormatError`.
    """
    if len(data) > MAX_CONFIG_BYTES:
        raise FormatError(CONFIG_ID, where, f"larger than {MAX_CONFIG_BYTES} bytes")
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
    router = None
    if "router" in f:
        g = f["router"].fields("sha256 bytes")
        router = RouterEntry(sha256=_hex64(g["sha256"]), nbytes=g["bytes"].integer())
    return Config(
        base=_load_base(f["base"]), experts=experts, recipe=f["recipe"].string(), router=router
    )


def _load_base(cursor: Cursor) -> CollectionBase:
    f = cursor.fields("fingerprint", "repo revision path")
    if "revision" in f and "repo" not in f:
        cursor.fail(CONFIG_ID, "field 'revision' stands without 'repo'")
    path = f["path"].string() if "path" in f else None
    if path is not None and not is_path(path):
        f["path"].fail(CONFIG_ID, "not a plain relative path")
    return CollectionBase(
        fingerprint=_hex64(f["fingerprint"]),
        repo=f["repo"].string() if "repo" in f else None,
        revision=f["revision"].string() if "revision" in f else None,
        path=path,
    )


def _load_expert(name: str, cursor: Cursor) -> ExpertEntry:
    if not is_expert_name(name):
        cursor.fail(CONFIG_ID, f"{name!r} is not a name of an expert")
    f = cursor.fields("path sha256 bytes groups")
    if f["path"].string() != bundle_path(name):
        f["path"].fail(CONFIG_ID, f"the path of this expert is {bundle_path(name)}")
    groups = []
    for c in f["groups"].items():
        g = c.fields("name bytes elements onebit")
        groups.append(
            ExpertGroup(
                name=g["name"].string(),
                nbytes=g["bytes"].integer(),
                elements=g["elements"].integer(),
                onebit=g["onebit"].integer(),
            )
        )
    return ExpertEntry(
        path=bundle_path(name),
        sha256=_hex64(f["sha256"]),
        nbytes=f["bytes"].integer(),
        groups=tuple(groups),
    )


def _hex64(cursor: Cursor) -> str:
    text = cursor.string()
    if not _HEX64.fullmatch(text):
        cursor.fail(CONFIG_ID, "expected 64 lower-case hexadecimal digits")
    return text


def bundle_path(name: str) -> str:
    """The folder of an expert's bundle in its collection."""
    return f"{EXPERTS}/{name}.obd"
