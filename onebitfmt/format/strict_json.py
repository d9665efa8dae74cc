"""JSON without the laxness of `json`: one canonical form, and a cursor that knows its path.

The manifest comes from strangers. `parse` refuses what Python's parser lets through (duplicate
keys, NaN, fractions, lone surrogates, deep nesting); `Cursor` reads typed values and names the
place of the first fault, so that no KeyError or TypeError ever escapes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from onebitfmt.errors import FormatError
from onebitfmt.format.limits import MAX_INTEGER, MAX_JSON_DEPTH

_ESCAPE_QUOTE_OR_BRACKET = re.compile(r'\\.|["\[\]{}]', re.DOTALL)


def canonical(value: object) -> bytes:
    """The one byte string for a JSON value: sorted keys, no spaces, UTF-8 (spec section 4.1)."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode()


def parse(data: bytes, where: str) -> Any:
    """The value of strict JSON bytes (spec section 4.1); `where` names them in errors.

    Raises `FormatError` OBD-JSON-UTF8, -SYNTAX, -DUPLICATE, -NUMBER or -LIMIT.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise FormatError("OBD-JSON-UTF8", where, f"not UTF-8 at byte {e.start}") from None
    if text.startswith("\ufeff"):
        raise FormatError("OBD-JSON-UTF8", where, "begins with a byte order mark")
    _check_depth(text, where)

    def refuse(token: str) -> NoReturn:
        problem = f"{token[:32]} is not an integer of at most 53 bits"
        raise FormatError("OBD-JSON-NUMBER", where, problem)

    def integer(token: str) -> int:
        # Length first: Python refuses to convert very long digit strings with a ValueError.
        if len(token) > 17 or token == "-0" or abs(int(token)) > MAX_INTEGER:
            refuse(token)
        return int(token)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            twice = Counter(k for k, _ in pairs).most_common(1)[0][0]
            raise FormatError("OBD-JSON-DUPLICATE", where, f"key {twice!r} stands twice")
        return value

    try:
        value = json.loads(
            text,
            object_pairs_hook=unique,
            parse_int=integer,
            parse_float=refuse,
            parse_constant=refuse,
        )
        # An escaped lone surrogate is a string that has no UTF-8 form.
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as e:
        raise FormatError("OBD-JSON-SYNTAX", where, f"{e.msg} at character {e.pos}") from None
    except UnicodeEncodeError:
        raise FormatError("OBD-JSON-UTF8", where, "a string holds a lone surrogate") from None
    return value


def _check_depth(text: str, where: str) -> None:
    """Refuse deep nesting before the recursive parser meets it."""
    depth, quoted = 0, False
    # Token by token: an expression for whole strings would backtrack on hostile ones.
    for token in _ESCAPE_QUOTE_OR_BRACKET.finditer(text):
        quoted ^= token[0] == '"'
        if not quoted:
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > MAX_JSON_DEPTH:
            problem = f"nested deeper than {MAX_JSON_DEPTH} levels"
            raise FormatError("OBD-JSON-LIMIT", where, problem)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """A JSON value and the path that led to it; every read checks the type it asks for."""

    value: Any
    path: str

    def fail(self, id: str, problem: str) -> NoReturn:
        """Raise `FormatError` at this place."""
        raise FormatError(id, self.path, problem)

    def _expect(self, kind: type, name: str) -> Any:
        # bool is a subclass of int, but JSON distinguishes the two.
        if type(self.value) is not kind:
            self.fail("OBD-MAN-TYPE", f"expected {name}, got {_json_type(self.value)}")
        return self.value

    def string(self) -> str:
        """This value, a string."""
        return str(self._expect(str, "a string"))

    def integer(self) -> int:
        """This value, an integer that is not negative."""
        number = int(self._expect(int, "an integer"))
        if number < 0:
            self.fail("OBD-MAN-VALUE", f"{number} is negative")
        return number

    def items(self) -> Iterator[Cursor]:
        """The elements of this array."""
        for i, v in enumerate(self._expect(list, "an array")):
            yield Cursor(value=v, path=f"{self.path}[{i}]")

    def entries(self) -> Iterator[tuple[str, Cursor]]:
        """The members of this object, whatever their keys."""
        for k, v in self._expect(dict, "an object").items():
            yield k, Cursor(value=v, path=f"{self.path}[{k!r}]")

    def fields(self, required: str, optional: str = "") -> dict[str, Cursor]:
        """The members of this object, which must have all required keys and no unknown one."""
        value = self._expect(dict, "an object")
        missing = [k for k in required.split() if k not in value]
        if missing:
            self.fail("OBD-MAN-FIELD", f"field {missing[0]!r} is missing")
        unknown = [k for k in value if k not in required.split() + optional.split()]
        if unknown:
            self.fail("OBD-MAN-FIELD", f"field {unknown[0]!r} is unknown")
        return {k: Cursor(value=v, path=f"{self.path}.{k}") for k, v in value.items()}


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", int: "an integer"}
    return names.get(type(value), json.dumps(value))
