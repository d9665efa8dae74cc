from __future__ import annotations

import itertools

import numpy as np
import pytest

from onebitfmt.routing.network import flatten, initial, log_softmax, logits, loss, unflatten


@pytest.mark.parametrize("sizes", [(5, 3), (5, 4, 3)])
def test_the_gradient_is_that_of_differences(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    features, classes = rng.normal(size=(11, 5)), rng.integers(0, 3, 11)
    point = rng.normal(size=flatten(initial(sizes, 0)).size)
    _, gradient = loss(unflatten(point, sizes), features, classes, 0.1)
    for i, found in enumerate(flatten(gradient)):
        step = np.zeros_like(point)
        step[i] = 1e-6
        up, _ = loss(unflatten(point + step, sizes), features, classes, 0.1)
        down, _ = loss(unflatten(point - step, sizes), features, classes, 0.1)
        assert found == pytest.approx((up - down) / 2e-6, abs=1e-7)


@pytest.mark.parametrize("sizes", [(5, 3), (5, 4, 3)])
def test_the_loss_is_that_of_torch(sizes: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    features, classes = rng.normal(size=(11, 5)), rng.integers(0, 3, 11)
    layers = [(rng.normal(size=(b, a)), rng.normal(size=b)) for a, b in itertools.pairwise(sizes)]
    value = torch.tensor(features)
    for i, (weight, bias) in enumerate(layers):
        value = torch.tanh(value) if i else value
        value = torch.nn.functional.linear(value, torch.tensor(weight), torch.tensor(bias))
    np.testing.assert_allclose(logits(layers, features), value.numpy(), rtol=1e-12)
    expected = torch.nn.functional.cross_entropy(value, torch.tensor(classes)).item()
    decay = sum(0.05 * float((weight**2).sum()) for weight, _ in layers)
    assert loss(layers, features, classes, 0.1)[0] == pytest.approx(expected + decay)


def test_log_softmax_stands_large_scores() -> None:
    found = log_softmax(np.array([[1000.0, 0.0], [-1000.0, -1000.0]]))
    np.testing.assert_allclose(found, [[0, -1000], [-np.log(2), -np.log(2)]])


def test_the_start_depends_on_the_seed_alone() -> None:
    assert not flatten(initial((4, 3), 1)).any()
    np.testing.assert_array_equal(flatten(initial((4, 5, 3), 1)), flatten(initial((4, 5, 3), 1)))
    assert (flatten(initial((4, 5, 3), 1)) != flatten(initial((4, 5, 3), 2))).any()
