from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from onebitfmt.errors import FormatError
from onebitfmt.format.safetensors import (
    GroupFileWriter,
    Header,
    Span,
    aligned,
    check_group_file,
    encode_header,
    header_bound,
    layout,
    read_header,
)

TORCH: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SHAPES: Final[list[tuple[int, ...]]] = [(), (1,), (3, 5), (0,), (2, 0, 3), (1,) * 8]
METADATA: Final = {"format": "obd"}


def random_bytes(n: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(n)


def tensor(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of arbitrary bits; a bool's are 0 and 1."""
    kind = TORCH[dtype]
    size = kind.itemsize * torch.Size(shape).numel()
    data = random_bytes(size, len(shape))
    if dtype == "BOOL":
        data = bytes(byte & 1 for byte in data)
    flat = torch.frombuffer(bytearray(data), dtype=kind) if size else torch.empty(0, dtype=kind)
    return flat.reshape(shape)


def bits(value: torch.Tensor) -> bytes:
    if not value.numel():
        return b""
    data: bytes = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return data


def read_all(path: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """What the library of the format's makers finds in a file."""
    with safe_open(path, framework="pt") as f:
        tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    return {name: (t.dtype, tuple(t.shape), bits(t)) for name, t in tensors.items()}


def raw(header: object, data: bytes = b"", pad: int = 0) -> bytes:
    """A file with this header, whatever it is, and this data."""
    text = header if isinstance(header, bytes) else json.dumps(header, ensure_ascii=False).encode()
    text += b" " * pad
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refusal(path: Path) -> FormatError:
    with pytest.raises(FormatError) as caught:
        read_header(path)
    assert caught.value.where.startswith(str(path))
    return caught.value


# --- reading what others wrote --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TORCH)
def test_files_of_the_reference_library_are_read(dtype: str, tmp_path: Path) -> None:
    tensors = {f"t{i}": tensor(dtype, shape) for i, shape in enumerate(SHAPES)}
    tensors["other"] = tensor("F64", (2,))
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, {"by": "the reference", "\u00e9": ""})
    header = read_header(path)
    data = path.read_bytes()
    assert header.metadata == {"by": "the reference", "\u00e9": ""}
    assert header.data_begin == 8 + int.from_bytes(data[:8], "little")
    found = {n: (s.dtype, s.shape, data[s.begin : s.end]) for n, s in header.spans.items()}
    expected = {n: (dtype, tuple(t.shape), bits(t)) for n, t in tensors.items()}
    assert found == expected | {"other": ("F64", (2,), bits(tensors["other"]))}


def test_spans_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    tensors = {
        "b": entry("U8", [1], 2, 3),
        "a": entry("U8", [2], 0, 2),
        "e": entry("U8", [0], 2, 2),
    }
    path = write(tmp_path / "x", raw(tensors, b"abc"))
    assert list(read_header(path).spans) == ["a", "e", "b"]


@pytest.mark.parametrize(
    "data",
    [
        raw({}),
        raw({"__metadata__": {}}),
        raw({}, pad=100),
        raw(b'{ "a" :\n{"dtype":"U8","shape":[1],"data_offsets":[0,1]}\t} ', b"x"),
        raw({"__metadata": entry("U8", [], 0, 1)}, b"x"),
        raw({"a": entry("U8", [2**53 - 1, 0], 0, 0)}),
    ],
)
def test_odd_but_valid_files_are_read(data: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "x", data)
    with safe_open(path, framework="numpy") as f:
        assert set(read_header(path).spans) == set(f.keys())


# --- reading what nobody should have written ------------------------------------------------------

ONE: Final = {"a": entry("U8", [4], 0, 4)}
DATA: Final = b"abcd"

HEADER_FAULTS: Final[dict[str, bytes]] = {
    "empty file": b"",
    "seven bytes": bytes(7),
    "no header": bytes(8),
    "longer than the file": (100).to_bytes(8, "little") + b"{}",
    "over the limit": (100_000_001).to_bytes(8, "little") + b"{}",
    "huge": b"\xff" * 8 + b"{}",
    "array": raw([]),
    "string": raw("a"),
    "leading space": raw(b" {}"),
    "byte order mark": raw(b"\xef\xbb\xbf{}"),
    "trailing newline": raw(b"{}\n"),
    "trailing tab": raw(b"{}\t"),
    "trailing zero": raw(b"{}\x00"),
    "only spaces": raw(b"", pad=8),
    "second value": raw(b"{}{}"),
    "not utf-8": raw(b'{"\xff":0}'),
    "surrogate": raw(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "duplicate": raw(
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
        b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    ),
    "fraction": raw(b'{"a":{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}}', DATA),
    "exponent": raw(b'{"a":{"dtype":"U8","shape":[4e0],"data_offsets":[0,4]}}', DATA),
    "nan": raw(b'{"a":NaN}'),
    "deep": raw(b'{"a":' * 5000),
    "too large a number": raw({"a": entry("U8", [2**53], 0, 0)}),
    "no dtype": raw({"a": {"shape": [4], "data_offsets": [0, 4]}}, DATA),
    "no shape": raw({"a": {"dtype": "U8", "data_offsets": [0, 4]}}, DATA),
    "no offsets": raw({"a": {"dtype": "U8", "shape": [4]}}, DATA),
    "unknown field": raw({"a": ONE["a"] | {"strides": [1]}}, DATA),
    "null entry": raw({"a": None}),
    "array entry": raw({"a": ["U8", [4], [0, 4]]}, DATA),
    "unknown dtype": raw({"a": entry("U9", [4], 0, 4)}, DATA),
    "lower case dtype": raw({"a": entry("u8", [4], 0, 4)}, DATA),
    "dtype of four bits": raw({"a": entry("F4", [8], 0, 4)}, DATA),
    "dtype a number": raw({"a": ONE["a"] | {"dtype": 8}}, DATA),
    "shape a number": raw({"a": ONE["a"] | {"shape": 4}}, DATA),
    "shape of booleans": raw({"a": ONE["a"] | {"shape": [4, True]}}, DATA),
    "negative shape": raw({"a": ONE["a"] | {"shape": [-2, -2]}}, DATA),
    "nine axes": raw({"a": ONE["a"] | {"shape": [4] + [1] * 8}}, DATA),
    "one offset": raw({"a": ONE["a"] | {"data_offsets": [0]}}, DATA),
    "three offsets": raw({"a": ONE["a"] | {"data_offsets": [0, 4, 4]}}, DATA),
    "offsets an object": raw({"a": ONE["a"] | {"data_offsets": {"begin": 0, "end": 4}}}, DATA),
    "negative offset": raw({"a": entry("U8", [4], -4, 0)}, DATA),
    "offset a string": raw({"a": ONE["a"] | {"data_offsets": [0, "4"]}}, DATA),
}  # fmt: skip

OFFSET_FAULTS: Final[dict[str, bytes]] = {
    "hole at the beginning": raw({"a": entry("U8", [3], 1, 4)}, DATA),
    "hole": raw({"a": entry("U8", [1], 0, 1), "b": entry("U8", [2], 2, 4)}, DATA),
    "overlap": raw({"a": entry("U8", [3], 0, 3), "b": entry("U8", [2], 2, 4)}, DATA),
    "same place": raw({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 0, 4)}, DATA),
    "empty in the middle of another": raw(
        {"a": entry("U8", [4], 0, 4), "b": entry("U8", [0], 2, 2)}, DATA
    ),
    "trailing bytes": raw(ONE, DATA + b"e"),
    "bytes without tensors": raw({}, b"a"),
    "short": raw(ONE, DATA[:3]),
    "no data": raw(ONE),
    "beyond the end": raw({"a": entry("U8", [2**50], 0, 2**50)}, DATA),
    "reversed": raw({"a": entry("U8", [4], 4, 0)}, DATA),
    "size of another shape": raw({"a": entry("U8", [5], 0, 4)}, DATA),
    "size of another type": raw({"a": entry("F32", [4], 0, 4)}, DATA),
    "empty shape with bytes": raw({"a": entry("U8", [0, 4], 0, 4)}, DATA),
    "size modulo 2 to the 64": raw({"a": entry("U8", [2**32, 2**32], 0, 0)}),
    "empty tensor behind the end": raw(ONE | {"b": entry("U8", [0], 5, 5)}, DATA),
}  # fmt: skip


@pytest.mark.parametrize("fault", HEADER_FAULTS)
def test_header_faults(fault: str, tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "x", HEADER_FAULTS[fault])).id == "OBD-ST-HEADER"


@pytest.mark.parametrize("fault", OFFSET_FAULTS)
def test_offset_faults(fault: str, tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "x", OFFSET_FAULTS[fault])).id == "OBD-ST-OFFSETS"


