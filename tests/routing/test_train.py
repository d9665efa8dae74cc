from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import family
import numpy as np
import pytest

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import UsageError
from onebitfmt.routing.examples import Example, split
from onebitfmt.routing.features import make_featurizer
from onebitfmt.routing.ngrams import CharacterNGrams, ngram_spec
from onebitfmt.routing.spec import FeatureSpec
from onebitfmt.routing.train import KINDS, calibrate, evaluate_router, train_router

SMALL = CharacterNGrams(spec=ngram_spec(64, (1, 2)))


class Planar:
    """Two features written in the prompt itself, so that classes can overlap."""

    spec = FeatureSpec(kind="ngrams", dimension=2, sizes=(1,))

    def __call__(self, prompts: object) -> np.ndarray:
        return np.array([[float(x) for x in p.split()[:2]] for p in prompts], np.float32)  # type: ignore[attr-defined]


def overlapping(n: int, seed: int = 1) -> list[Example]:
    rng = np.random.default_rng(seed)
    centres = {"a": (0, 0), "b": (2, 0), "c": (0, 2)}
    return [
        Example(prompt=" ".join(map(str, rng.normal(c, 1.0))), label=k)
        for k, c in centres.items()
        for _ in range(n)
    ]


def of_family(split: str, count: int) -> list[Example]:
    return [
        Example(prompt=p.text, label=task)
        for task in family.TASKS
        for p in family.prompts(task, split)[:count]
    ]


