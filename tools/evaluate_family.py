"""The paper's tables for the small model family: `make evaluate`.

Table 2: fine-tuned experts, compressed experts, static merges, 1bit-Merging and routing, as exact
match in percent on the `test` prompts of each task, with the bytes each needs. Table 7: static
merges of compressed experts. Factors are chosen on the `sweep` prompts, never on those reported.
Tables 1 and 5, which layer groups to compress, are what `tools/scales.py` prints.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from family import FAMILY, TASKS, Prompt, exact_match, prompts
from transformers.utils import logging

from onebitfmt import Checkpoint, ConvertOptions, SignOptions, convert, storage
from onebitfmt.merge.engine import Merger
from onebitfmt.merge.experts import ExpertSource
from onebitfmt.merge.recipe import Recipe
from onebitfmt.routing.examples import Example
from onebitfmt.routing.features import Featurizer, make_featurizer
from onebitfmt.routing.router import Router
from onebitfmt.routing.train import train_router

State = dict[str, torch.Tensor]

SWEEP: Final = 200
TRAIN: Final = 600
LAMBDAS: Final = (0.3, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0, 2.5)
MERGE_LAMBDAS: Final = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
PRESETS: Final = {"chat": "chat", "math": "math", "code": "code"}


def state(merger: Merger) -> State:
    """A merged model as torch tensors (BF16)."""
    return {
        name: torch.from_numpy(merger.tensor(name).bits.view(np.int16)).view(torch.bfloat16)
        for name in merger.names
    }


def marks(model: State | Path, split: str, count: int | None = None) -> list[float]:
    """Exact match on each task."""
    return [exact_match(model, prompts(task, split)[:count]) for task in TASKS]


def row(label: str, values: Sequence[float], megabytes: float | None, note: str = "") -> None:
    """Print a row of a table."""
    cells = "  ".join(f"{v:6.1f}" for v in values)
    stored = f"{megabytes:7.2f}" if megabytes is not None else "      -"
    print(f"{label:34} {cells}  {np.mean(values):6.1f}  {stored}  {note}", flush=True)


def header(title: str) -> None:
    """Print the head of a table."""
    print(f"\n{title}\n{'':34} " + "  ".join(f"{t:>6}" for t in TASKS) + "    mean       MB")


def swept(base: Checkpoint, experts: Sequence[ExpertSource], recipe: Recipe) -> Recipe:
    """The recipe with the factor that is best on the sweep prompts, over all tasks together."""
    candidates = [replace(recipe, lambda_onebit=v, lambda_dense=v) for v in LAMBDAS]
    return max(
        candidates,
        key=lambda r: float(np.mean(marks(state(Merger(base, experts, r)), "sweep", SWEEP))),
    )


def convert_all(folder: Path, sign: SignOptions) -> list[Path]:
    """Bundles of the three experts with the paper's presets."""
    paths = []
    for task in TASKS:
        path = folder / f"{task}.obd"
        options = ConvertOptions(preset=PRESETS[task], sign=sign)
        convert(FAMILY / "base", FAMILY / task, path, options, overwrite=True)
        paths.append(path)
    return paths


def train(featurizer: Featurizer) -> Router:
    """A router for the three tasks."""
    examples = [
        Example(prompt=p.text, label=task) for task in TASKS for p in prompts(task, "train")[:TRAIN]
    ]
    return train_router(examples, featurizer)


def routed(
    models: Mapping[str, State | Path], router: Router, featurizer: Featurizer
) -> tuple[list[float], float]:
    """Exact match when the router picks the model for each prompt, and the router's accuracy."""
    values, right, asked = [], 0, 0
    for task in TASKS:
        questions = prompts(task, "test")
        chosen = [d.expert for d in router.route([p.text for p in questions], featurizer)]
        score = 0.0
        for name, model in models.items():
            part: list[Prompt] = [
                p for p, expert in zip(questions, chosen, strict=True) if expert == name
            ]
            score += exact_match(model, part) * len(part) if part else 0.0
        values.append(score / len(questions))
        right += sum(expert == task for expert in chosen)
        asked += len(questions)
    return values, 100 * right / asked


def sources(paths: Iterable[Path]) -> list[ExpertSource]:
    """Experts, named by task."""
    return [ExpertSource.open(p, name=t) for p, t in zip(paths, TASKS, strict=True)]


