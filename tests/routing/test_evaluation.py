from __future__ import annotations

import numpy as np
import pytest

from onebitfmt.routing.evaluation import evaluate

TOLD = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.35, 0.65]], np.float32)


def test_marks_by_hand() -> None:
    found = evaluate(("a", "b"), TOLD, np.array([0, 1, 1, 1]))
    assert found.confusion == ((1, 0), (1, 2))
    assert found.examples == 4
    assert found.accuracy == 0.75
    assert found.recall == {"a": 1.0, "b": pytest.approx(2 / 3)}
    assert found.nll == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.65]).mean())
    # Bins 0.9, 0.6 (two prompts: mean confidence 0.625, half of them right) and 0.8.
    assert found.calibration_error == pytest.approx((0.1 + 2 * 0.125 + 0.2) / 4)


def test_impossible_and_unasked_labels() -> None:
    told = np.array([[1.0, 0.0, 0.0]], np.float32)
    found = evaluate(("a", "b", "c"), told, np.array([1]))
    assert np.isfinite(found.nll)
    assert found.nll > 80
    assert found.recall == {"b": 0.0}
    assert found.calibration_error == 1.0
