"""Hub ids: `ns/name[:expert][@revision]`, told apart from local paths."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from onebitfmt.errors import UsageError

# The Hub's own rule, but for `--` and `..`, which it refuses anywhere, and a name in `.git`.
_PART: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_HUB_ID: Final = re.compile(rf"({_PART}/{_PART})(?::([^:@/\s]+))?(?:@([^@\s]+))?")
_MAX_REPO: Final = 96


@dataclass(frozen=True, kw_only=True, slots=True)
class HubId:
    """A model repository, one of its experts, a branch, tag, commit or refs/pr/N of it."""

    repo: str
    expert: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        """As it is written: ns/name:expert@revision."""
        expert = f":{self.expert}" if self.expert is not None else ""
        revision = f"@{self.revision}" if self.revision is not None else ""
        return f"{self.repo}{expert}{revision}"


def parse_hub_id(text: str) -> HubId | None:
    """The id that the text spells, or None where it cannot be one, as ./x, /x, a/b/c."""
    match = _HUB_ID.fullmatch(text)
    if match is None:
        return None
    repo = match[1]
    if len(repo) > _MAX_REPO or "--" in repo or ".." in repo or repo.endswith(".git"):
        return None
    return HubId(repo=repo, expert=match[2], revision=match[3])


def hub_id(source: str | Path) -> HubId | None:
    """The id that a source spells, or None where it is local: a `Path`, or a path that exists."""
    if isinstance(source, Path) or local_path(source).exists():
        return None
    return parse_hub_id(source)


def local_path(source: str | Path) -> Path:
    """The path that a source spells, `~` resolved. Raises `UsageError` for a user unknown here."""
    try:
        return Path(source).expanduser()
    except RuntimeError:
        raise UsageError(f"{source}: there is no such user's home folder") from None
