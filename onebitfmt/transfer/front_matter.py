"""A README.md with YAML metadata at its top, edited in place: all else keeps its bytes.

The metadata stand between two `---` lines, as the Hub reads them. A change touches just the lines
of its key, so that comments, order, quoting and line ends stay. The result is then read back; where
it does not say what was asked for (flow style, anchors, odd YAML), all metadata are written anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import yaml

from onebitfmt.errors import UsageError

Metadata = Mapping[str, Any]

_LINE_END: Final = re.compile(r"\r\n|\r|\n")
# The Hub's own expression (huggingface_hub.repocard), but an empty block may be empty, and a byte
# order mark may stand before it.
_OPENING: Final = re.compile(r"\ufeff?\s*---(?:\r\n|\r|\n)")
_REST: Final = re.compile(r"((?:[\s\S]*?(?:\r\n|\r|\n))??)(---[ \t]*(?:\r\n|\n|\Z))([\s\S]*)")
# Text in every version of YAML: no number begins with a letter, or has one of these.
_PLAIN: Final = re.compile(r"(?=[A-Za-z]|\S*[g-np-wyz])[A-Za-z0-9][A-Za-z0-9._/+-]*")
# What PyYAML lets through from values that do not fit their tags, besides its own errors.
_YAML_ERRORS: Final = (
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Readme:
    """A README in its parts, which joined are its text; `where` names it in errors.

    `opening` and `closing` are the lines around `block`, the YAML; all three are empty where there
    are no metadata. `line_end` is that of its first line, by default that of Unix.
    """

    where: str
    line_end: str
    opening: str
    block: str
    closing: str
    body: str

    @staticmethod
    def parse(text: str, where: str) -> Readme:
        """Take a README apart. Raises `UsageError` for metadata without an end."""
        first = re.search(r"\r?\n", text)
        none = Readme(
            where=where,
            line_end=first[0] if first else "\n",
            opening="",
            block="",
            closing="",
            body=text,
        )
        opening = _OPENING.match(text)
        if opening is None:
            return none
        rest = _REST.match(text, opening.end())
        if rest is None:
            raise UsageError(
                f"{where} begins with '---' as metadata do, but no second '---' line ends them; "
                "add that line, or begin with another line, then run again"
            )
        block, closing, body = rest.groups()
        return replace(none, opening=opening[0], block=block, closing=closing, body=body)

    def __str__(self) -> str:
        """The text."""
        return self.opening + self.block + self.closing + self.body

    def metadata(self) -> dict[str, Any]:
        """The metadata; none are an empty mapping. Raises `UsageError` for what is no mapping."""
        return self._load()[0]

    def with_metadata(self, changes: Metadata) -> Readme:
        """The README with these top-level keys set to a string or a list; None removes one.

        Raises `UsageError` for broken metadata.
        """
        before, node = self._load()
        changed = {k: v for k, v in changes.items() if before.get(k) != v}
        if not changed:
            return self
        wanted = {
            k: v for k, v in {**before, **changed}.items() if k not in changed or v is not None
        }
        framed = self if self.opening else self._framed()
        edited = framed._edited(node, before, changed)
        if edited is not None and edited._says(wanted):
            return edited
        text = yaml.safe_dump(
            wanted,
            sort_keys=False,
            allow_unicode=True,
            width=float("inf"),
            line_break=self.line_end,
        )
        return replace(framed, block=text)

    def _framed(self) -> Readme:
        mark = "\ufeff" if self.body.startswith("\ufeff") else ""
        rest, end = self.body.removeprefix("\ufeff"), self.line_end
        gap = end if rest.strip() and not _LINE_END.match(rest) else ""
        return replace(self, opening=f"{mark}---{end}", closing=f"---{end}", body=gap + rest)

    def _load(self) -> tuple[dict[str, Any], yaml.MappingNode | None]:
        """The metadata, and the node that tells where in `block` each stands."""
        try:
            node = yaml.compose(self.block, Loader=yaml.SafeLoader)
            found = yaml.safe_load(self.block)
        except _YAML_ERRORS as e:
            raise self._broken(_problem(e), getattr(e, "problem_mark", None)) from None
        if found is None:
            return {}, None
        if not isinstance(found, dict):
            raise self._broken("expected lines such as 'license: mit'", None)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise self._broken(f"{twice[0]!r} stands twice", None)
        return found, node

    def _broken(self, problem: str, mark: Any) -> UsageError:
        at = f" in line {self.opening.count(chr(10)) + mark.line + 1}" if mark else ""
        return UsageError(
            f"{self.where}: the metadata between its '---' lines are not valid{at} ({problem}); "
            "correct them, then run again"
        )

    def _says(self, wanted: Metadata) -> bool:
        try:
            return bool(yaml.safe_dump(self._load()[0]) == yaml.safe_dump(wanted))
        except (UsageError, *_YAML_ERRORS):
            return False

    def _edited(
        self, node: yaml.MappingNode | None, before: Metadata, changed: Metadata
    ) -> Readme | None:
        """With just the lines of these keys changed; None where that cannot be done."""
        if node is not None and node.flow_style:
            return None
        pairs = [] if node is None else node.value
        column = pairs[0][0].start_mark.column if pairs else 0
        entries = {k.value: (k, v) for k, v in pairs if isinstance(k, yaml.ScalarNode)}
        editor = _Editor(block=self.block, line_end=self.line_end)
        try:
            edits = []
            for name, value in changed.items():
                if name not in entries:
                    edits.append(editor.addition(column, name, value))
                elif value is None:
                    edits.append(editor.removal(*entries[name]))
                else:
                    edits.append(editor.replacement(entries[name][1], before[name], value))
        except _YAML_ERRORS:
            return None
        pieces, done = [], 0
        for edit in sorted(edits, key=lambda edit: edit.start):
            pieces += [self.block[done : edit.start], edit.text]
            done = edit.end
        return replace(self, block="".join([*pieces, self.block[done:]]))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Edit:
    """A range of characters and what comes in their place."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Editor:
    """Says what to change in a block of YAML, by the nodes that stand in it."""

    block: str
    line_end: str

    def addition(self, column: int, name: str, value: str | Sequence[Any]) -> _Edit:
        """A new key after all others."""
        indent = " " * column
        if isinstance(value, str):
            lines = [f"{indent}{name}: {_inline(value)}"]
        else:
            lines = [f"{indent}{name}:", *(f"{indent}- {_inline(item)}" for item in value)]
        end = len(self.block)
        return _Edit(start=end, end=end, text="".join(line + self.line_end for line in lines))

    def removal(self, key: yaml.Node, value: yaml.Node) -> _Edit:
        """Without the lines of this key."""
        start = key.start_mark.index - key.start_mark.column
        return _Edit(start=start, end=self._line_after(self._end(value)), text="")

    def replacement(self, node: yaml.Node, before: Any, value: str | Sequence[Any]) -> _Edit:
        """Another value; a list that only grows keeps the lines that it has."""
        start, end = node.start_mark.index, self._end(node)
        is_block = isinstance(node, yaml.CollectionNode) and not node.flow_style
        separator = f"{self.line_end}{' ' * node.start_mark.column}- " if is_block else ", "
        if isinstance(node, yaml.SequenceNode) and before and value[: len(before)] == before:
            at = self._line_of(end) if is_block else self._end(node.value[-1])
            more = "".join(separator + _inline(item) for item in value[len(before) :])
            return _Edit(start=at, end=at, text=more)
        if isinstance(value, str):
            text = _inline(value)
        elif is_block:
            text = "- " + separator.join(map(_inline, value))
        else:
            text = f"[{separator.join(map(_inline, value))}]"
        # Nothing, not even a space, may stand where the value is missing.
        return _Edit(start=start, end=end, text=text if start < end else f" {text}")

    def _end(self, node: yaml.Node) -> int:
        """Where a node's last character is; a block's own end is that of the comments after it."""
        if isinstance(node, yaml.CollectionNode) and not node.flow_style:
            last = node.value[-1]
            return self._end(last[1] if isinstance(last, tuple) else last)
        start = int(node.start_mark.index)
        return start + len(self.block[start : node.end_mark.index].rstrip())

    def _line_of(self, position: int) -> int:
        """The end of the line at a position, before its line end."""
        found = _LINE_END.search(self.block, position)
        return found.start() if found else len(self.block)

    def _line_after(self, position: int) -> int:
        found = _LINE_END.search(self.block, position)
        return found.end() if found else len(self.block)


def _inline(value: Any) -> str:
    """A value on one line."""
    is_text = isinstance(value, str)
    if is_text and _PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return str(value)
    text = yaml.safe_dump(
        [value],
        default_flow_style=True,
        default_style='"' if is_text else None,
        allow_unicode=True,
        width=float("inf"),
    )
    return str(text).strip()[1:-1]


def _problem(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).partition("\n")[0]
