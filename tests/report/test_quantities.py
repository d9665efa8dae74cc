from __future__ import annotations

import pytest

from onebitfmt.report.quantities import percent, size


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1_234_567, "1.23 MB"),
        (5_000_000_000, "5.00 GB"), (7_654_321_000_000, "7654.32 GB"),
    ],
)  # fmt: skip
def test_sizes_are_in_powers_of_1000(nbytes: int, expected: str) -> None:
    assert size(nbytes) == expected


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [(1, 8, "12.50 %"), (3, 1, "300.00 %"), (0, 5, "0.00 %"), (1, 0, "-")],
)
def test_percent(part: int, whole: int, expected: str) -> None:
    assert percent(part, whole) == expected
