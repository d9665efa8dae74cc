"""From a draft to the files of a bundle, with a fault on the way where a case has one."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import blake3

from vectors.drafts import Draft
from vectors.numbers import Tensor


def nothing(value: Any) -> None:
    """No change in place."""


def unchanged(data: bytes) -> bytes:
    """No change of bytes."""
    return data


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Where a case departs from a sound bundle; all that is derived later is derived anew."""

    draft: Callable[[Draft], None] = nothing
    header: Callable[[dict[str, Any]], None] = nothing
    file: Callable[[bytes], bytes] = unchanged
    manifest: Callable[[dict[str, Any]], None] = nothing
    text: Callable[[bytes], bytes] = unchanged
    tree: Callable[[dict[str, bytes]], None] = nothing
    base: Callable[[dict[str, Tensor]], None] = nothing
    base_file: Callable[[bytes], bytes] = unchanged
    links: tuple[tuple[str, str], ...] = ()


def canonical(value: Any) -> bytes:
    """The canonical form of the specification."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key in which digit runs count as numbers."""
    pieces = re.findall("[0-9]+|[^0-9]+", name)
    return [(0, int(p), "") if p[0] in "0123456789" else (1, 0, p) for p in pieces]


def safetensors(
    tensors: Sequence[tuple[str, str, Sequence[int], bytes]], *, metadata: dict[str, str] | None,
    align: int, change: Callable[[dict[str, Any]], None] = nothing,
) -> bytes:  # fmt: skip
    """A safetensors file with the tensors in the order given."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, dtype, shape, data in tensors:
        offsets = [end, end + len(data)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        end += len(data)
    change(header)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % align)
    return struct.pack("<Q", len(text)) + text + b"".join(data for *_, data in tensors)


def group_file(draft: Draft, group: str, shard: int, fault: Fault) -> bytes:
    """Payloads in model order, padding, then scales, the wider first."""
    stored = [
        (f"{name}/{part.suffix}", part.dtype, part.shape, part.data)
        for name, entry in sorted(draft.tensors.items(), key=lambda item: natural(item[0]))
        if entry.group == group and entry.coding.get("shard", 0) == shard
        for part in entry.parts
    ]
    payloads = [part for part in stored if part[1] not in ("F32", "F16")]
    scales = [part for dtype in ("F32", "F16") for part in stored if part[1] == dtype]
    unit = 4 if any(part[1] == "F32" for part in stored) else 2
    gap = -sum(len(part[3]) for part in payloads) % unit if scales else 0
    gap = 0 if draft.layout == "unpadded" else gap + draft.gap
    padding = [("/padding", "U8", [gap], bytes(gap))] if gap else []
    backwards = draft.layout == "scales first"
    order = scales + payloads[::-1] if backwards else payloads + padding + scales
    meta = {"format": "obd"}
    return fault.file(safetensors(order, metadata=meta, align=4096, change=fault.header))


def file_names(group: str, count: int) -> list[str]:
    """The names of a group's files."""
    if count < 2:
        return [f"{group}.obd.safetensors"] * count
    return [f"{group}-{i + 1:05}-of-{count:05}.obd.safetensors" for i in range(count)]


def fingerprint(base: dict[str, Tensor]) -> str:
    """Spec 7."""
    rows = [[n, t.dtype, list(t.shape), blake3.blake3(t.data).hexdigest()] for n, t in base.items()]
    return hashlib.sha256(canonical(sorted(rows))).hexdigest()


def manifest_of(draft: Draft, files: dict[str, bytes]) -> dict[str, Any]:
    """The manifest without its digest."""
    tensors = {}
    for name, entry in draft.tensors.items():
        coding = dict(entry.coding)
        if entry.parts:
            joined = b"".join(part.data for part in entry.parts)
            coding["digest"] = blake3.blake3(joined).hexdigest()
        tensors[name] = {"group": entry.group, "dtype": entry.expert.dtype, "base": entry.base,
                         "shape": list(entry.expert.shape), "coding": coding}  # fmt: skip
    described = {
        path: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for path, data in files.items()
    }
    groups = [{"name": name, "files": file_names(name, n)} for name, n in draft.groups.items()]
    return {
        "format": "obd", "version": "1.0", "requires": [],
        "base": {"fingerprint": fingerprint(draft.base)},
        "expert": {"name": "example", "dtype": "BF16"},
        "groups": groups, "files": described, "tensors": tensors, **draft.head,
    }  # fmt: skip


def seal(draft: Draft, fault: Fault) -> dict[str, bytes]:
    """The files of a bundle; every fault is applied before whatever vouches for it is computed."""
    fault.draft(draft)
    files = {
        name: group_file(draft, group, shard, fault)
        for group, count in draft.groups.items()
        for shard, name in enumerate(file_names(group, count))
    }
    files.update(draft.extra)
    manifest = manifest_of(draft, files)
    fault.manifest(manifest)
    manifest["digest"] = hashlib.sha256(canonical(manifest)).hexdigest()
    tree = {"obd.json": fault.text(canonical(manifest)), **files}
    fault.tree(tree)
    return tree
