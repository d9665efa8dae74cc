from __future__ import annotations

import numpy as np
import pytest

from onebitfmt.merge.masks import keep_mask, mask_key

MASK = 2**64 - 1


def splitmix(key: int, i: int) -> int:
    """Output i of splitmix64 by its author's definition."""
    z = (key + (i + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


@pytest.mark.parametrize("key", [0, 1, MASK])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_an_element_is_kept_by_the_hash_of_its_place(key: int, density: float) -> None:
    kept = keep_mask(key, 3, 200, density)
    assert kept.tolist() == [(splitmix(key, i) >> 11) / 2**53 < density for i in range(3, 203)]


def test_slices_agree_with_the_whole() -> None:
    whole = keep_mask(7, 0, 1000, 0.3)
    for first, stop in ((0, 1), (1, 999), (999, 1000), (500, 500)):
        assert np.array_equal(keep_mask(7, first, stop - first, 0.3), whole[first:stop])


def test_the_share_is_the_density() -> None:
    share = keep_mask(mask_key(0, "math", "w"), 0, 1_000_000, 0.2).mean()
    assert abs(share - 0.2) < 5 * (0.2 * 0.8 / 1e6) ** 0.5


def test_masks_are_not_related() -> None:
    places = [
        (0, "a", "x"),
        (1, "a", "x"),
        (0, "b", "x"),
        (0, "a", "y"),
        (0, "ax", ""),
        (0, "", "ax"),
    ]
    masks = [keep_mask(mask_key(*place), 0, 100_000, 0.5) for place in places]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert abs((one == other).mean() - 0.5) < 0.01


def test_a_key_is_the_same_everywhere() -> None:
    assert mask_key(0, "math", "lm_head.weight") == 1589464767211420214
