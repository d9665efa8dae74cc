"""Bundles in a form that is easy to change, before they are sealed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import blake3

from vectors.coding import CHUNK, Mode, blob_of, chunk_of, predictions_of, split
from vectors.numbers import Tensor, convert, floats, from_float, single, tensor, to_float

SCALE_PARTS: Final = {"matrix": ["matrix"], "row": ["row"], "column": ["column"],
                      "rank1": ["row", "column"]}  # fmt: skip


@dataclass(kw_only=True, slots=True)
class Part:
    """A stored tensor of an entry."""

    suffix: str
    dtype: str
    shape: list[int]
    data: bytes


@dataclass(kw_only=True, slots=True)
class Entry:
    """A tensor of the manifest, and what is stored of it."""

    group: str
    expert: Tensor
    base: dict[str, Any] | None
    coding: dict[str, Any]
    parts: list[Part] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """A sign term: `scales` holds (dtype, values) for each scale tensor."""

    kind: str
    plus: Sequence[bool]
    scales: Sequence[tuple[str, Sequence[float]]]


@dataclass(kw_only=True, slots=True)
class Draft:
    """Everything a case consists of, in a form that is easy to change."""

    base: dict[str, Tensor] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, Entry] = field(default_factory=dict)
    extra: dict[str, bytes] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    layout: str = "usual"
    gap: int = 0

    def _base_field(
        self, name: str, expert: Tensor, base: Tensor, base_name: str
    ) -> dict[str, Any]:
        self.base[base_name or name] = base
        about: dict[str, Any] = {"digest": blake3.blake3(base.data).hexdigest()}
        if base_name and base_name != name:
            about["name"] = base_name
        if base.dtype != expert.dtype:
            about["dtype"] = base.dtype
        if base.shape != expert.shape:
            about["shape"] = list(base.shape)
        return about

    def _add(self, name: str, entry: Entry, shard: int) -> None:
        stored = entry.coding["kind"] in ("exact", "terms")
        if shard:
            entry.coding["shard"] = shard
        files = max(self.groups.get(entry.group, 0), shard + 1 if stored else 0)
        self.groups[entry.group] = files
        self.tensors[name] = entry

    def same(self, name: str, expert: Tensor, *, group: str = "other", base_name: str = "") -> None:
        """A tensor identical to the base's."""
        base = self._base_field(name, expert, expert, base_name)
        self._add(name, Entry(group=group, expert=expert, base=base, coding={"kind": "same"}), 0)

    def tied(self, name: str, to: str, *, group: str = "other") -> None:
        """A tensor with the bytes of another."""
        coding = {"kind": "tied", "to": to}
        self._add(
            name, Entry(group=group, expert=self.tensors[to].expert, base=None, coding=coding), 0
        )

    def exact(
        self, name: str, expert: Tensor, base: Tensor | None = None, *,
        modes: Sequence[Sequence[Mode]] = ((split(),),), coded: str = "", group: str = "other",
        base_name: str = "", shard: int = 0,
    ) -> None:  # fmt: skip
        """A tensor coded exactly; `modes` per chunk and group."""
        dtype = coded or expert.dtype
        values = [convert(bits, expert.dtype, dtype) for bits in expert.bits()]
        assert [convert(v, dtype, expert.dtype) for v in values] == expert.bits()
        predictions = predictions_of(expert.shape, base, dtype)
        chunks = []
        for index, start in enumerate(range(0, len(values), CHUNK)):
            plan = modes[min(index, len(modes) - 1)]
            cut = slice(start, start + CHUNK)
            chunks.append(chunk_of(values[cut], predictions[cut], dtype, plan))
        blob = blob_of(chunks)
        about = None if base is None else self._base_field(name, expert, base, base_name)
        coding: dict[str, Any] = {
            "kind": "exact",
            "content": blake3.blake3(expert.data).hexdigest(),
        }
        if coded:
            coding["coded"] = coded
        parts = [Part(suffix="exact", dtype="U8", shape=[len(blob)], data=blob)]
        entry = Entry(group=group, expert=expert, base=about, coding=coding, parts=parts)
        self._add(name, entry, shard)

    def terms(
        self, name: str, base: Tensor, terms: Sequence[Term], *, dtype: str = "",
        group: str = "mlp", shard: int = 0,
    ) -> None:  # fmt: skip
        """A one-bit tensor; what it rebuilds to is computed here, element by element."""
        shape = base.shape
        parts: list[Part] = []
        for k, term in enumerate(terms):
            signs = Part(suffix=f"sign/{k}", dtype="U8", shape=[*shape[:-1], -(-shape[-1] // 8)],
                         data=packed_signs(term.plus, shape[-1]))  # fmt: skip
            parts.append(signs)
            for part, (scale_dtype, values) in zip(
                SCALE_PARTS[term.kind], term.scales, strict=True
            ):
                scale = floats(scale_dtype, scale_shape(part, shape), values)
                parts.append(Part(suffix=f"{part}/{k}", dtype=scale_dtype,
                                  shape=list(scale.shape), data=scale.data))  # fmt: skip
        expert = rebuilt(base, terms, dtype or base.dtype)
        about = self._base_field(name, expert, base, "")
        kinds = [{"kind": "sign", "scale": term.kind} for term in terms]
        coding = {"kind": "terms", "terms": kinds}
        entry = Entry(group=group, expert=expert, base=about, coding=coding, parts=parts)
        self._add(name, entry, shard)


Case = Callable[[Draft], None]  # fills a draft


def scale_shape(part: str, shape: Sequence[int]) -> list[int]:
    """The shape of a scale tensor."""
    axes = {"matrix": [1, 1], "row": [shape[-2], 1], "column": [1, shape[-1]]}[part]
    return [*shape[:-2], *axes]


def packed_signs(plus: Sequence[bool], columns: int) -> bytes:
    """Sign bits, least significant first, each row padded to whole bytes."""
    result = bytearray()
    for start in range(0, len(plus), columns):
        row = sum(bit << i for i, bit in enumerate(plus[start : start + columns]))
        result += row.to_bytes(-(-columns // 8), "little")
    return bytes(result)


def rebuilt(base: Tensor, terms: Sequence[Term], dtype: str) -> Tensor:
    """Spec 6.1.3 in binary64 with every step rounded to binary32, which is exact for + and *."""
    rows, columns = base.shape[-2:]
    result = []
    for index, bits in enumerate(base.bits()):
        matrix, row, column = index // (rows * columns), index // columns, index % columns
        places = {"matrix": matrix, "row": row, "column": matrix * columns + column}
        delta: float | None = None
        for term in terms:
            size = 1.0
            for part, (scale_dtype, values) in zip(
                SCALE_PARTS[term.kind], term.scales, strict=True
            ):
                stored = to_float(from_float(values[places[part]], scale_dtype), scale_dtype)
                size = single(size * stored)
            step = size if term.plus[index] else -size
            delta = step if delta is None else single(delta + step)
        assert delta is not None
        result.append(from_float(single(to_float(bits, base.dtype) + delta), dtype))
    return tensor(dtype, base.shape, result)