@pytest.mark.parametrize("metadata", [None, "obd", [], 1, {"format": 1}, {"format": None}])
def test_metadata_maps_strings_to_strings(metadata: object, tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "x", raw({"__metadata__": metadata}))).id == "OBD-ST-METADATA"


def test_a_file_that_is_not_there_is_no_format_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "x")


def small_group_file() -> bytes:
    tensors = {"w/sign/0": ("U8", (2, 3)), "/padding": ("U8", (2,)), "w/row/0": ("F32", (2, 1))}
    return layout(tensors, METADATA)[1] + bytes(16)


def test_truncation_at_every_byte_is_seen(tmp_path: Path) -> None:
    small = raw({"__metadata__": METADATA, "a": entry("F16", [2, 3], 0, 12)}, bytes(12), pad=5)
    path = write(tmp_path / "x", small)
    read_header(path)
    for length in range(len(small)):
        expected = "OBD-ST-HEADER" if length < len(small) - 12 else "OBD-ST-OFFSETS"
        assert refusal(write(path, small[:length])).id == expected


def test_of_changed_bytes_only_format_errors_escape(tmp_path: Path) -> None:
    good = raw({"__metadata__": METADATA, **ONE, "b": entry("F16", [2, 1], 4, 8)}, bytes(8), pad=3)
    path, random_ = tmp_path / "x", random.Random(0)
    refused = 0
    for i in range(len(good) - 8):
        for value in {good[i] ^ 1, good[i] ^ 16, *random_.choices(b'"[]{},:0-9e. \\\x00\xff', k=6)}:
            write(path, good[:i] + bytes([value]) + good[i + 1 :])
            try:
                read_header(path)
            except FormatError:
                refused += 1
    assert refused > 500


