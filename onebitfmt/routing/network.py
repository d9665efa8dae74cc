"""The classifier: one linear layer, or two with tanh between; values, loss and gradient."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Layer = tuple[Array, Array]


def logits(layers: Sequence[Layer], features: Array) -> Array:
    """Scores of the classes, float64 [n, K]; a layer is (weight [out, in], bias [out])."""
    value = features.astype(np.float64)
    for i, (weight, bias) in enumerate(layers):
        if i:
            value = np.tanh(value)
        value = value @ weight.T.astype(np.float64) + bias
    return value


def log_softmax(scores: Array) -> Array:
    """Logarithms of the probabilities of scores [n, K]."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def initial(sizes: Sequence[int], seed: int) -> list[Layer]:
    """Layers of the given sizes: zeros for one layer, else small seeded weights (LeCun)."""
    if len(sizes) == 2:
        return [(np.zeros((sizes[1], sizes[0])), np.zeros(sizes[1]))]
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(0, fan_in**-0.5, (fan_out, fan_in)), np.zeros(fan_out))
        for fan_in, fan_out in pairwise(sizes)
    ]


def loss(
    layers: Sequence[Layer], features: Array, classes: Array, decay: float
) -> tuple[float, list[Layer]]:
    """Mean cross-entropy plus decay/2 times the squared weights (not the biases), and gradient.

    `features` are float64 [n, d], `classes` integers [n].
    """
    inputs = [features]
    for weight, bias in layers[:-1]:
        inputs.append(np.tanh(inputs[-1] @ weight.T + bias))
    weight, bias = layers[-1]
    told = log_softmax(inputs[-1] @ weight.T + bias)
    rows = np.arange(len(classes))
    value = -float(told[rows, classes].mean())
    error = np.exp(told)
    error[rows, classes] -= 1
    error /= len(classes)
    gradient: list[Layer] = []
    for i in reversed(range(len(layers))):
        weight, _ = layers[i]
        value += decay / 2 * float((weight * weight).sum())
        gradient.append((error.T @ inputs[i] + decay * weight, error.sum(axis=0)))
        if i:
            error = (error @ weight) * (1 - inputs[i] ** 2)
    return value, gradient[::-1]


def flatten(layers: Sequence[Layer]) -> Array:
    """All numbers of the layers as one vector."""
    return np.concatenate([part.reshape(-1) for layer in layers for part in layer])


def unflatten(vector: Array, sizes: Sequence[int]) -> list[Layer]:
    """The layers in a vector that `flatten` made, as views of it."""
    layers = []
    position = 0
    for fan_in, fan_out in pairwise(sizes):
        weight = vector[position : position + fan_in * fan_out].reshape(fan_out, fan_in)
        position += fan_in * fan_out
        layers.append((weight, vector[position : position + fan_out]))
        position += fan_out
    return layers
