from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebitfmt.errors import FormatError
from onebitfmt.format.strict_json import Cursor, canonical, parse

LARGEST = 2**53 - 1


def refusal(data: bytes) -> FormatError:
    with pytest.raises(FormatError) as caught:
        parse(data, "here")
    return caught.value


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


# --- the canonical form ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, b"{}"),
        ([], b"[]"),
        ("", b'""'),
        ({"b": 1, "a": [True, False, None]}, b'{"a":[true,false,null],"b":1}'),
        ({"a": {"d": 0, "c": -1}}, b'{"a":{"c":-1,"d":0}}'),
        ([LARGEST, -LARGEST], b"[9007199254740991,-9007199254740991]"),
        ('"\\/', b'"\\"\\\\/"'),
        ("\b\t\n\f\r", b'"\\b\\t\\n\\f\\r"'),
        ("\x00\x0b\x1f", b'"\\u0000\\u000b\\u001f"'),
        ("\x7f\u00e9\u2028", b'"\x7f\xc3\xa9\xe2\x80\xa8"'),
        ("\u20ac\U0001f600", b'"\xe2\x82\xac\xf0\x9f\x98\x80"'),
    ],
)
def test_canonical_bytes(value: object, expected: bytes) -> None:
    assert canonical(value) == expected
    assert parse(expected, "here") == value


def test_keys_are_sorted_by_code_point_and_not_by_utf_16_unit() -> None:
    keys = ["\U0001f600", "\uffff", "\u00e9", "a", "Z", "A10", "A9", ""]
    expected = (
        b'{"":0,"A10":0,"A9":0,"Z":0,"a":0,"\xc3\xa9":0,"\xef\xbf\xbf":0,"\xf0\x9f\x98\x80":0}'
    )
    assert canonical(dict.fromkeys(keys, 0)) == expected


texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-LARGEST, LARGEST) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(json_values)
def test_parse_takes_back_what_canonical_wrote(value: Any) -> None:
    again = parse(canonical(value), "here")
    assert again == value
    assert canonical(again) == canonical(value)


# --- what is accepted -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        ' \t\r\n{ "a" : [ 1 , 2 ] } \n',
        "0",
        "-1",
        str(LARGEST),
        str(-LARGEST),
        "true",
        '"\\u0041\\/\\ud83d\\ude00"',
        '{"\\u00e9":0,"e\\u0301":0}',
        "[{},{}]",
        '{"a":{"a":0},"b":{"a":0}}',
    ],
)
def test_plain_json_means_what_it_means_to_python(text: str) -> None:
    assert parse(text.encode(), "here") == json.loads(text)


