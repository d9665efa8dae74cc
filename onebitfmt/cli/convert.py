"""`obd convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebitfmt.cli.console import (
    BaseModel,
    Jobs,
    Json,
    Overwrite,
    Quiet,
    command,
    parse_size,
    percent,
    print_json,
    progress,
    size,
    table,
)
from onebitfmt.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from onebitfmt.verbs.convert import ConversionReport
    from onebitfmt.verbs.encode import Outcome
    from onebitfmt.verbs.plan import ConvertOptions

_COLUMNS = (
    "group", "tensors", "one-bit", "full", "stored", "bits/weight", "rel. sq. error", "zeros",
    "absorbed",
)  # fmt: skip


@command
def run(
    base: BaseModel,
    expert: Annotated[str, typer.Argument(metavar="EXPERT", help="Fine-tuned model, likewise.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle folder to write.")],
    preset: Annotated[
        str,
        typer.Option(help="One-bit groups: chat (mlp), math and code (attention), linear, none."),
    ],
    name: Annotated[str | None, typer.Option(help="Expert's name; default: the output's.")] = None,
    onebit: Annotated[
        list[str] | None, typer.Option(help="Also one-bit: tensors that match this glob.")
    ] = None,
    exact: Annotated[
        list[str] | None, typer.Option(help="Never one-bit: tensors that match this glob.")
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(help="GLOB=GROUP: put tensors that match into this layer group."),
    ] = None,
    scale: Annotated[str, typer.Option(help="matrix, row, column or rank1.")] = "rank1",
    planes: Annotated[int, typer.Option(min=1, max=4, help="Residual sign planes.")] = 1,
    zeros: Annotated[
        str, typer.Option(help="Signs of exact zeros: balanced, or plus (as BitDelta).")
    ] = "balanced",
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's coding: --scale matrix --zeros plus.")
    ] = False,
    shard_size: Annotated[str, typer.Option(help="Largest group file.")] = "4GB",
    jobs: Jobs = None,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Write files on a Dask cluster.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a fine-tuned checkpoint to an .obd bundle."""
    from onebitfmt.source import open_checkpoint
    from onebitfmt.verbs.convert import convert, work_bytes

    options = _options(
        preset=preset, onebit=onebit, exact=exact, group=group, scale=scale, planes=planes,
        zeros=zeros, paper=paper, shard_size=shard_size,
    )  # fmt: skip
    of_base, of_expert = open_checkpoint(base), open_checkpoint(expert)
    total = work_bytes(of_base, of_expert)
    with progress(f"convert {output.name}", total, quiet=quiet) as done:
        report = convert(
            of_base,
            of_expert,
            output,
            options,
            name=name,
            jobs=jobs,
            overwrite=overwrite,
            executor=_executor(dask) if dask else None,
            progress=done,
        )
    if as_json:
        print_json(_as_json(report))
    elif not quiet:
        _print(report)


def _options(
    *, preset: str, onebit: list[str] | None, exact: list[str] | None, group: list[str] | None,
    scale: str, planes: int, zeros: str, paper: bool, shard_size: str,
) -> ConvertOptions:  # fmt: skip
    from onebitfmt.codecs.sign import SignOptions
    from onebitfmt.format.manifest import SCALE_TENSORS
    from onebitfmt.groups import Override
    from onebitfmt.verbs.plan import ConvertOptions

    if scale not in SCALE_TENSORS:
        raise UsageError(f"unknown scale {scale!r}; the scales are {', '.join(SCALE_TENSORS)}")
    if zeros not in ("balanced", "plus"):
        raise UsageError(f"--zeros is balanced or plus, not {zeros!r}")
    if paper and (planes != 1 or scale not in ("rank1", "matrix")):
        raise UsageError("--paper means one plane with one scale a matrix; drop --scale, --planes")
    overrides = []
    for text in group or ():
        pattern, equals, target = text.rpartition("=")
        if not equals:
            raise UsageError(f"--group takes GLOB=GROUP, not {text!r}")
        overrides.append(Override(pattern=pattern, group=target))
    sign = SignOptions(
        scale="matrix" if paper else scale,
        planes=planes,
        balanced=zeros == "balanced" and not paper,
    )
    return ConvertOptions(
        preset=preset,
        onebit=tuple(onebit or ()),
        exact=tuple(exact or ()),
        groups=tuple(overrides),
        sign=sign,
        shard_size=parse_size(shard_size),
    )


def _executor(address: str) -> Executor:
    try:
        from dask.distributed import Client
    except ImportError:
        raise MissingDependencyError("dask.distributed", "dask") from None
    executor: Executor = Client(address).get_executor()
    return executor


def _by_group(report: ConversionReport) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in report.outcomes:
        groups.setdefault(outcome.group, []).append(outcome)
    return groups


def _row(name: str, outcomes: list[Outcome]) -> dict[str, Any]:
    from onebitfmt.verbs.encode import summary

    fidelities = [o.fidelity for o in outcomes if o.fidelity is not None]
    elements = sum(o.elements for o in outcomes)
    stored = sum(o.stored for o in outcomes)
    row: dict[str, Any] = {
        "group": name,
        "tensors": len(outcomes),
        "onebit_tensors": len(fidelities),
        "full_bytes": sum(o.nbytes for o in outcomes),
        "stored_bytes": stored,
        "bits_per_weight": 8 * stored / elements if elements else 0.0,
    }
    return row | (summary(fidelities) if fidelities else {})


def _as_json(report: ConversionReport) -> dict[str, Any]:
    return {
        "bundle": str(report.path),
        "expert_bytes": report.expert_bytes,
        "bundle_bytes": report.bundle_bytes,
        "groups": [_row(name, outcomes) for name, outcomes in _by_group(report).items()],
        "kept_exactly": {o.name: o.note for o in report.outcomes if o.note},
        "other": [o.name for o in report.outcomes if o.group == "other"],
    }


def _print(report: ConversionReport) -> None:
    rows = [_row(name, outcomes) for name, outcomes in _by_group(report).items()]
    rows.append(_row("total", list(report.outcomes)))
    table(f"{report.path}", _COLUMNS, [_cells(row) for row in rows])
    typer.echo(
        f"{size(report.bundle_bytes)} on disk, manifest and small files included: "
        f"{percent(report.bundle_bytes, report.expert_bytes)} of the full checkpoint"
    )
    for outcome in report.outcomes:
        if outcome.note:
            typer.echo(f"kept exactly: {outcome.name}: {outcome.note}")
    other = [o.name for o in report.outcomes if o.group == "other"]
    if other:
        shown = ", ".join(other[:5]) + (", ..." if len(other) > 5 else "")
        typer.echo(f"in no known layer group, kept exactly: {shown} (see --group)")


def _cells(row: dict[str, Any]) -> list[str]:
    lossy = "relative_squared_error" in row
    return [
        row["group"],
        str(row["tensors"]),
        str(row["onebit_tensors"]),
        size(row["full_bytes"]),
        size(row["stored_bytes"]),
        f"{row['bits_per_weight']:.3f}",
        f"{row['relative_squared_error']:.4f}" if lossy else "exact",
        f"{100 * row['zeros']:.2f} %" if lossy else "-",
        f"{100 * row['absorbed']:.2f} %" if lossy else "-",
    ]
