from __future__ import annotations

import re

import pytest

from onebitfmt.transfer.licences import HUB_LICENCES, hub_licence


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["mit"], ("mit", None)),
        (["MIT", " mit "], ("mit", None)),
        (["Apache-2.0"], ("apache-2.0", None)),
        (["openrail++"], ("openrail++", None)),
        (["unknown"], ("unknown", None)),
        (["mit", "apache-2.0"], ("other", "several-licences")),
        (["mit", None], None),
        (["mit", "apache-2.0", None], None),
        ([None], None),
        (["mit", " "], None),
        ([], None),
        (["gpl-2.0-or-later"], ("other", "gpl-2.0-or-later")),
        (["My Licence, 1.0!"], ("other", "my-licence-1.0")),
        (["other"], ("other", "other")),
        (["***"], ("other", "other")),
        (["a --> b\n| c"], ("other", "a-b-c")),
        (["x" * 1000], ("other", "x" * 96)),
    ],
)
def test_the_licence_of_experts_together(
    licences: list[str | None], expected: tuple[str, str | None] | None
) -> None:
    assert hub_licence(licences) == expected


def test_identifiers_are_as_the_hub_spells_them() -> None:
    assert len(HUB_LICENCES) == 82
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name) for name in HUB_LICENCES)
    assert {"apache-2.0", "llama3.1", "gemma", "cc-by-nc-sa-4.0"} <= HUB_LICENCES
    assert "other" not in HUB_LICENCES
