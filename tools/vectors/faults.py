"""What an invalid case is, where it starts, and ways to break one thing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from vectors.drafts import Draft
from vectors.numbers import tensor
from vectors.samples import ramp, sign
from vectors.sealing import Fault, canonical
from vectors.valid_bundles import worked_example


def plain(d: Draft) -> None:
    """The start of most invalid cases: the worked example, an expert file and metadata."""
    worked_example(d)
    d.extra["expert/config.json"] = b"{}\n"
    d.head["metadata"] = {"note": "é\n/\x1f"}


def small(d: Draft) -> None:
    """The start of the invalid cases that need no group file."""
    d.groups["own"] = 0
    d.same("norm", ramp("BF16", [3]), group="norm")
    d.extra["expert/config.json"] = b"{}\n"
    d.head["metadata"] = {"note": "é\n/\x1f"}


def put(*path: Any) -> Callable[[Any], None]:
    """Sets the last of `path` at the place that the others lead to."""

    def change(value: Any) -> None:
        for key in path[:-2]:
            value = value[key]
        value[path[-2]] = path[-1]

    return change


def drop(*path: Any) -> Callable[[Any], None]:
    """Deletes what `path` leads to."""

    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        del value[path[-1]]

    return change


def rename(old: str, new: str, *path: Any) -> Callable[[Any], None]:
    """Renames a key of the object that `path` leads to."""

    def change(value: Any) -> None:
        for key in path:
            value = value[key]
        value[new] = value.pop(old)

    return change


def swap(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Replaces the first occurrence of some bytes."""

    def change(data: bytes) -> bytes:
        assert old in data, old
        return data.replace(old, new, 1)

    return change


def after(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    """Changes the sealed manifest without sealing it again."""

    def rewrite(data: bytes) -> bytes:
        value = json.loads(data)
        change(value)
        return canonical(value)

    return rewrite


def ten_bytes(d: Draft) -> None:
    """One exact U8 tensor x of ten zeros: a reader that skips a check finds nothing else wrong."""
    d.exact("x", tensor("U8", [10], [0] * 10))


def ten_words(d: Draft) -> None:
    """One exact U64 tensor x of ten zeros."""
    d.exact("x", tensor("U64", [10], [0] * 10))


def one_matrix(d: Draft) -> None:
    """One one-bit tensor x of two rows of nine, scaled by row and column in F32."""
    d.terms("x", ramp("BF16", [2, 9]), [sign("rank1", [2, 9], 1, "F32")])


@dataclass(frozen=True, kw_only=True, slots=True)
class Invalid:
    """An invalid case: one fault, and the requirement that it breaks."""

    name: str
    id: str
    about: str
    fault: Fault
    start: Callable[[Draft], None] = plain


Table = Callable[[], Iterator[Invalid]]


def bad(
    id: str, name: str, about: str, fault: Fault, start: Callable[[Draft], None] = plain
) -> Invalid:
    """A short way to write the tables below."""
    return Invalid(name=name, id=f"OBD-{id}", about=about, fault=fault, start=start)


HEX: Final = "0123456789abcdef" * 4

MLP: Final = "mlp.obd.safetensors"

CONFIG: Final = "expert/config.json"

N: Final = ("tensors", "norm")

W: Final = ("tensors", "up.weight")

B: Final = ("tensors", "up.bias")
