"""`obd router train` and `obd router eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebitfmt.cli.console import (
    BaseModel,
    Json,
    Overwrite,
    Quiet,
    command,
    print_json,
    say,
    size,
    table,
)

if TYPE_CHECKING:
    from onebitfmt.routing.evaluation import Evaluation
    from onebitfmt.routing.router import Router

Data = Annotated[
    Path,
    typer.Argument(metavar="DATA", help='JSONL file: {"prompt": "...", "label": "EXPERT"} a line.'),
]


@command
def train(
    base: BaseModel,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Router file to write.")],
    features: Annotated[
        str,
        typer.Option(
            help="hidden (last hidden state of the base), embedding, or ngrams (base not read)."
        ),
    ] = "hidden",
    kind: Annotated[
        str, typer.Option(help="softmax (regression), or mlp (one hidden layer).")
    ] = "softmax",
    held_out: Annotated[
        float, typer.Option(help="Share of the prompts kept for calibration and marks.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, and of an mlp's start.")] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a router on prompts whose experts are known, and mark it on those held out."""
    from onebitfmt.errors import OutputError
    from onebitfmt.routing.examples import read_examples
    from onebitfmt.routing.features import make_featurizer, needs_base
    from onebitfmt.routing.train import train_router
    from onebitfmt.source import open_checkpoint

    # Before the work, not after it.
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists; pass --overwrite to replace it")
    examples = read_examples(data)
    model = open_checkpoint(base) if needs_base(features) else None
    featurizer = make_featurizer(features, model)
    router = train_router(examples, featurizer, kind=kind, seed=seed, held_out=held_out)
    router.save(output, overwrite=overwrite)
    if as_json:
        print_json({"router": str(output), **_described(router), **router.metrics})
    elif not quiet:
        _print_training(router, output)


@command
def evaluate(
    router: Annotated[
        str,
        typer.Argument(
            metavar="ROUTER", help="Router file, or a collection: folder, or Hub id ns/name."
        ),
    ],
    data: Data,
    base: Annotated[
        str | None, typer.Option(help="Base model, where it is needed and not known.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Mark a router on prompts whose experts are known."""
    from onebitfmt.routing.examples import read_examples
    from onebitfmt.routing.train import evaluate_router

    examples = read_examples(data)
    own, featurizer = _open(router, base)
    marks = evaluate_router(own, featurizer, examples)
    if as_json:
        print_json(
            {
                "labels": list(marks.labels),
                "examples": marks.examples,
                "accuracy": marks.accuracy,
                "recall": dict(marks.recall),
                "confusion": [list(row) for row in marks.confusion],
                "nll": marks.nll,
                "calibration_error": marks.calibration_error,
            }
        )
    else:
        _print_marks(marks)


app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Train and mark a router of prompts."
)
app.command("train")(train)
app.command("eval")(evaluate)


def _open(source: str, base: str | None) -> tuple[Router, Any]:
    from onebitfmt.errors import UsageError
    from onebitfmt.hub.address import hub_id, local_path
    from onebitfmt.routing.features import needs_base, open_featurizer
    from onebitfmt.routing.router import Router
    from onebitfmt.source import open_checkpoint
    from onebitfmt.transfer.opening import open_collection

    path = local_path(source)
    if path.is_dir() or hub_id(source):
        collection = open_collection(source, experts=())
        own = collection.load_router()
        if own is None:
            raise UsageError(f"{source}: this collection has no router")
        model = collection.open_base(base) if needs_base(own.spec.kind) else None
    else:
        own = Router.load(path)
        needed = base is not None and needs_base(own.spec.kind)
        model = open_checkpoint(str(base)) if needed else None
    return own, open_featurizer(own.spec, model)


def _described(router: Router) -> dict[str, Any]:
    return {
        "labels": list(router.labels),
        "features": router.spec.kind,
        "dimension": router.spec.dimension,
        "temperature": router.temperature,
    }


def _print_training(router: Router, output: Path) -> None:
    metrics = router.metrics
    _print_confusion(router.labels, metrics["confusion"])
    say(
        f"accuracy {100 * float(metrics['accuracy']):.2f} % of {metrics['held_out']} prompts held "
        f"out; trained on {metrics['train']}, {metrics['duplicates']} duplicates dropped"
    )
    say(
        f"{router.spec.kind} features ({router.spec.dimension}), {metrics['kind']}, temperature "
        f"{router.temperature:.3f}, negative log-likelihood {float(metrics['nll']):.4f}, "
        f"calibration error {float(metrics['calibration_error']):.4f}"
    )
    say(f"{output}: {size(output.stat().st_size)}")


def _print_marks(marks: Evaluation) -> None:
    _print_confusion(marks.labels, marks.confusion)
    say(
        f"accuracy {100 * marks.accuracy:.2f} % of {marks.examples} prompts, negative "
        f"log-likelihood {marks.nll:.4f}, calibration error {marks.calibration_error:.4f}"
    )


def _print_confusion(labels: tuple[str, ...], confusion: Any) -> None:
    rows = [
        [label, *map(str, row), f"{100 * row[i] / sum(row):.2f} %" if any(row) else "-"]
        for i, (label, row) in enumerate(zip(labels, confusion, strict=True))
    ]
    table("prompts of the expert in the row, by the expert chosen", ("", *labels, "right"), rows)
