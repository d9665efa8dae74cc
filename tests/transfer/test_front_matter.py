from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from onebitfmt.errors import UsageError
from onebitfmt.transfer.front_matter import Readme

OURS = {"library_name": "onebitfmt", "base_model": ["org/base"], "tags": ["mine", "onebitfmt"]}


def edited(block: str, changes: dict[str, Any]) -> str:
    """The YAML of a README of this YAML, after the changes."""
    text = str(Readme.parse(f"---\n{block}---\nbody", "R").with_metadata(changes))
    assert text.startswith("---\n")
    assert text.endswith("---\nbody")
    return text.removeprefix("---\n").removesuffix("---\nbody")


# --- parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("", "", "", "")),
        ("# T\n", ("", "", "", "# T\n")),
        ("---", ("", "", "", "---")),
        ("----\na: 1\n----\n", ("", "", "", "----\na: 1\n----\n")),
        ("T\n---\na: 1\n---\n", ("", "", "", "T\n---\na: 1\n---\n")),
        ("--- \na: 1\n---\n", ("", "", "", "--- \na: 1\n---\n")),
        ("---\na: 1\n---\nT", ("---\n", "a: 1\n", "---\n", "T")),
        ("---\r\na: 1\r\n---\r\nT", ("---\r\n", "a: 1\r\n", "---\r\n", "T")),
        ("---\na: 1\n---", ("---\n", "a: 1\n", "---", "")),
        ("---\na: 1\n--- \t\n\n---\n", ("---\n", "a: 1\n", "--- \t\n", "\n---\n")),
        ("---\n---\nT", ("---\n", "", "---\n", "T")),
        ("\n  ---\na: 1\n---\n", ("\n  ---\n", "a: 1\n", "---\n", "")),
        ("\ufeff---\na: 1\n---\n", ("\ufeff---\n", "a: 1\n", "---\n", "")),
        ("---\na: |\n ---\n---x\n---\n", ("---\n", "a: |\n ---\n---x\n", "---\n", "")),
    ],
)
def test_the_parts_of_a_readme(text: str, parts: tuple[str, str, str, str]) -> None:
    readme = Readme.parse(text, "R")
    assert (readme.opening, readme.block, readme.closing, readme.body) == parts
    assert str(readme) == text


@pytest.mark.parametrize(
    ("text", "line_end"), [("", "\n"), ("a", "\n"), ("a\r\nb\n", "\r\n"), ("a\nb\r\n", "\n")]
)
def test_the_line_end_is_the_first(text: str, line_end: str) -> None:
    assert Readme.parse(text, "R").line_end == line_end


def test_no_metadata_are_an_empty_mapping() -> None:
    assert Readme.parse("# T", "R").metadata() == {}
    assert Readme.parse("---\n# only a comment\n---\n", "R").metadata() == {}


