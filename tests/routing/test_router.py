from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from onebitfmt.errors import UsageError
from onebitfmt.routing.ngrams import CharacterNGrams
from onebitfmt.routing.router import Router, explicit

Make = Callable[..., Router]
PROMPTS = ["one", "two and more", "3"]


@pytest.mark.parametrize("units", [0, 5])
def test_probabilities_are_those_of_torch(make_router: Make, units: int) -> None:
    torch = pytest.importorskip("torch")
    router = make_router(units=units)
    features = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)
    value = torch.tensor(features).double()
    for i, (weight, bias) in enumerate(router.layers):
        value = torch.tanh(value) if i else value
        value = value @ torch.tensor(weight).double().T + torch.tensor(bias)
    expected = torch.softmax(value / 1.5, dim=1).float().numpy()
    found = router.probabilities(features)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for row, alone in zip(found, features, strict=True):
        np.testing.assert_allclose(router.probabilities(alone[None])[0], row, rtol=1e-6)


def test_the_most_probable_expert_answers(make_router: Make) -> None:
    router = make_router()
    features = CharacterNGrams(spec=router.spec)
    told = router.probabilities(features(PROMPTS))
    for decision, row in zip(router.route(PROMPTS, features), told, strict=True):
        best = router.labels[int(row.argmax())]
        assert decision.expert == best
        assert decision.weights == {best: 1.0}
        assert decision.probabilities == dict(zip("abc", map(float, row), strict=True))
        assert f"{best} {row.max():.3f}" in decision.reason


def test_top_and_soft_share_the_weights(make_router: Make) -> None:
    router = make_router()
    features = CharacterNGrams(spec=router.spec)
    [two] = router.route(["one"], features, top=2)
    [soft] = router.route(["one"], features, top=3)
    p = soft.probabilities
    best = sorted(p, key=lambda name: -p[name])
    assert list(two.weights) == best[:2]
    total = p[best[0]] + p[best[1]]
    assert two.weights[best[0]] == pytest.approx(p[best[0]] / total)
    assert sum(two.weights.values()) == pytest.approx(1)
    assert soft.weights == pytest.approx(p, rel=1e-5)
    assert router.route(["one"], features, top=99) == [soft]


def test_little_confidence_falls_back_to_the_merge(make_router: Make) -> None:
    router = make_router()
    features = CharacterNGrams(spec=router.spec)
    [decision] = router.route(["one"], features)
    confidence = max(decision.probabilities.values())
    [kept] = router.route(["one"], features, min_confidence=confidence)
    assert kept == decision
    [lost] = router.route(["one"], features, min_confidence=confidence + 1e-3)
    assert lost.expert is None
    assert lost.weights == {}
    assert lost.probabilities == decision.probabilities
    assert "static merge" in lost.reason
    assert str(decision.expert) in lost.reason


def test_of_equals_the_first_wins(make_router: Make) -> None:
    router = make_router()
    weight, bias = router.layers[0]
    flat = replace(router, layers=((weight * 0, bias * 0),))
    [decision] = flat.route(["one"], CharacterNGrams(spec=router.spec), top=2)
    assert decision.expert == "a"
    assert decision.weights == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_fall_back(make_router: Make, value: float) -> None:
    router = make_router()

    class Broken:
        spec = router.spec

        def __call__(self, prompts: object) -> object:
            features = np.zeros((2, 8), np.float32)
            features[0, 3] = value
            return features

    broken, good = router.route(["x", "y"], Broken())  # type: ignore[arg-type]
    assert (broken.expert, broken.weights) == (None, {})
    assert "not finite" in broken.reason
    assert good.expert is not None


def test_explicit_wins_without_asking() -> None:
    decision = explicit("math")
    assert (decision.expert, decision.weights) == ("math", {"math": 1.0})


def test_other_features_are_refused(make_router: Make) -> None:
    router = make_router()
    other = CharacterNGrams(spec=replace(router.spec, sizes=(1,)))
    with pytest.raises(UsageError, match="open_featurizer"):
        router.route(["x"], other)
    with pytest.raises(UsageError, match="8 features"):
        router.probabilities(np.zeros((1, 7), np.float32))


def test_bad_options_are_refused(make_router: Make) -> None:
    router = make_router()
    features = CharacterNGrams(spec=router.spec)
    with pytest.raises(UsageError, match="top"):
        router.route(["x"], features, top=0)
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="min_confidence"):
            router.route(["x"], features, min_confidence=bad)


def test_no_prompts_no_decisions(make_router: Make) -> None:
    router = make_router()
    assert router.route([], CharacterNGrams(spec=router.spec)) == []
