"""The safetensors container: read headers of any file, write group files in one pass (spec 5).

Reading follows the order of checks of the reference implementation: nothing is allocated from a
number that was not checked. Writing streams: payloads go to disk as they come, the small scale
tensors and the header last, so that memory does not grow with the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from onebitfmt.errors import FormatError
from onebitfmt.format.dtypes import DTYPES, nbytes
from onebitfmt.format.limits import MAX_DIMENSIONS, MAX_HEADER_BYTES, MAX_INTEGER
from onebitfmt.format.strict_json import Cursor, parse

Buffer = bytes | bytearray | memoryview

DATA_ALIGNMENT: Final = 4096
ITEM_ALIGNMENT: Final = 8
PADDING: Final = "/padding"
GROUP_METADATA: Final = {"format": "obd"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A tensor in a file: type, shape, and its bytes' offsets from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """A safetensors header: spans by name in file order, and where the data section begins."""

    spans: Mapping[str, Span]
    metadata: Mapping[str, str]
    data_begin: int


def read_header(path: Path) -> Header:
    """The checked header of a safetensors file.

    Raises `FormatError` OBD-ST-HEADER or OBD-ST-OFFSETS, and OSError where the file is unreadable.
    """
    where = str(path)
    with path.open("rb") as f:
        size = os.fstat(f.fileno()).st_size
        start = f.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > MAX_HEADER_BYTES or 8 + length > size:
            problem = "not a safetensors file, or cut short: bad header length"
            raise FormatError("OBD-ST-HEADER", where, problem)
        data = f.read(length)
    spans, metadata = _parse_header(data, where, 8 + length)
    _check_offsets(spans, 8 + length, size, where)
    return Header(spans=spans, metadata=metadata, data_begin=8 + length)


def _parse_header(data: bytes, where: str, begin: int) -> tuple[dict[str, Span], dict[str, str]]:
    text = data.rstrip(b" ")
    if not (text.startswith(b"{") and text.endswith(b"}")):
        raise FormatError("OBD-ST-HEADER", where, "the header is not an object and spaces")
    try:
        cursor = Cursor(value=parse(text, where), path=where)
        entries = dict(cursor.entries())
        metadata = entries.pop("__metadata__", None)
        spans = {name: _parse_span(c, begin) for name, c in entries.items()}
    except FormatError as e:
        raise FormatError("OBD-ST-HEADER", e.where, e.problem) from None
    in_order = sorted(spans.items(), key=lambda item: (item[1].begin, item[1].end))
    return dict(in_order), {} if metadata is None else _parse_metadata(metadata)


def _parse_metadata(cursor: Cursor) -> dict[str, str]:
    try:
        return {k: c.string() for k, c in cursor.entries()}
    except FormatError as e:
        raise FormatError("OBD-ST-METADATA", e.where, e.problem) from None


def _parse_span(cursor: Cursor, begin: int) -> Span:
    f = cursor.fields("dtype shape data_offsets")
    dtype = f["dtype"].string()
    if dtype not in DTYPES:
        f["dtype"].fail("OBD-ST-HEADER", f"dtype {dtype!r} is not supported")
    shape = tuple(c.integer() for c in f["shape"].items())
    offsets = [c.integer() for c in f["data_offsets"].items()]
    if len(offsets) != 2 or len(shape) > MAX_DIMENSIONS:
        cursor.fail("OBD-ST-HEADER", "expected two offsets and few dimensions")
    return Span(dtype=dtype, shape=shape, begin=begin + offsets[0], end=begin + offsets[1])


def _check_offsets(spans: Mapping[str, Span], begin: int, size: int, where: str) -> None:
    position = begin
    for name, span in spans.items():
        if span.begin != position or span.end < span.begin:
            raise FormatError("OBD-ST-OFFSETS", where, f"hole or overlap before {name!r}")
        if span.end - span.begin != nbytes(span.dtype, span.shape):
            raise FormatError("OBD-ST-OFFSETS", where, f"size of {name!r} is not that of its shape")
        # As in the manifest, zero-length axes must not hide an absurd product of the others.
        if nbytes(span.dtype, tuple(max(n, 1) for n in span.shape)) > MAX_INTEGER:
            raise FormatError("OBD-ST-OFFSETS", where, f"the shape of {name!r} is absurd")
        position = span.end
    if position != size:
        problem = f"the tensors end at byte {position}, the file at {size}"
        raise FormatError("OBD-ST-OFFSETS", where, problem)


def check_group_file(path: Path, header: Header, expected: Iterable[str]) -> None:
    """Hold a bundle's group file to what the spec adds to safetensors (spec section 5).

    `expected` are the stored names that the manifest implies for this file.
    Raises `FormatError` OBD-ST-METADATA, -ALIGN, -TENSORS, -PADDING or -ITEM-ALIGN.
    """
    where = str(path)
    if header.metadata != GROUP_METADATA:
        raise FormatError("OBD-ST-METADATA", where, f"__metadata__ is not {GROUP_METADATA}")
    if header.data_begin % DATA_ALIGNMENT:
        problem = f"data begins at {header.data_begin}, not at a multiple of {DATA_ALIGNMENT}"
        raise FormatError("OBD-ST-ALIGN", where, problem)
    names = set(expected)
    if odd := (names ^ header.spans.keys()) - {PADDING}:
        name = min(odd)
        problem = f"{name!r} is {'missing' if name in names else 'not in the manifest'}"
        raise FormatError("OBD-ST-TENSORS", where, problem)
    _check_padding(path, header)
    for name, span in header.spans.items():
        if span.begin % DTYPES[span.dtype].itemsize:
            raise FormatError("OBD-ST-ITEM-ALIGN", where, f"{name!r} begins at byte {span.begin}")


def _check_padding(path: Path, header: Header) -> None:
    span = header.spans.get(PADDING)
    if span is None:
        return
    size = span.end - span.begin
    fits = span.dtype == "U8" and len(span.shape) == 1 and 1 <= size < ITEM_ALIGNMENT
    if fits:
        with path.open("rb") as f:
            f.seek(span.begin)
            fits = not any(f.read(size))
    if not fits:
        raise FormatError("OBD-ST-PADDING", str(path), "padding is not 1 to 7 zero bytes")


def encode_header(spans: Mapping[str, Span], metadata: Mapping[str, str], data_begin: int) -> bytes:
    """The header that puts the data section at `data_begin`; offsets in `spans` are absolute."""
    value: dict[str, object] = {"__metadata__": dict(metadata)}
    for name, s in spans.items():
        offsets = [s.begin - data_begin, s.end - data_begin]
        value[name] = {"dtype": s.dtype, "shape": list(s.shape), "data_offsets": offsets}
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    room = data_begin - 8
    if len(text) > room:
        raise ValueError(f"header of {len(text)} bytes does not fit into {room}")
    return room.to_bytes(8, "little") + text.ljust(room)


def aligned(n: int, multiple: int) -> int:
    """The first multiple of `multiple` that is not below n."""
    return -(-n // multiple) * multiple


def layout(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[dict[str, Span], bytes]:
    """Spans and header bytes of a file whose tensors (dtype, shape) are all known beforehand."""
    total = sum(nbytes(dtype, shape) for dtype, shape in tensors.values())
    largest = max([total, *(axis for _, shape in tensors.values() for axis in shape)])
    bound = header_bound({n: len(shape) for n, (_, shape) in tensors.items()}, metadata, largest)
    begin = aligned(bound, DATA_ALIGNMENT)
    spans: dict[str, Span] = {}
    position = begin
    for name, (dtype, shape) in tensors.items():
        end = position + nbytes(dtype, shape)
        spans[name] = Span(dtype=dtype, shape=shape, begin=position, end=end)
        position = end
    return spans, encode_header(spans, metadata, begin)


def header_bound(dimensions: Mapping[str, int], metadata: Mapping[str, str], largest: int) -> int:
    """An upper bound on 8 + header length for tensors of these names and numbers of axes.

    No integer in the header is above `largest`.
    """
    digits = len(str(largest)) + 1  # and a comma
    names = sum(len(json.dumps(name, ensure_ascii=False).encode()) for name in dimensions)
    # Everything else of an entry, with the longest dtype, is 54 bytes.
    entries = sum(54 + digits * (n + 2) for n in dimensions.values())
    return 8 + names + entries + len(json.dumps(dict(metadata), ensure_ascii=False).encode()) + 32


@dataclass(kw_only=True, slots=True)
class GroupFileWriter:
    """Writes one group file in a single pass.

    `dimensions` names the tensors that may come, with their numbers of axes, and `largest` bounds
    the file's size and every axis, so that room for the header is kept.
    """

    file: BinaryIO
    dimensions: Mapping[str, int]
    largest: int
    _begin: int = field(init=False)
    _position: int = field(init=False)
    _spans: dict[str, Span] = field(init=False, default_factory=dict)
    _small: dict[str, tuple[str, tuple[int, ...], bytes]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        names = {**self.dimensions, PADDING: 1}
        self._begin = aligned(header_bound(names, GROUP_METADATA, self.largest), DATA_ALIGNMENT)
        self._position = self._begin
        self.file.seek(self._begin)

    @property
    def is_empty(self) -> bool:
        """True while nothing was written."""
        return not self._spans and not self._small

    def size(self, name: str) -> int:
        """Bytes of a tensor that was written or kept."""
        if name in self._small:
            return len(self._small[name][2])
        return self._spans[name].end - self._spans[name].begin

    def write_payload(
        self, name: str, shape: tuple[int, ...] | None, parts: Iterable[Buffer]
    ) -> None:
        """Append a U8 tensor whose bytes come in parts; without a shape it has one axis."""
        begin = self._position
        for part in parts:
            self._position += self.file.write(part)
        own = (self._position - begin,) if shape is None else shape
        self._spans[name] = Span(dtype="U8", shape=own, begin=begin, end=self._position)

    def add_small(self, name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
        """Keep a small tensor, to be written behind the payloads."""
        self._small[name] = (dtype, shape, data)

    def finish(self) -> None:
        """Write the small tensors and the header; the file is then complete but not yet synced."""
        if self._small and self._position % ITEM_ALIGNMENT:
            size = -self._position % ITEM_ALIGNMENT
            self.write_payload(PADDING, (size,), [bytes(size)])
        # Larger items first: each is then aligned by the one before it.
        for name, (dtype, shape, data) in sorted(
            self._small.items(), key=lambda item: -DTYPES[item[1][0]].itemsize
        ):
            end = self._position + self.file.write(data)
            self._spans[name] = Span(dtype=dtype, shape=shape, begin=self._position, end=end)
            self._position = end
        self.file.seek(0)
        self.file.write(encode_header(self._spans, GROUP_METADATA, self._begin))
