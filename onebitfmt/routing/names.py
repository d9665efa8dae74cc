"""Which names an expert may have where it is a label of a router or a folder of a collection."""

from __future__ import annotations

import re
from typing import Final

MAX_EXPERTS: Final = 256

_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


def is_expert_name(name: str) -> bool:
    """True for 1 to 64 letters, digits, `.`, `_` and `-`, a letter or digit at both ends.

    Such a name is a plain folder name on every operating system.
    """
    return _NAME.fullmatch(name) is not None
