"""Prompts of the small family, and routers that are made without training."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.routing.router import Router
from onebitfmt.routing.spec import FeatureSpec

FAMILY = Path(__file__).parents[1] / "data" / "family"


@pytest.fixture(scope="session")
def base() -> Checkpoint:
    return Checkpoint.open(FAMILY / "base")


@pytest.fixture
def make_router() -> Callable[..., Router]:
    def make(seed: int = 0, *, units: int = 0, labels: tuple[str, ...] = ("a", "b", "c"),
             **fields: Any) -> Router:  # fmt: skip
        rng = np.random.default_rng(seed)
        sizes = [8, *([units] if units else []), len(labels)]
        layers = tuple(
            (
                rng.normal(size=(fan_out, fan_in)).astype(np.float32),
                rng.normal(size=fan_out).astype(np.float32),
            )
            for fan_in, fan_out in itertools.pairwise(sizes)
        )
        spec = FeatureSpec(kind="ngrams", dimension=8, sizes=(1, 2))
        values = {"temperature": 1.5, "metrics": {"held_out": 3, "accuracy": "1.000000"}} | fields
        return Router(labels=labels, spec=spec, layers=layers, **values)

    return make
