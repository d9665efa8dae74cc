from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onebitfmt.routing.minimise import golden_section, minimise


def test_a_quadratic_is_solved() -> None:
    rng = np.random.default_rng(1)
    root = rng.normal(size=(20, 20))
    matrix = root @ root.T + np.eye(20)
    wanted = rng.normal(size=20)

    def function(x: Any) -> tuple[float, Any]:
        error = x - wanted
        return float(error @ matrix @ error) / 2, matrix @ error

    np.testing.assert_allclose(minimise(function, np.zeros(20), tolerance=1e-9), wanted, atol=1e-7)


def test_a_curved_valley_is_followed() -> None:
    def rosenbrock(p: Any) -> tuple[float, Any]:
        x, y = p
        slope = np.array([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)])
        return float((1 - x) ** 2 + 100 * (y - x * x) ** 2), slope

    np.testing.assert_allclose(minimise(rosenbrock, np.array([-1.2, 1.0])), [1, 1], atol=1e-4)


def test_it_ends_at_the_minimum_and_where_nothing_goes_down() -> None:
    calls = []

    def flat(x: Any) -> tuple[float, Any]:
        calls.append(x)
        return 0.0, np.zeros_like(x)

    assert (minimise(flat, np.ones(3)) == 1).all()
    assert len(calls) == 1
    # The gradient lies: no step is better.
    assert (minimise(lambda x: (abs(float(x[0])), np.ones(1)), np.zeros(1)) == 0).all()
    assert minimise(flat, np.empty(0)).size == 0


@pytest.mark.parametrize("wanted", [-3.0, 0.25, 4.0])
def test_golden_section(wanted: float) -> None:
    assert abs(golden_section(lambda x: (x - wanted) ** 2, -4, 4) - wanted) < 1e-4
