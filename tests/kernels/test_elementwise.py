"""The record of an elementwise merge, against sums done by hand and one weight at a time."""

from __future__ import annotations

import numpy as np
import pytest

from onebitfmt.errors import UsageError
from onebitfmt.kernels.elementwise import Elementwise


def by_hand(rule: Elementwise, values: list[float]) -> np.float32:
    """The docstring's words for one weight, in scalars of float32."""
    single = np.float32
    weighted = [(k, single(rule.weights[k]) * single(values[k])) for k in rule.others]
    total = weighted[0][1]
    for _, v in weighted[1:]:
        total = total + v
    if rule.elect:
        agreed, count = single(0), single(0)
        for k, v in weighted:
            if (v > 0 and total >= 0) or (v < 0 and not total >= 0):
                agreed += v
                count += single(rule.shares[k] if rule.shares else 1)
        merged = agreed / (count or single(1))
    else:
        merged = total / single(rule.divisor)
    merged = single(rule.scale) * merged
    return merged if rule.select is None else single(values[rule.select]) + merged


RULES = (
    Elementwise(weights=(1.0, 1.0, 1.0)),
    Elementwise(weights=(1.0, 0.7, 0.3), divisor=2.0, scale=0.3),
    Elementwise(weights=(1.0, 0.7, 0.3), elect=True, scale=1.1),
    Elementwise(weights=(1.0, 0.7, 0.3), elect=True, shares=(1.0, 0.7, 0.3)),
    Elementwise(weights=(1.0, 0.7, 0.3), elect=True, select=1, scale=0.4),
    Elementwise(weights=(0.5, -0.5, 1.0), elect=True, shares=(0.5, -0.5, 1.0), select=2),
)


@pytest.mark.parametrize("rule", RULES)
def test_each_weight_is_as_by_hand(rule: Elementwise) -> None:
    rng = np.random.default_rng(0)
    vectors = np.where(rng.random((3, 200)) < 0.2, 0.0, rng.normal(0, 0.01, (3, 200)))
    vectors[1, ::3] = -vectors[0, ::3]
    vectors = vectors.astype(np.float32)
    found = rule.apply(vectors)
    assert found.dtype == np.float32
    wanted = [by_hand(rule, [float(v) for v in column]) for column in vectors.T]
    np.testing.assert_array_equal(found, np.array(wanted, np.float32))


def test_ties_of_three_numbers() -> None:
    rule = Elementwise(weights=(1.0, 1.0, 1.0), elect=True)
    # 3 + 1 - 2 > 0: the mean of 3 and 1. 1 - 2 - 3 < 0: the mean of -2 and -3. No votes: nothing.
    vectors = np.array([[3, 1, 0], [1, -2, 0], [-2, -3, 0]], np.float32)
    assert rule.apply(vectors).tolist() == [2.0, -2.5, 0.0]


def test_a_selected_expert_alone_is_itself() -> None:
    vectors = np.array([[0.5, -0.0]], np.float32)
    found = Elementwise(weights=(1.0,), select=0, elect=True, scale=0.4).apply(vectors)
    assert found.view(np.uint32).tolist() == vectors[0].view(np.uint32).tolist()


def test_the_selected_expert_has_no_vote() -> None:
    rule = Elementwise(weights=(9.0, 1.0), select=0, elect=True, scale=0.5)
    assert rule.others == (1,)
    assert rule.apply(np.array([[1.0], [-4.0]], np.float32)).tolist() == [-1.0]


@pytest.mark.parametrize("divisor", [0.0, -0.0, 1e-60])
def test_a_divisor_of_zero_is_refused(divisor: float) -> None:
    with pytest.raises(UsageError, match="cannot divide"):
        Elementwise(weights=(1.0,), divisor=divisor)
