from __future__ import annotations

import numpy as np
import pytest
import torch

from onebitfmt.merge.average import average
from onebitfmt.merge.task_arithmetic import add_up, mean_divisor

VECTORS = [np.random.default_rng(k).normal(0, 1, 300).astype(np.float32) for k in range(4)]


@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [1, 0.7, 0.3, -0.2]])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_sum_is_torchs(weights: list[float], normalize: bool) -> None:
    w = torch.tensor(weights).reshape(-1, 1)
    expected = (torch.from_numpy(np.stack(VECTORS)) * w).sum(0)
    if normalize:
        expected /= w.sum(0)
    found = add_up(VECTORS, [np.float32(x) for x in weights], normalize=normalize)
    assert np.array_equal(found, expected.numpy())


def test_weights_that_cancel_out_divide_nothing() -> None:
    assert mean_divisor([np.float32(1), np.float32(-1)]) == 1
    found = add_up(VECTORS[:2], [np.float32(1), np.float32(-1)], normalize=True)
    assert np.array_equal(found, VECTORS[0] - VECTORS[1])


def test_an_average_is_a_mean() -> None:
    found = average(VECTORS, [np.float32(1)] * 4)
    assert np.allclose(found, np.mean(np.stack(VECTORS).astype(np.float64), axis=0), atol=1e-6)
    assert np.array_equal(average(VECTORS[:1], [np.float32(3)]), VECTORS[0] * 3 / np.float32(3))