def static_merges(base: Checkpoint, experts: Sequence[ExpertSource], full: float) -> None:
    """Rows for the static merges, each with its factor from the sweep."""
    for label, recipe in (
        ("average", Recipe(method="average")),
        ("Task Arithmetic", Recipe(method="task_arithmetic")),
        ("TIES", Recipe(method="ties", preset="official")),
        ("DARE + Task Arithmetic", Recipe(method="dare_linear", density=0.5)),
        ("DARE + TIES", Recipe(method="dare_ties", density=0.5)),
    ):
        best = recipe if recipe.method == "average" else swept(base, experts, recipe)
        note = "" if recipe.method == "average" else f"lambda {best.lambda_dense}"
        row(label, marks(state(Merger(base, experts, best)), "test"), full, note)


def onebit_merging(
    base: Checkpoint,
    experts: Sequence[ExpertSource],
    router: Router,
    featurizer: Featurizer,
    megabytes: float,
) -> None:
    """1bit-Merging for each factor: on `sweep` with an oracle route, the best one on `test`."""
    recipes = [
        Recipe(method="onebit_merging", lambda_onebit=v, lambda_dense=v) for v in MERGE_LAMBDAS
    ]
    own = []
    for recipe in recipes:
        models = {t: state(Merger(base, experts, recipe.with_select(t))) for t in TASKS}
        own.append([exact_match(models[t], prompts(t, "sweep")[:SWEEP]) for t in TASKS])
        cells = "  ".join(f"{v:5.1f}" for v in own[-1])
        print(f"  sweep, oracle route, lambda {recipe.lambda_dense:4}: {cells}", flush=True)
    # Of equal means the largest factor: it carries the most of the other experts.
    best = max(range(len(recipes)), key=lambda i: (float(np.mean(own[i])), i))
    models = {t: state(Merger(base, experts, recipes[best].with_select(t))) for t in TASKS}
    values, accuracy = routed(models, router, featurizer)
    note = f"lambda {recipes[best].lambda_dense}, router {accuracy:.1f} %"
    row("1bit-Merging", values, megabytes, note)


def table_2(folder: Path) -> None:
    """Experts, static merges, 1bit-Merging, routing."""
    base = Checkpoint.open(FAMILY / "base")
    full = sources(FAMILY / t for t in TASKS)
    size = base.nbytes / 1e6
    featurizer = make_featurizer("hidden", base)
    router = train(featurizer)
    header("Table 2: merged and routed models, exact match on test")
    row("base model", marks(FAMILY / "base", "test"), size)
    for task in TASKS:
        row(f"fine-tuned {task}", marks(FAMILY / task, "test"), size)
    static_merges(base, full, size)
    values, accuracy = routed({t: FAMILY / t for t in TASKS}, router, featurizer)
    row("routing to full experts", values, 3 * size, f"router {accuracy:.1f} %")
    for label, sign in (
        ("paper's coding", SignOptions(scale="matrix", balanced=False)),
        ("rank1", SignOptions()),
        ("rank1, 2 planes", SignOptions(planes=2)),
    ):
        paths = convert_all(folder, sign)
        experts = sources(paths)
        megabytes = size + storage(paths).stored / 1e6
        print(f"-- bundles with {label}; MB with the base", flush=True)
        alone = {t: state(Merger(base, experts, Recipe(method="select", select=t))) for t in TASKS}
        for task in TASKS:
            row(f"compressed {task}", marks(alone[task], "test"), None)
        values, accuracy = routed(alone, router, featurizer)
        row("routing to compressed experts", values, megabytes, f"router {accuracy:.1f} %")
        onebit_merging(base, experts, router, featurizer, megabytes)


def table_7(folder: Path) -> None:
    """Static merges of compressed experts."""
    base = Checkpoint.open(FAMILY / "base")
    header("Table 7: static merges of compressed experts (paper's coding), test")
    experts = sources(convert_all(folder, SignOptions(scale="matrix", balanced=False)))
    static_merges(base, experts, base.nbytes / 1e6)


def main() -> None:
    """Print the tables."""
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        table_2(Path(name))
        table_7(Path(name))


if __name__ == "__main__":
    main()