@pytest.mark.parametrize("features", ["ngrams", "embedding"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_family_is_told_apart(features: str, kind: str, base: Checkpoint) -> None:
    featurizer = make_featurizer(features, base)
    router = train_router(of_family("train", 150), featurizer, kind=kind)
    assert router.labels == ("chat", "code", "math")
    marks = evaluate_router(router, featurizer, of_family("test", 200))
    assert marks.accuracy >= 0.995
    assert router.metrics["held_out"] == 90
    assert router.metrics["train"] == 360


def test_the_fit_is_the_minimum_that_torch_finds() -> None:
    torch = pytest.importorskip("torch")
    examples = overlapping(100)
    router = train_router(examples, Planar())
    training, _ = split(examples, 0.2, 0)
    x = Planar()([e.prompt for e in training]).astype(np.float64)
    x = torch.tensor((x - x.mean(axis=0)) / x.std(axis=0))
    y = torch.tensor(["abc".index(e.label) for e in training])
    layer = torch.nn.Linear(2, 3, dtype=torch.float64)
    optimiser = torch.optim.LBFGS(
        layer.parameters(), max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> object:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(layer(x), y) + 5e-4 * (layer.weight**2).sum()
        value.backward()
        return value

    optimiser.step(closure)
    expected = torch.softmax(layer(x).detach() / router.temperature, dim=1).numpy()
    found = router.probabilities(Planar()([e.prompt for e in training]))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_input_gives_equal_bytes(kind: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_router(overlapping(30), Planar(), kind=kind, seed=3).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    train_router(overlapping(30), Planar(), kind=kind, seed=4).save(tmp_path / "c")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_an_mlp_learns_what_a_line_cannot() -> None:
    rng = np.random.default_rng(5)
    points = rng.uniform(-1, 1, (600, 2))
    examples = [
        Example(prompt=f"{x} {y}", label="same" if (x > 0) == (y > 0) else "other")
        for x, y in points
    ]
    line = train_router(examples, Planar())
    network = train_router(examples, Planar(), kind="mlp")
    assert float(line.metrics["accuracy"]) < 0.7
    assert float(network.metrics["accuracy"]) > 0.95


def test_the_metrics_are_those_of_the_held_out_part() -> None:
    examples = overlapping(100)
    router = train_router(examples, Planar(), seed=2)
    _, kept = split(examples, 0.2, 2)
    marks = evaluate_router(router, Planar(), kept)
    assert 0.5 < marks.accuracy < 1
    assert router.metrics == {
        "kind": "softmax",
        "seed": 2,
        "train": 240,
        "held_out": 60,
        "duplicates": 0,
        "accuracy": f"{marks.accuracy:.6f}",
        "confusion": [list(row) for row in marks.confusion],
        "nll": f"{marks.nll:.6f}",
        "calibration_error": f"{marks.calibration_error:.6f}",
    }


def test_calibration_mends_confidence() -> None:
    """Scores ten times too large are made as likely as the right ones."""
    rng = np.random.default_rng(6)
    right = rng.normal(size=(4000, 3)) * 2
    p = np.exp(right) / np.exp(right).sum(axis=1, keepdims=True)
    classes = (rng.uniform(size=(4000, 1)) > p.cumsum(axis=1)).sum(axis=1)
    assert calibrate(right, classes) == pytest.approx(1, abs=0.08)
    assert calibrate(right * 10, classes) == pytest.approx(10 * calibrate(right, classes), rel=1e-3)


def test_the_temperature_is_the_best_of_a_grid() -> None:
    rng = np.random.default_rng(7)
    scores, classes = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    classes[:30] = scores[:30].argmax(axis=1)

    def nll(t: float) -> float:
        e = np.exp(scores / t)
        p = np.log(e / e.sum(axis=1, keepdims=True))
        smooth = np.full((50, 4), 1 / 54)
        smooth[np.arange(50), classes] = 51 / 54
        return -float((smooth * p).sum() / 50)

    grid = np.exp(np.linspace(np.log(0.02), np.log(50), 2000))
    best = min(grid, key=nll)
    assert calibrate(scores, classes) == pytest.approx(best, rel=0.005)


def test_no_number_of_right_answers_is_certainty() -> None:
    scores, classes = np.eye(3)[[0, 1, 2] * 10], np.array([0, 1, 2] * 10)
    p = np.exp(scores / calibrate(scores, classes))
    confidence = (p / p.sum(axis=1, keepdims=True)).max()
    assert confidence == pytest.approx(31 / 33, abs=1e-3)


def test_duplicates_are_dropped_before_the_split() -> None:
    examples = overlapping(20)
    router = train_router([*examples, *examples], Planar())
    once = train_router(examples, Planar())
    assert router.metrics == dict(once.metrics) | {"duplicates": 60}
    np.testing.assert_array_equal(router.layers[0][0], once.layers[0][0])


def test_features_that_never_vary_do_no_harm() -> None:
    examples = [Example(prompt=p, label=k) for k in "ab" for p in ("same", "same ", "same  ")]
    router = train_router(examples, replace(SMALL, spec=ngram_spec(64, (1,))))
    assert all(np.isfinite(w).all() for w, _ in router.layers)

    class Constant(Planar):
        def __call__(self, prompts: object) -> np.ndarray:
            return np.ones((len(prompts), 2), np.float32)  # type: ignore[arg-type]

    flat = train_router(overlapping(10), Constant())
    np.testing.assert_allclose(flat.probabilities(np.ones((1, 2), np.float32)), 1 / 3, atol=1e-3)


def test_features_that_are_not_finite_are_refused() -> None:
    class Broken(Planar):
        def __call__(self, prompts: object) -> np.ndarray:
            return super().__call__(prompts) * np.inf

    with pytest.raises(UsageError, match="not finite"):
        train_router(overlapping(10), Broken())


def test_bad_requests_are_refused() -> None:
    examples = overlapping(5)
    with pytest.raises(UsageError, match="softmax, mlp"):
        train_router(examples, Planar(), kind="forest")
    with pytest.raises(UsageError, match="not a name"):
        train_router([replace(e, label=f"{e.label} x") for e in examples], Planar())
    many = [Example(prompt=f"{i} {j}", label=f"l{i}") for i in range(257) for j in range(2)]
    with pytest.raises(UsageError, match="257 labels"):
        train_router(many, Planar())
    router = train_router(examples, Planar())
    with pytest.raises(UsageError, match="'z'"):
        evaluate_router(router, Planar(), [Example(prompt="0 0", label="z")])