# --- edits in place ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "changes", "expected"),
    [
        ("", {"a": "x"}, "a: x\n"),
        ("# c\n", {"a": ["x", "y"]}, "# c\na:\n- x\n- y\n"),
        ("a: x # c\n", {"a": "x"}, "a: x # c\n"),
        ("a: x # c\nb: 1\n", {"a": "y"}, "a: y # c\nb: 1\n"),
        ("a: 'x'   # c\n", {"a": "y"}, "a: y   # c\n"),
        ("a:\nb: 1\n", {"a": "y"}, "a: y\nb: 1\n"),
        ("a: # c\nb: 1\n", {"a": "y"}, "a: y # c\nb: 1\n"),
        ("a: x\nb: 1\n\n# end\n", {"c": "z"}, "a: x\nb: 1\n\n# end\nc: z\n"),
        ("  a: x\n  b: 1\n", {"c": ["z"]}, "  a: x\n  b: 1\n  c:\n  - z\n"),
        # Lists that grow keep their lines.
        ("t: [x, y] # c\n", {"t": ["x", "y", "z"]}, "t: [x, y, z] # c\n"),
        ("t: [ x, ]\n", {"t": ["x", "z"]}, "t: [ x, z, ]\n"),
        ("t: []\n", {"t": ["x", "z"]}, "t: [x, z]\n"),
        ("t: [x,\n    y] # c\n", {"t": ["x", "y", "z"]}, "t: [x,\n    y, z] # c\n"),
        ("t:\n- x # 1\n- y # 2\n\n# c\nb: 1\n", {"t": ["x", "y", "z"]},
         "t:\n- x # 1\n- y # 2\n- z\n\n# c\nb: 1\n"),
        ("t:\n  - x\n  - 'y'\nb: 1\n", {"t": ["x", "y", "z"]}, "t:\n  - x\n  - 'y'\n  - z\nb: 1\n"),
        # Others are replaced.
        ("t: x # c\n", {"t": ["x", "z"]}, "t: [x, z] # c\n"),
        ("t: [w, y]\n", {"t": ["x"]}, "t: [x]\n"),
        ("t:\n  - w\n  - v # c\n# d\n", {"t": ["x", "y"]}, "t:\n  - x\n  - y # c\n# d\n"),
        ("t: |\n  long\n  text\nb: 1\n", {"t": "x"}, "t: x\nb: 1\n"),
        ("t: long\n  text # c\nb: 1\n", {"t": "x"}, "t: x # c\nb: 1\n"),
        # Removal takes the lines of the key.
        ("a: 1\nt: x # gone\nb: 1\n", {"t": None}, "a: 1\nb: 1\n"),
        ("t:\n  - x\n# c\nb: 1\n", {"t": None}, "# c\nb: 1\n"),
        ("a: 1\n", {"t": None}, "a: 1\n"),
        # Several at once, in order.
        ("b: 1\na: x\n", {"z": "1z", "a": "y", "b": None, "y": ["q"]}, "a: y\nz: 1z\ny:\n- q\n"),
        # What is no plain word is quoted.
        ("", {"a": "1.0", "b": "no", "c": "1e5", "d": "x: y", "e": "é", "f": "0x1f", "g": "1bit"},
         'a: "1.0"\nb: "no"\nc: "1e5"\nd: "x: y"\ne: "é"\nf: "0x1f"\ng: 1bit\n'),
    ],
)  # fmt: skip
def test_just_the_lines_of_the_keys_change(
    block: str, changes: dict[str, Any], expected: str
) -> None:
    found = edited(block, changes)
    assert found == expected
    before = yaml.safe_load(block) or {}
    wanted = {k: v for k, v in {**before, **changes}.items() if k not in changes or v is not None}
    assert (yaml.safe_load(found) or {}) == wanted


def test_line_ends_stay() -> None:
    text = "---\r\nt:\r\n- x\r\nb: 1 # c\r\n---\r\nbody\r\n"
    found = Readme.parse(text, "R").with_metadata({"t": ["x", "y"], "a": "z"})
    assert str(found) == ("---\r\nt:\r\n- x\r\n- y\r\nb: 1 # c\r\na: z\r\n---\r\nbody\r\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "---\na: x\n---\n"),
        ("# T\n", "---\na: x\n---\n\n# T\n"),
        ("\n# T\n", "---\na: x\n---\n\n# T\n"),
        ("# T\r\n", "---\r\na: x\r\n---\r\n\r\n# T\r\n"),
        ("\ufeff# T\n", "\ufeff---\na: x\n---\n\n# T\n"),
        ("---", "---\na: x\n---\n\n---"),
    ],
)
def test_metadata_are_put_before_a_text_that_has_none(text: str, expected: str) -> None:
    assert str(Readme.parse(text, "R").with_metadata({"a": "x"})) == expected