# --- what a group file must be beyond that --------------------------------------------------------


def group_file(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    metadata: Mapping[str, str] = METADATA,
    padding: bytes = b"",
    begin: int = 4096,
) -> bytes:
    """A group file of zeros but for its last bytes, `padding`."""
    header: dict[str, Any] = {"__metadata__": metadata}
    position = 0
    for name, (dtype, shape) in tensors.items():
        size = TORCH[dtype].itemsize * torch.Size(shape).numel()
        header[name] = entry(dtype, list(shape), position, position + size)
        position += size
    text = json.dumps(header).encode()
    return raw(text, bytes(position - len(padding)) + padding, pad=begin - 8 - len(text))


GOOD: Final = {"w/sign/0": ("U8", (2, 3)), "w/row/0": ("F16", (2, 1)), "/padding": ("U8", (7,))}
NAMES: Final = ["w/sign/0", "w/row/0"]

GROUP_FAULTS: Final[list[tuple[str, bytes]]] = [
    ("OBD-ST-METADATA", raw({"a": entry("U8", [0], 0, 0)}, pad=4000)),
    ("OBD-ST-METADATA", group_file(GOOD, {})),
    ("OBD-ST-METADATA", group_file(GOOD, {"format": "pt"})),
    ("OBD-ST-METADATA", group_file(GOOD, {"format": "obd", "more": ""})),
    ("OBD-ST-ALIGN", group_file(GOOD, begin=4095)),
    ("OBD-ST-ALIGN", group_file(GOOD, begin=4104)),
    ("OBD-ST-ALIGN", group_file(GOOD, begin=2048)),
    ("OBD-ST-TENSORS", group_file({})),
    ("OBD-ST-TENSORS", group_file({"w/sign/0": ("U8", (2, 3))})),
    ("OBD-ST-TENSORS", group_file(GOOD | {"x/exact": ("U8", (1,))})),
    ("OBD-ST-TENSORS", group_file(GOOD | {"/Padding": ("U8", (1,))})),
    ("OBD-ST-PADDING", group_file(GOOD | {"/padding": ("U8", (8,))})),
    ("OBD-ST-PADDING", group_file(GOOD | {"/padding": ("U8", (0,))})),
    ("OBD-ST-PADDING", group_file(GOOD | {"/padding": ("U8", ())})),
    ("OBD-ST-PADDING", group_file(GOOD | {"/padding": ("U8", (1, 4))})),
    ("OBD-ST-PADDING", group_file(GOOD | {"/padding": ("I8", (4,))})),
    ("OBD-ST-PADDING", group_file(GOOD, padding=b"\x01" + bytes(6))),
    ("OBD-ST-PADDING", group_file(GOOD, padding=b"\x80")),
    ("OBD-ST-ITEM-ALIGN", group_file({"w/sign/0": ("U8", (3,)), "w/row/0": ("F16", (2, 1))})),
    ("OBD-ST-ITEM-ALIGN", group_file({"w/sign/0": ("U8", (2,)), "w/row/0": ("F32", (2, 1))})),
]  # fmt: skip


