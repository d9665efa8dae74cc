"""Invalid cases of the manifest's bytes, format, version and digest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vectors.faults import HEX, Invalid, Table, after, bad, drop, put, small, swap
from vectors.sealing import Fault


def reordered(data: bytes) -> bytes:
    """Moves a key of the manifest to the end."""
    return data.replace(b'"format":"obd",', b"", 1)[:-1] + b',"format":"obd"}'


def json_cases() -> Iterator[Invalid]:
    """Faults of the manifest's bytes."""
    deep = [("depth-17", 16), ("depth-5000", 5000)]
    for name, depth in deep:
        nested = b'"requires":' + b"[" * depth + b"]" * depth
        text = swap(b'"requires":[]', nested)
        yield bad("JSON-LIMIT", name, f"{depth + 1} levels of nesting", Fault(text=text), small)
    for name, change, about in (
        ("bom", lambda data: b"\xef\xbb\xbf" + data, "a byte order mark"),
        ("invalid-byte", swap(b"example", b"ex\xffmple"), "a byte that is not UTF-8"),
        ("overlong", swap(b"example", b"ex\xc0\xafmple"), "an overlong UTF-8 sequence"),
        ("raw-surrogate", swap(b"example", b"ex\xed\xa0\x80mple"), "a surrogate encoded in UTF-8"),
        ("surrogate", swap(b"example", b"ex\\ud800mple"), "an escaped lone surrogate"),
        ("surrogate-key", swap(b'"note"', b'"\\udc00"'), "a lone surrogate in a key"),
        ("utf-16", lambda data: data.decode().encode("utf-16-be"), "UTF-16"),
    ):
        yield bad("JSON-UTF8", f"utf8-{name}", about, Fault(text=change), small)
    for name, change, about in (
        ("empty", lambda data: b"", "an empty file"),
        ("truncated", lambda data: data[:-1], "the last byte is missing"),
        ("trailing-comma", lambda data: data[:-1] + b",}", "a comma before the closing brace"),
        ("two-values", lambda data: data + b"{}", "a second value"),
        ("leading-zero", swap(b'"size":3', b'"size":03'), "a number with a leading zero"),
        ("control", swap(b"\\n", b"\n"), "a raw line feed inside a string"),
        ("escape", swap(b"example", b"ex\\ample"), "an unknown escape"),
    ):
        yield bad("JSON-SYNTAX", f"syntax-{name}", about, Fault(text=change), small)
    for name, change in (
        ("top", swap(b'"format":"obd"', b'"format":"obd","format":"obd"')),
        ("nested", swap(b'"size":3', b'"size":3,"size":3')),
        ("escaped", swap(b'"size":3', b'"size":3,"\\u0073ize":3')),
    ):
        yield bad(
            "JSON-DUPLICATE", f"duplicate-{name}", "a key occurs twice", Fault(text=change), small
        )


def number_cases() -> Iterator[Invalid]:
    """Numbers out of the JSON subset, and values not in canonical form."""
    words = {
        "fraction": b"3.0",
        "exponent": b"3e0",
        "minus-zero": b"-0",
        "nan": b"NaN",
        "infinity": b"Infinity",
        "huge": b"9007199254740992",
        "minus-huge": b"-9007199254740992",
        "long": b"9" * 5000,
    }
    for name, word in words.items():
        text = swap(b'"size":3', b'"size":' + word)
        about = f"the number {word.decode()[:20]}"
        yield bad("JSON-NUMBER", f"number-{name}", about, Fault(text=text), small)
    for name, change, about in (
        ("space", swap(b'"format":', b'"format": '), "a space after a colon"),
        ("newline", lambda data: data + b"\n", "a line feed at the end"),
        ("leading-space", lambda data: b" " + data, "a space at the beginning"),
        ("order", reordered, "keys not sorted"),
        ("escaped", swap("é".encode(), b"\\u00e9"), "an escape for a character above ASCII"),
        ("slash", swap(b"\\n/", b"\\n\\/"), "an escaped slash"),
        ("long-escape", swap(b"\\n", b"\\u000a"), "a long escape where there is a short one"),
        ("upper-case", swap(b"\\u001f", b"\\u001F"), "an upper-case digit in an escape"),
    ):
        yield bad("JSON-CANONICAL", f"canonical-{name}", about, Fault(text=change), small)


def head_cases() -> Iterator[Invalid]:
    """Faults of format and version."""
    yield bad("MAN-TYPE", "type-top", "an array at the top", Fault(text=lambda data: b"[]"), small)
    yield bad("MAN-FORMAT", "format", "another format", Fault(manifest=put("format", "obx")), small)
    for name, value in (("future", "2.0"), ("far-future", "10.0"), ("past", "0.9")):
        fault = Fault(manifest=put("version", value))
        yield bad("MAN-VERSION", f"version-{name}", f"version {value}", fault, small)
    for name, value in (
        ("one", "1"),
        ("three", "1.0.0"),
        ("zero", "01.0"),
        ("newline", "1.0\n"),
        ("digits", "1.\u0661"),
    ):
        fault = Fault(manifest=put("version", value))
        yield bad("MAN-VALUE", f"version-{name}", f"version {value!a}", fault, small)
    number = Fault(manifest=put("version", 1))
    yield bad("MAN-TYPE", "version-number", "a version that is a number", number, small)


def digest_cases() -> Iterator[Invalid]:
    """Faults of requires and digest, and missing fields."""
    for name, names in (("lowrank", ["lowrank"]), ("unknown", ["a", "b"])):
        fault = Fault(manifest=put("requires", names))
        yield bad("MAN-REQUIRES", f"requires-{name}", f"requires {names}", fault, small)
    for name, names in (("unsorted", ["b", "a"]), ("twice", ["a", "a"])):
        fault = Fault(manifest=put("requires", names))
        yield bad("MAN-VALUE", f"requires-{name}", f"requires {names}", fault, small)
    string = Fault(manifest=put("requires", ""))
    yield bad("MAN-TYPE", "requires-string", "requires is a string", string, small)
    for name, change, about in (
        ("wrong", put("digest", HEX), "a digest of something else"),
        ("stale", put("expert", "name", "exampla"), "a name changed without a new digest"),
        ("upper-case", lambda m: m.update(digest=m["digest"].upper()), "the digest in upper case"),
    ):
        yield bad("MAN-DIGEST", f"digest-{name}", about, Fault(text=after(change)), small)
    for name in ("format", "version", "requires", "base", "expert", "groups", "files", "tensors"):
        fault = Fault(manifest=drop(name))
        yield bad("MAN-FIELD", f"field-no-{name}", f"no field {name}", fault, small)
    fault = Fault(text=after(drop("digest")))
    yield bad("MAN-FIELD", "field-no-digest", "no field digest", fault, small)


CASES: Final[tuple[Table, ...]] = (
    json_cases,
    number_cases,
    head_cases,
    digest_cases,
)
