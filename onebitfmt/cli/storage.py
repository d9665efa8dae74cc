"""`obd storage`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebitfmt.cli.console import BaseModel, Json, command, percent, print_json, say, size, table
from onebitfmt.errors import MissingDependencyError

if TYPE_CHECKING:
    from onebitfmt.checkpoint import Checkpoint
    from onebitfmt.report.storage import StorageReport


@command
def run(
    base: BaseModel,
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE...",
            help="Bundles of that base, or collections of them: folders, or Hub ids "
            "ns/name[:expert][@revision], of which only manifests are fetched.",
        ),
    ],
    plot: Annotated[Path | None, typer.Option(help="Also draw a bar chart to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Measure bytes on disk of bundles against full experts and against the paper's scheme."""
    from onebitfmt.source import open_checkpoint

    report = _measure(bundles, open_checkpoint(base))
    if plot is not None:
        _plot(report, plot)
    if as_json:
        print_json(_as_json(report))
    else:
        _print(report)


def _measure(sources: list[str], base: Checkpoint) -> StorageReport:
    from dataclasses import replace

    from onebitfmt.report.storage import StorageReport, expert_storage
    from onebitfmt.transfer.opening import open_bundles

    bundles = [pair for source in sources for pair in open_bundles(source, groups=()).items()]
    # A collection may call an expert by another name than its bundle does.
    experts = [replace(expert_storage(bundle.container), name=name) for name, bundle in bundles]
    return StorageReport(experts=tuple(experts), base=base.nbytes)


def _print(report: StorageReport) -> None:
    rows = [
        [
            f"{expert.name}: {group.name}",
            size(group.full),
            size(group.stored),
            percent(group.stored, group.full),
            percent(group.onebit, group.elements),
            size(group.paper),
        ]
        for expert in report.experts
        for group in expert.groups
    ]
    table("by layer group", ("group", "full", "stored", "ratio", "one-bit", "paper"), rows)
    count = len(report.experts)
    experts = [
        [e.name, size(e.full), size(e.stored), percent(e.stored, e.full), size(e.paper),
         percent(e.paper, e.full)]
        for e in report.experts
    ]  # fmt: skip
    totals = [
        _total(f"{count} experts", report.stored, report.full, report.paper),
        _total("base + experts against experts", report.stored + report.base, report.full,
               report.paper + report.base),
        _total("base + experts on both sides", report.stored + report.base,
               report.full + report.base, report.paper + report.base),
    ]  # fmt: skip
    columns = ("expert", "full", "stored", "ratio", "paper", "paper's ratio")
    say()
    table("by expert", columns, experts + totals)
    say("full: the experts' own checkpoints. paper: one bit a weight and one FP16 scale a "
               "matrix for the same choice, FP16 for the rest (not exact).")  # fmt: skip


def _total(name: str, stored: int, full: int, paper: int) -> list[str]:
    return [name, size(full), size(stored), percent(stored, full), size(paper),
            percent(paper, full)]  # fmt: skip


def _as_json(report: StorageReport) -> dict[str, Any]:
    from dataclasses import asdict

    experts = [
        {
            "name": e.name,
            "full_bytes": e.full,
            "stored_bytes": e.stored,
            "paper_bytes": e.paper,
            "groups": [asdict(g) for g in e.groups],
        }
        for e in report.experts
    ]
    return {
        "base_bytes": report.base,
        "full_bytes": report.full,
        "stored_bytes": report.stored,
        "paper_bytes": report.paper,
        "experts": experts,
    }


def _plot(report: StorageReport, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("matplotlib", "plot") from None
    figure = Figure(figsize=(6, 0.6 * len(report.experts) + 1.5), layout="constrained")
    axes = figure.add_subplot()
    names = [e.name for e in report.experts]
    positions = range(len(names))
    for offset, label, values in (
        (-0.27, "full checkpoint", [e.full for e in report.experts]),
        (0.0, "paper's scheme", [e.paper for e in report.experts]),
        (0.27, "bundle", [e.stored for e in report.experts]),
    ):
        axes.barh([p + offset for p in positions], [v / 1e6 for v in values], 0.25, label=label)
    axes.set_yticks(list(positions), names)
    axes.invert_yaxis()
    axes.set_xlabel("MB on disk")
    axes.legend()
    figure.savefig(path)