@pytest.mark.parametrize(("id", "data"), GROUP_FAULTS, ids=lambda v: v if type(v) is str else "")
def test_group_file_faults(id: str, data: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "x", data)
    with pytest.raises(FormatError) as caught:
        check_group_file(path, read_header(path), NAMES)
    assert (caught.value.id, caught.value.where) == (id, str(path))


@pytest.mark.parametrize(
    "data",
    [
        group_file(GOOD),
        group_file(dict(reversed(GOOD.items()))| {"/padding": ("U8", (4,))}),
        group_file(GOOD, begin=8192),
        group_file({"w/row/0": ("F32", (2, 1)), "w/sign/0": ("U8", (2, 3))}),
    ],
)  # fmt: skip
def test_good_group_files_pass_in_any_order(data: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "x", data)
    check_group_file(path, read_header(path), NAMES)


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "expected"), [(0, 0), (1, 8), (7, 8), (8, 8), (9, 16), (4097, 4104)])
def test_aligned(n: int, expected: int) -> None:
    assert aligned(n, 8) == expected


def test_layout_gives_a_file_that_the_reference_library_reads(tmp_path: Path) -> None:
    tensors = {f"{dtype}.{i}": tensor(dtype, s) for dtype in TORCH for i, s in enumerate(SHAPES)}
    kinds = {str(kind): name for name, kind in TORCH.items()}
    spans, header = layout(
        {n: (kinds[str(t.dtype)], tuple(t.shape)) for n, t in tensors.items()}, {"format": "pt"}
    )
    data = header + b"".join(bits(t) for t in tensors.values())
    path = write(tmp_path / "x.safetensors", data)
    expected = {n: (t.dtype, tuple(t.shape), bits(t)) for n, t in tensors.items()}
    assert read_all(path) == expected
    assert {n: data[s.begin : s.end] for n, s in spans.items()} == {
        n: value for n, (_, _, value) in expected.items()
    }
    assert len(header) % 4096 == 0
    found = read_header(path)
    assert (dict(found.spans), found.metadata) == (spans, {"format": "pt"})


Small = dict[str, tuple[str, tuple[int, ...], bytes]]


def written(payloads: dict[str, bytes], small: Small, dimensions: dict[str, int]) -> bytes:
    file = io.BytesIO()
    writer = GroupFileWriter(file=file, dimensions=dimensions, largest=1 << 20)
    for name, data in payloads.items():
        # In two parts: what is written in pieces is one tensor.
        writer.write_payload(name, None, [data[:3], memoryview(data)[3:]])
    for name, (dtype, shape, data) in small.items():
        writer.add_small(name, dtype, shape, data)
    writer.finish()
    return file.getvalue()


def parsed(data: bytes) -> dict[str, Any]:
    end = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:end])
    return header


SCALES: Final[Small] = {
    "w/row/0": ("F16", (3, 1), random_bytes(6, 1)),
    "w/column/0": ("F32", (1, 2), random_bytes(8, 2)),
    "v/row/0": ("F16", (2, 1), random_bytes(4, 3)),
    "v/matrix/0": ("F32", (1, 1), random_bytes(4, 4)),
}


@pytest.mark.parametrize("size", range(18))
@pytest.mark.parametrize("small", [{}, SCALES], ids=["payload", "payload and scales"])
def test_group_file_writer_against_the_reference_library(
    size: int, small: Small, tmp_path: Path
) -> None:
    payloads = {"w/sign/0": random_bytes(size, size), "u/exact": random_bytes(16, 5)}
    data = written(payloads, small, dict.fromkeys([*payloads, *small, "not/stored"], 8))
    path = write(tmp_path / "x.safetensors", data)
    found = read_all(path)
    padding = found.pop("/padding", None)
    expected: dict[str, tuple[torch.dtype, tuple[int, ...], bytes]] = {
        n: (torch.uint8, (len(d),), d) for n, d in payloads.items()
    }
    expected |= {n: (TORCH[dtype], shape, d) for n, (dtype, shape, d) in small.items()}
    assert found == expected
    header = read_header(path)
    check_group_file(path, header, [*payloads, *small])
    assert header.metadata == {"format": "obd"}
    assert header.data_begin % 4096 == 0
    if size % 8 == 0 or not small:
        assert padding is None
    elif size % 4:
        assert padding == (torch.uint8, (-size % 8,), bytes(-size % 8))