@pytest.mark.parametrize(
    "block",
    [
        "{license: mit, tags: [mine]} # c\n",
        "tags: &t [mine]\nother: *t\n",
        "other: &t [mine]\ntags: *t\n",
        "x: &x {tags: [mine]}\n<<: *x\n",
        "? tags\n: [mine]\n",
        "!!map\ntags: [mine]\n",
        "tags: !!seq [mine]\n",
        'tags: ["mine"]\n...\n',
        "tags:\n-\n  mine\n",
        "tags:\n- |\n  mine\n- >\n  text\n",
        "library_name:\n- a\n- b\n",
        "library_name: &n x\nother: *n\n",
        "when: 2024-01-01\nnumber: .nan\ntags: mine\n",
        "tags: [mine]\rlicense: mit\n",
        "base_model: {a: 1}\n",
        "base_model:\n  a: 1\n  b:\n",
        "tags: &t\n- *t\n",
    ],
)  # fmt: skip
def test_odd_yaml_is_edited_or_written_anew(block: str) -> None:
    before = Readme.parse(f"---\n{block}---\n", "R").metadata()
    found = yaml.safe_load(edited(block, OURS))
    assert {k: found[k] for k in OURS} == OURS
    rest = {k: v for k, v in before.items() if k not in OURS}
    assert repr({k: v for k, v in found.items() if k not in OURS}) == repr(rest)


# --- broken metadata -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("---\na: 1\n", "no second '---' line"),
        ("---\r\n\r\n# T\r\n", "no second '---' line"),
        ("---\na: [1\n---\n", "not valid"),
        ("---\na: b: c\n---\n", "in line 2 (mapping values are not allowed here)"),
        ("\n---\n# c\na: 1\n  b: 2\n---\n", "in line 5"),
        ("---\njust text\n---\n", "expected lines such as 'license: mit'"),
        ("---\n- a\n- b\n---\n", "expected lines such as"),
        ("---\na: 1\nb: 2\na: 3\n---\n", "'a' stands twice"),
        ("---\na: *b\n---\n", "undefined alias"),
        ("---\na: 2024-13-45\n---\n", "not valid"),
        ("---\na: !!int ''\n---\n", "not valid"),
        ("---\na: !!bool x\n---\n", "not valid"),
        ("---\na: !!timestamp x\n---\n", "not valid"),
        ("---\na: !!python/object:os.system x\n---\n", "could not determine a constructor"),
        ("---\na: \x00\n---\n", "not valid"),
        ("---\na: " + "[" * 1500 + "\n---\n", "not valid"),
        ("---\na: " + "9" * 5000 + "\n---\n", "not valid"),
        ("---\na: 1\n...\nb: 2\n---\n", "not valid"),
        ("---\n? [a, b]\n: 1\n---\n", "unhashable"),
    ],
)
def test_broken_metadata_are_one_clear_error(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Readme.parse(text, "README.md of ns/name").with_metadata(OURS)
    message = str(caught.value)
    assert message.startswith("README.md of ns/name")
    assert words in message
    assert message.endswith("then run again")
    assert "\n" not in message


# --- any metadata --------------------------------------------------------------------------------

words = st.text("abcz01-_ '\":#&*![]{}|>%@é\n", max_size=12)
scalars = st.none() | st.booleans() | st.integers(-99, 99) | words | st.dates()
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(words, v, max_size=3)
)
keys = st.sampled_from(["library_name", "base_model", "tags", "license", "other"]) | words


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    st.dictionaries(keys, values, max_size=6),
    st.booleans(),
    st.sampled_from([None, "'", '"']),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_any_mapping_keeps_all_but_the_keys(
    mapping: dict[str, Any], flow: bool, style: str | None, end: str, comments: bool
) -> None:
    block = yaml.safe_dump(
        mapping,
        sort_keys=False,
        default_flow_style=flow,
        default_style=style,
        allow_unicode=True,
        line_break=end,
    )
    if comments:
        block = f"# first{end}{block}# last{end}"
    body = f"{end}text{end}---{end}"
    readme = Readme.parse(f"---{end}{block}---{end}{body}", "R")
    assert readme.metadata() == mapping
    changes = {**OURS, "license": None}
    found = str(readme.with_metadata(changes))
    again = Readme.parse(found, "R")
    wanted = {k: v for k, v in {**mapping, **OURS}.items() if k != "license" or v is None}
    assert again.metadata() == wanted
    assert again.body == body
    assert str(again.with_metadata(changes)) == found
    assert found.replace(end, "").count("\r") == 0
    if end == "\r\n":
        assert found.replace("\r\n", "").count("\n") == 0
