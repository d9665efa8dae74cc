"""Minimisers: L-BFGS for the weights of a router, golden section for its temperature."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_MEMORY: Final = 12
_ARMIJO: Final = 1e-4
_HALVINGS: Final = 30
_GOLDEN: Final = (5**0.5 - 1) / 2


def minimise(
    function: Callable[[Array], tuple[float, Array]],
    start: Array,
    *,
    iterations: int = 200,
    tolerance: float = 1e-5,
) -> Array:
    """A point float64 [n] where a smooth function is least, by L-BFGS with backtracking.

    `function` gives value and gradient. Ends after `iterations`, where no component of the gradient
    exceeds `tolerance`, or where no step goes down any more. Nocedal and Wright, algorithm 7.4.
    """
    pairs: deque[tuple[Array, Array]] = deque(maxlen=_MEMORY)
    point = start
    value, gradient = function(point)
    for _ in range(iterations):
        if np.abs(gradient).max(initial=0.0) <= tolerance:
            break
        direction = _direction(gradient, pairs)
        slope = float(gradient @ direction)
        # Without curvature known yet, the first step is one of length 1.
        step = 1.0 if pairs else 1.0 / float(np.linalg.norm(direction))
        for _ in range(_HALVINGS):
            there = point + step * direction
            new_value, new_gradient = function(there)
            if new_value <= value + _ARMIJO * step * slope:
                break
            step /= 2
        else:
            break
        moved, turned = there - point, new_gradient - gradient
        # Only pairs of positive curvature keep the direction one of descent.
        if moved @ turned > 1e-12 * float(turned @ turned):
            pairs.append((moved, turned))
        point, value, gradient = there, new_value, new_gradient
    return point


def _direction(gradient: Array, pairs: deque[tuple[Array, Array]]) -> Array:
    """Minus the gradient times the approximate inverse Hessian (the two-loop recursion)."""
    q = -gradient
    if not pairs:
        return q
    weights = []
    for moved, turned in reversed(pairs):
        weight = float(moved @ q) / float(moved @ turned)
        q = q - weight * turned
        weights.append(weight)
    moved, turned = pairs[-1]
    q = q * (float(moved @ turned) / float(turned @ turned))
    for (moved, turned), weight in zip(pairs, reversed(weights), strict=True):
        q = q + (weight - float(turned @ q) / float(moved @ turned)) * moved
    return q


def golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function of one number that has one minimum in [low, high] is least, to 1e-4."""
    a = high - _GOLDEN * (high - low)
    b = low + _GOLDEN * (high - low)
    at_a, at_b = function(a), function(b)
    while high - low > 1e-4:
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - _GOLDEN * (high - low)
            at_a = function(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + _GOLDEN * (high - low)
            at_b = function(b)
    return (low + high) / 2