def test_payloads_come_first_then_padding_then_scales_of_four_and_of_two_bytes() -> None:
    data = written({"b": b"abc", "a": b"de"}, SCALES, {"b": 1, "a": 1, **dict.fromkeys(SCALES, 2)})
    header = parsed(data)
    header.pop("__metadata__")
    in_file = sorted(header, key=lambda name: int(header[name]["data_offsets"][0]))
    assert in_file == [
        "b", "a", "/padding", "w/column/0", "v/matrix/0", "w/row/0", "v/row/0",
    ]  # fmt: skip


def test_a_payload_has_the_shape_that_is_given() -> None:
    file = io.BytesIO()
    writer = GroupFileWriter(file=file, dimensions={"s": 3}, largest=6)
    writer.write_payload("s", (2, 1, 3), [b"abcdef"])
    writer.finish()
    assert parsed(file.getvalue())["s"] == entry("U8", [2, 1, 3], 0, 6)


def test_a_writer_is_empty_until_something_is_written() -> None:
    for_small, for_payload = (
        GroupFileWriter(file=io.BytesIO(), dimensions={"a": 1}, largest=9) for _ in range(2)
    )
    before = for_small.is_empty, for_payload.is_empty
    for_small.add_small("a", "F16", (1,), b"ab")
    for_payload.write_payload("a", None, [])
    assert before == (True, True)
    assert (for_small.is_empty, for_payload.is_empty) == (False, False)


def test_sizes_of_what_was_written_and_kept() -> None:
    writer = GroupFileWriter(file=io.BytesIO(), dimensions={"a": 1, "s": 1}, largest=99)
    writer.write_payload("a", None, [b"ab", b"", b"cde"])
    writer.add_small("s", "F32", (2,), bytes(8))
    assert (writer.size("a"), writer.size("s")) == (5, 8)
    with pytest.raises(KeyError):
        writer.size("b")


def test_a_file_without_tensors_is_a_header(tmp_path: Path) -> None:
    data = written({}, {}, {"a": 1})
    assert len(data) == 4096
    path = write(tmp_path / "x", data)
    check_group_file(path, read_header(path), [])
    assert read_all(path) == {}


# --- room for the header --------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
awkward = st.text(st.sampled_from('"\\\x00\x1f\x7f\n\u00e9\u20ac\U0001f600\u2028/'), max_size=20)


def check_room(axes: Mapping[str, int], metadata: Mapping[str, str], largest: int) -> None:
    """A header of which every number is the largest fits exactly where the bound says."""
    bound = header_bound(axes, metadata, largest)
    spans = {
        name: Span(
            dtype="F8_E4M3", shape=(largest,) * n, begin=bound + largest, end=bound + largest
        )
        for name, n in axes.items()
    }
    header = encode_header(spans, metadata, bound)
    assert len(header) == bound
    assert int.from_bytes(header[:8], "little") == bound - 8
    expected = {name: entry("F8_E4M3", [largest] * n, largest, largest) for name, n in axes.items()}
    assert json.loads(header[8:]) == {"__metadata__": dict(metadata)} | expected


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.dictionaries(texts | awkward, st.integers(0, 8), max_size=4),
    st.dictionaries(texts, awkward, max_size=2),
    st.integers(0, 2**53 - 1) | st.sampled_from([9, 10, 99, 100, 2**53 - 1]),
)
def test_the_bound_on_headers_holds_for_the_widest_entries(
    axes: dict[str, int], metadata: dict[str, str], largest: int
) -> None:
    check_room(axes, metadata, largest)


@pytest.mark.parametrize("largest", [0, 7, 2**53 - 1])
@pytest.mark.parametrize("tail", ["", '"' * 50, "\x01" * 50, "\U0001f600\\" * 20])
def test_the_bound_on_headers_holds_for_a_thousand_tensors(tail: str, largest: int) -> None:
    check_room({f"{i}{tail}": i % 9 for i in range(1000)}, METADATA, largest)


def test_a_header_that_does_not_fit_is_an_error_of_the_caller() -> None:
    span = Span(dtype="U8", shape=(1,), begin=64, end=65)
    with pytest.raises(ValueError, match="does not fit"):
        encode_header({"name": span}, METADATA, 64)


def test_a_header_is_a_record() -> None:
    header = Header(spans={}, metadata={}, data_begin=8)
    with pytest.raises(AttributeError):
        header.data_begin = 9  # type: ignore[misc]
