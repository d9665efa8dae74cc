"""Invalid cases of the directory and of group files."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from vectors.drafts import Draft
from vectors.faults import CONFIG, HEX, MLP, B, Invalid, Table, bad, drop, put, rename, small, swap
from vectors.frames import u32
from vectors.sealing import Fault, unchanged
from vectors.valid_bundles import shards


def header_text(change: Callable[[bytes], bytes], fill: bytes = b" ") -> Callable[[bytes], bytes]:
    """Changes the header of a group file, padding apart, as text."""

    def rewrite(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        text = change(data[8 : 8 + length].rstrip(b" "))
        text += fill * (-(len(text) + 8) % 4096)
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return rewrite


def shrunk(data: bytes) -> bytes:
    """A group file whose header is padded to 64 instead of 4096."""
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].rstrip(b" ")
    text += b" " * (-(len(text) + 8) % 64)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def extra_gap(count: int) -> Callable[[Draft], None]:
    """Makes /padding longer."""

    def change(draft: Draft) -> None:
        draft.gap = count

    return change


def layout(name: str) -> Callable[[Draft], None]:
    """Chooses another layout of the group files."""

    def change(draft: Draft) -> None:
        draft.layout = name

    return change


def directory(tree: dict[str, bytes]) -> None:
    """Turns the manifest into a folder."""
    tree["obd.json/obd.json"] = tree.pop("obd.json")


def directory_cases() -> Iterator[Invalid]:
    """Faults of the bundle directory."""
    fields = b'"dtype":"F16","shape":[1,1]', b'"shape":[1,1],"dtype":"F16"'
    linked = Fault(tree=rename("obd.json", CONFIG), links=(("obd.json", CONFIG),))
    for name, fault, about in (
        ("no-manifest", Fault(tree=drop("obd.json")), "no obd.json"),
        ("manifest-folder", Fault(tree=directory), "obd.json is a folder"),
        ("manifest-link", linked, "obd.json is a link"),
    ):
        yield bad("DIR-MANIFEST", name, about, fault, small)
    for name, fault, about in (
        ("file", Fault(tree=drop(CONFIG), links=((CONFIG, "../obd.json"),)), "a file is a link"),
        ("folder", Fault(links=(("expert/more", "."),)), "a folder is a link"),
        ("nowhere", Fault(links=(("expert/more", "nowhere"),)), "a link that leads nowhere"),
    ):
        yield bad("DIR-LINK", f"link-{name}", about, fault, small)
    for name, path in (
        ("root", "README.md"),
        ("expert", "expert/more.json"),
        ("shard", "norm.obd.safetensors"),
        ("hidden", "expert/.hidden"),
        ("deep", "other/more/obd.json"),
    ):
        fault = Fault(tree=put(path, b"x"))
        yield bad("DIR-UNLISTED", f"unlisted-{name}", f"the unlisted file {path}", fault, small)
    for name, data in (("longer", b"{}\n\n"), ("shorter", b"{}"), ("empty", b"")):
        fault = Fault(tree=put(CONFIG, data))
        yield bad("DIR-SIZE", f"size-{name}", f"a file that is {name}", fault, small)
    fault = Fault(tree=lambda tree: tree.update({MLP: tree[MLP][:-1]}))
    yield bad("DIR-SIZE", "size-group", "a truncated group file", fault)
    yield bad("DIR-SHA256", "sha256-expert", "other bytes", Fault(tree=put(CONFIG, b"[]\n")), small)
    fault = Fault(tree=lambda tree: tree.update({MLP: swap(*fields)(tree[MLP])}))
    yield bad("DIR-SHA256", "sha256-group", "two fields of the header in another order", fault)
    fault = Fault(tree=drop(CONFIG))
    yield bad("DIR-MISSING", "missing-expert", "a missing expert file", fault, small)
    yield bad("DIR-MISSING", "missing-group", "a missing group file", Fault(tree=drop(MLP)))


def header_cases() -> Iterator[Invalid]:
    """Faults of the header of a group file."""
    sound = b'"dtype":"F16"'
    for name, change, about in (
        ("long", lambda data: struct.pack("<Q", len(data)) + data[8:], "a header beyond the end"),
        ("huge", lambda data: b"\xff" * 8 + data[8:], "a header of 2^64-1 bytes"),
        ("limit", lambda data: u32(100_000_001) + data[4:], "a header of 100,000,001 bytes"),
        ("short", lambda data: data[:7], "a file of seven bytes"),
        ("none", lambda data: b"", "an empty file"),
        ("space", header_text(lambda text: b" " + text), "a space before the header"),
        ("nul", header_text(unchanged, b"\0"), "a header padded with NUL"),
        ("newline", header_text(lambda text: text + b"\n"), "a line feed after the header"),
        ("array", header_text(lambda text: b"[" + text + b"]"), "a header that is an array"),
        ("syntax", header_text(lambda text: text[:-1] + b",}"), "a comma before the brace"),
        ("utf8", header_text(swap(b"up.bias", b"up\xffbias")), "a byte that is not UTF-8"),
        ("duplicate", header_text(swap(sound, sound + b"," + sound)), "a duplicate key"),
        ("fraction", header_text(swap(b'"shape":[1,1]', b'"shape":[1,1.0]')), "a fraction"),
        ("deep", header_text(swap(b"[1,1]", b"[" * 16 + b"]" * 16)), "deep nesting"),
        ("unknown", header_text(swap(sound, sound + b',"x":1')), "an unknown field"),
        ("missing", header_text(swap(sound + b",", b"")), "no dtype"),
        ("dtype", header_text(swap(sound, b'"dtype":"F4"')), "an unknown dtype"),
        ("dtype-type", header_text(swap(sound, b'"dtype":16')), "a dtype that is a number"),
        ("shape-type", header_text(swap(b'"shape":[1,1]', b'"shape":1')), "a shape of no array"),
        ("shape-bool", header_text(swap(b"[1,1]", b"[1,true]")), "a shape that holds true"),
        ("shape-negative", header_text(swap(b"[1,1]", b"[-1,-1]")), "negative dimensions"),
        ("shape-nine", header_text(swap(b"[1,1]", b"[1,1,1,1,1,1,1,1,1]")), "nine dimensions"),
        ("offsets-three", header_text(swap(b"[24,26]", b"[24,26,26]")), "three offsets"),
        ("offsets-negative", header_text(swap(b"[0,19]", b"[-0,19]")), "minus zero"),
        ("entry-null", header_text(swap(b"}}", b'},"x":null}')), "an entry that is null"),
    ):
        yield bad("ST-HEADER", f"header-{name}", about, Fault(file=change))
    for name, value in (
        ("no", None),
        ("other", {"format": "pt"}),
        ("string", "obd"),
        ("more", {"format": "obd", "more": ""}),
    ):
        change = put("__metadata__", value) if value else drop("__metadata__")
        yield bad(
            "ST-METADATA", f"metadata-{name}", f"__metadata__ is {value}", Fault(header=change)
        )
    yield bad("ST-ALIGN", "align", "data that begins at a multiple of 64", Fault(file=shrunk))


def layout_cases() -> Iterator[Invalid]:
    """Faults of the data section of a group file."""
    matrix = "up.weight/matrix/0"

    def offsets(name: str, first: int, last: int) -> Callable[[dict[str, Any]], None]:
        return put(name, "data_offsets", [first, last])

    def shifted(header: dict[str, Any]) -> None:
        for key, entry in header.items():
            if key != "__metadata__":
                entry["data_offsets"] = [offset + 1 for offset in entry["data_offsets"]]

    def overlap(header: dict[str, Any]) -> None:
        header["/padding"] = {"dtype": "U8", "shape": [2], "data_offsets": [22, 24]}

    for name, fault, about in (
        ("hole", Fault(header=drop("/padding")), "a hole between two tensors"),
        ("overlap", Fault(header=overlap), "two tensors overlap"),
        (
            "begin",
            Fault(file=lambda data: data[:4096] + b"\0" + data[4096:], header=shifted),
            "a hole before the first tensor",
        ),
        ("beyond", Fault(file=lambda data: data[:-1]), "a tensor ends beyond the file"),
        ("trailing", Fault(file=lambda data: data + b"\0"), "a byte after the last tensor"),
        ("size", Fault(header=put(matrix, "shape", [1, 2])), "offsets that do not fit the shape"),
        ("reversed", Fault(header=offsets(matrix, 26, 24)), "an end before the begin"),
        ("huge", Fault(header=put(matrix, "shape", [2**53 - 1] * 8)), "a shape of 2^424 elements"),
    ):
        yield bad("ST-OFFSETS", f"offsets-{name}", about, fault)


def stored_cases() -> Iterator[Invalid]:
    """Stored tensors that are not the implied ones, and their padding."""
    matrix, signs = "up.weight/matrix/0", "up.weight/sign/0"
    no_parts = Fault(
        draft=lambda d: d.tensors["up.bias"].parts.clear(),
        manifest=put(*B, "coding", "digest", HEX),
    )
    for name, fault, about in (
        ("renamed", Fault(header=rename(signs, "up.weight/sign/1")), "a tensor of another name"),
        ("unknown", Fault(header=rename("/padding", "/filler")), "a tensor of no entry"),
        ("missing", no_parts, "a tensor of the manifest is not stored"),
        ("scale", Fault(header=rename(matrix, "up.weight/row/0")), "a scale of another kind"),
    ):
        yield bad("ST-TENSORS", f"tensors-{name}", about, fault)
    fault = Fault(manifest=put("tensors", "0.bias", "coding", "shard", 1))
    yield bad("ST-TENSORS", "tensors-shard", "a tensor stored in another shard", fault, shards)
    pad = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    for name, fault, about in (
        ("nonzero", Fault(file=lambda data: data[:-3] + b"\1" + data[-2:]), "a padding byte of 1"),
        ("eight", Fault(draft=extra_gap(8)), "nine bytes of padding"),
        ("shape", Fault(header=put("/padding", "shape", [1, 1])), "padding of two axes"),
        ("dtype", Fault(header=put("/padding", "dtype", "BOOL")), "padding of dtype BOOL"),
        ("empty", Fault(draft=layout("scales first"), header=put("/padding", pad)), "no padding"),
    ):
        yield bad("ST-PADDING", f"padding-{name}", about, fault)
    fault = Fault(draft=layout("unpadded"))
    yield bad("ST-ITEM-ALIGN", "item-align", "an F16 scale at an odd offset", fault)


CASES: Final[tuple[Table, ...]] = (
    directory_cases,
    header_cases,
    layout_cases,
    stored_cases,
)
