from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
import re
from pathlib import Path
from typing import Final

import pytest

import onebitfmt
from onebitfmt import errors
from onebitfmt.errors import (
    BaseMismatchError,
    CheckpointError,
    FormatError,
    HubError,
    MissingBundleError,
    MissingDependencyError,
    OnebitError,
    OutputError,
    UnsupportedError,
    UsageError,
)

ROOT: Final = Path(__file__).resolve().parents[1]
ID: Final = r"OBD-[A-Z0-9]+(?:-[A-Z0-9]+)+"

EXAMPLES: Final[list[tuple[OnebitError, type[Exception], str]]] = [
    (OnebitError("words"), Exception, "words"),
    (UsageError("words"), OnebitError, "words"),
    (CheckpointError("words"), OnebitError, "words"),
    (BaseMismatchError("words"), CheckpointError, "words"),
    (HubError("words"), OnebitError, "words"),
    (OutputError("words"), OnebitError, "words"),
    (
        MissingDependencyError("matplotlib", "plot"),
        OnebitError,
        "matplotlib is not installed; install it with: pip install 'onebitfmt[plot]'",
    ),
    (FormatError("OBD-X", "file.a[0]", "is odd"), OnebitError, "file.a[0]: is odd [OBD-X]"),
    (UnsupportedError("OBD-Y", "file", "is new"), FormatError, "file: is new [OBD-Y]"),
    (
        MissingBundleError("x.obd"),
        FormatError,
        "x.obd: no such bundle folder [OBD-DIR-MANIFEST]",
    ),
]
each_example = pytest.mark.parametrize(
    ("error", "parent", "message"), EXAMPLES, ids=[type(e).__name__ for e, _, _ in EXAMPLES]
)


@each_example
def test_place_in_the_tree_and_message(
    error: OnebitError, parent: type[Exception], message: str
) -> None:
    assert type(error).__bases__ == (parent,)
    assert str(error) == message


@each_example
def test_errors_survive_the_way_from_another_process(
    error: OnebitError, parent: type[Exception], message: str
) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert isinstance(again, parent)
    assert str(again) == message
    assert vars(again) == vars(error)


@pytest.mark.parametrize("kind", [FormatError, UnsupportedError])
def test_format_errors_carry_their_parts(kind: type[FormatError]) -> None:
    error = kind("OBD-X", "place", "problem")
    assert (error.id, error.where, error.problem) == ("OBD-X", "place", "problem")


def test_a_mismatch_of_the_base_carries_its_requirement() -> None:
    assert BaseMismatchError("words").id == "OBD-BASE-TENSOR"


def test_every_exception_of_the_package_is_here_and_in_the_examples() -> None:
    found: set[type[BaseException]] = set()
    for module in pkgutil.walk_packages(onebitfmt.__path__, "onebitfmt."):
        if not module.name.endswith("__main__"):
            members = inspect.getmembers(importlib.import_module(module.name), inspect.isclass)
            found.update(
                c for _, c in members
                if issubclass(c, BaseException) and c.__module__.startswith("onebitfmt.")
            )  # fmt: skip
    assert found == {type(e) for e, _, _ in EXAMPLES}
    assert {c.__module__ for c in found} == {"onebitfmt.errors"}


def test_the_tree_in_the_docstring_has_every_exception() -> None:
    drawn = re.findall(r"\w+Error", errors.__doc__ or "")
    assert sorted(drawn) == sorted(type(e).__name__ for e, _, _ in EXAMPLES)


def test_the_ids_of_the_code_are_those_of_the_specifications() -> None:
    text = "".join(path.read_text("utf-8") for path in (ROOT / "spec").glob("*.md"))
    specified = set(re.findall(rf"\[({ID})\]", text))
    code = "".join(path.read_text("utf-8") for path in (ROOT / "onebitfmt").rglob("*.py"))
    assert set(re.findall(rf'"({ID})"', code)) == specified
