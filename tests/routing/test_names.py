from __future__ import annotations

import pytest

from onebitfmt.routing.names import is_expert_name


@pytest.mark.parametrize("name", ["a", "math", "A-1.b_c", "7", "x" * 64])
def test_good_names(name: str) -> None:
    assert is_expert_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "a b", "-a", ".a", "a.", "a-", "ä", "a\n", "x" * 65]
)
def test_bad_names(name: str) -> None:
    assert not is_expert_name(name)