@pytest.mark.parametrize(
    "data",
    [
        nested(16),
        b'{"a":' * 15 + b"[]" + b"}" * 15,
        b'["' + b"[{" * 50_000 + b'"]',
        b'["\\"' + b"[" * 100 + b'"]',
        b'["\\\\",' + b'"[[[[[[[[[[[[[[[[[["]',
        b'{"' + b"{" * 40 + b'":0}',
        b"[" + b"[]," * 1000 + b"[]]",
    ],
    ids=["arrays", "objects", "string", "escaped quote", "escaped backslash", "key", "siblings"],
)
def test_sixteen_levels_and_brackets_in_strings_are_fine(data: bytes) -> None:
    assert parse(data, "here") == json.loads(data)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "id"),
    [
        (b'{"a":1,"a":1}', "OBD-JSON-DUPLICATE"),
        (b'{"a":1,"\\u0061":2}', "OBD-JSON-DUPLICATE"),
        (b'[0,{"x":{"a":1,"b":0,"a":2}}]', "OBD-JSON-DUPLICATE"),
        (b'{"\\u0000":1,"\\u0000":2}', "OBD-JSON-DUPLICATE"),
        (b"NaN", "OBD-JSON-NUMBER"),
        (b"Infinity", "OBD-JSON-NUMBER"),
        (b"[-Infinity]", "OBD-JSON-NUMBER"),
        (b"1e5", "OBD-JSON-NUMBER"),
        (b"1E5", "OBD-JSON-NUMBER"),
        (b"1e999", "OBD-JSON-NUMBER"),
        (b"1.0", "OBD-JSON-NUMBER"),
        (b"-0", "OBD-JSON-NUMBER"),
        (b"-0.0", "OBD-JSON-NUMBER"),
        (b"[0,-0]", "OBD-JSON-NUMBER"),
        (b"9007199254740992", "OBD-JSON-NUMBER"),
        (b"-9007199254740992", "OBD-JSON-NUMBER"),
        (b"9" * 17, "OBD-JSON-NUMBER"),
        (b"9" * 5000, "OBD-JSON-NUMBER"),
        (b"-" + b"9" * 5000, "OBD-JSON-NUMBER"),
        (b'"\\ud800"', "OBD-JSON-UTF8"),
        (b'"\\ude00\\ud83d"', "OBD-JSON-UTF8"),
        (b'{"\\udfff":0}', "OBD-JSON-UTF8"),
        (b'"\xed\xa0\x80"', "OBD-JSON-UTF8"),
        (b'"\xed\xa0\xbd\xed\xb8\x80"', "OBD-JSON-UTF8"),
        (b"\xef\xbb\xbf{}", "OBD-JSON-UTF8"),
        (b'"\xff"', "OBD-JSON-UTF8"),
        (b'"\xc0\xaf"', "OBD-JSON-UTF8"),
        (b'"\xe2\x82"', "OBD-JSON-UTF8"),
        (b'"\xf4\x90\x80\x80"', "OBD-JSON-UTF8"),
        ("{}".encode("utf-16"), "OBD-JSON-UTF8"),
        ("{}".encode("utf-16-le"), "OBD-JSON-SYNTAX"),
        ("{}".encode("utf-32-be"), "OBD-JSON-SYNTAX"),
        (b"", "OBD-JSON-SYNTAX"),
        (b" ", "OBD-JSON-SYNTAX"),
        (b"{", "OBD-JSON-SYNTAX"),
        (b'{"a"}', "OBD-JSON-SYNTAX"),
        (b'{"a":1,}', "OBD-JSON-SYNTAX"),
        (b"[1,]", "OBD-JSON-SYNTAX"),
        (b"{}{}", "OBD-JSON-SYNTAX"),
        (b"{} x", "OBD-JSON-SYNTAX"),
        (b"{'a':1}", "OBD-JSON-SYNTAX"),
        (b"{a:1}", "OBD-JSON-SYNTAX"),
        (b"{}//", "OBD-JSON-SYNTAX"),
        (b"01", "OBD-JSON-SYNTAX"),
        (b"+1", "OBD-JSON-SYNTAX"),
        (b".5", "OBD-JSON-SYNTAX"),
        (b"0x10", "OBD-JSON-SYNTAX"),
        (b"1_000", "OBD-JSON-SYNTAX"),
        ("\u0661".encode(), "OBD-JSON-SYNTAX"),
        (b"True", "OBD-JSON-SYNTAX"),
        (b'"\n"', "OBD-JSON-SYNTAX"),
        (b'"\x00"', "OBD-JSON-SYNTAX"),
        (b'"\\x41"', "OBD-JSON-SYNTAX"),
        (b'"\\u00g0"', "OBD-JSON-SYNTAX"),
        (b'"abc', "OBD-JSON-SYNTAX"),
        (b'"abc\\', "OBD-JSON-SYNTAX"),
        (b"\xc2\xa0{}", "OBD-JSON-SYNTAX"),
        (b"{}\x00", "OBD-JSON-SYNTAX"),
        (nested(17), "OBD-JSON-LIMIT"),
        (b'{"a":' * 17 + b"0" + b"}" * 17, "OBD-JSON-LIMIT"),
        (b'["\\"",' + nested(16) + b"]", "OBD-JSON-LIMIT"),
        (nested(100_000), "OBD-JSON-LIMIT"),
        (b"[" * 100_000, "OBD-JSON-LIMIT"),
        (b'{"a":' * 100_000, "OBD-JSON-LIMIT"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else value,
)
def test_laxness_of_json_is_refused(data: bytes, id: str) -> None:
    error = refusal(data)
    assert (error.id, error.where) == (id, "here")


def test_a_duplicate_is_named() -> None:
    assert "'twice'" in refusal(b'{"once":0,"twice":1,"twice":2}').problem


def unterminated(n: int) -> bytes:
    return b'["' + b'\\"' * n


def late_duplicate(n: int) -> bytes:
    return ("{" + ",".join(f'"{i}":0' for i in range(n)) + f',"{n - 1}":0}}').encode()


@pytest.mark.parametrize("make", [unterminated, late_duplicate])
def test_hostile_bytes_are_refused_in_linear_time(make: Callable[[int], bytes]) -> None:
    data = make(20_000)
    begin = time.process_time()
    refusal(data)
    assert time.process_time() - begin < 1


def test_memory_for_a_long_string_is_a_small_multiple_of_it() -> None:
    data = b'["' + b"a" * 1_000_000 + b'"]'
    tracemalloc.start()
    try:
        parse(data, "here")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * len(data)


# --- the cursor -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, True, 0, [], {}])
def test_string_takes_only_strings(value: object) -> None:
    with pytest.raises(FormatError, match=r"^x: expected a string, got .* \[OBD-MAN-TYPE\]$"):
        Cursor(value=value, path="x").string()


@pytest.mark.parametrize("value", [None, True, False, "1", [], {}])
def test_integer_takes_only_integers(value: object) -> None:
    with pytest.raises(FormatError, match=r"^x: expected an integer, got .* \[OBD-MAN-TYPE\]$"):
        Cursor(value=value, path="x").integer()


def test_integer_is_not_negative() -> None:
    with pytest.raises(FormatError, match=r"^x: -1 is negative \[OBD-MAN-VALUE\]$"):
        Cursor(value=-1, path="x").integer()
    assert Cursor(value=0, path="x").integer() == 0


@pytest.mark.parametrize("value", [None, True, 0, "[]", {}])
def test_items_takes_only_arrays(value: object) -> None:
    with pytest.raises(FormatError, match=r"^x: expected an array, got .* \[OBD-MAN-TYPE\]$"):
        list(Cursor(value=value, path="x").items())


@pytest.mark.parametrize("value", [None, True, 0, "{}", []])
def test_entries_and_fields_take_only_objects(value: object) -> None:
    cursor = Cursor(value=value, path="x")
    with pytest.raises(FormatError, match=r"^x: expected an object, got .* \[OBD-MAN-TYPE\]$"):
        list(cursor.entries())
    with pytest.raises(FormatError, match=r"^x: expected an object, got .* \[OBD-MAN-TYPE\]$"):
        cursor.fields("")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"a": 0}, "field 'b' is missing"),
        ({"a": 0, "b": 0, "d": 0}, "field 'd' is unknown"),
        ({"a": 0, "c": 0, "d": 0}, "field 'b' is missing"),
    ],
)
def test_fields_are_complete_and_known(value: object, problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        Cursor(value=value, path="x").fields("a b", "c")
    assert str(caught.value) == f"x: {problem} [OBD-MAN-FIELD]"


def test_the_path_of_a_deep_value_tells_the_way_to_it() -> None:
    root = Cursor(value={"groups": {"it's a key": [0, {"deep": None}]}}, path="file.json")
    [(_, items)] = root.fields("groups")["groups"].entries()
    deep = list(items.items())[1].fields("deep")["deep"]
    with pytest.raises(FormatError) as caught:
        deep.string()
    assert caught.value.where == """file.json.groups["it's a key"][1].deep"""
    assert caught.value.id == "OBD-MAN-TYPE"
    assert caught.value.problem == "expected a string, got null"
