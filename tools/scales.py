"""What scales, planes and position do to the experts of the small family: `make scales`.

Each expert is converted against the base, restored, and asked its own task on the `test` prompts.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from family import FAMILY, TASKS, exact_match, prompts

from onebitfmt import ConvertOptions, SignOptions, convert, restore
from onebitfmt.verbs.encode import summary

CODINGS: Final = (
    ("paper: matrix, zeros plus", SignOptions(scale="matrix", balanced=False)),
    ("matrix", SignOptions(scale="matrix")),
    ("row", SignOptions(scale="row")),
    ("column", SignOptions(scale="column")),
    ("rank1", SignOptions(scale="rank1")),
    ("rank1, 2 planes", SignOptions(scale="rank1", planes=2)),
    ("rank1, 3 planes", SignOptions(scale="rank1", planes=3)),
    ("rank1, 4 planes", SignOptions(scale="rank1", planes=4)),
)
POSITIONS: Final = {"attention and mlp": "linear", "attention": "math", "mlp": "chat"}


def measure(task: str, preset: str, sign: SignOptions, folder: Path) -> tuple[float, float]:
    """Exact match on the expert's own task after restoring, and the relative squared error."""
    options = ConvertOptions(preset=preset, sign=sign)
    base, bundle, restored = FAMILY / "base", folder / "x.obd", folder / "x"
    report = convert(base, FAMILY / task, bundle, options, overwrite=True)
    restore(base, bundle, restored, overwrite=True)
    lost = summary(o.fidelity for o in report.outcomes if o.fidelity)
    return exact_match(restored, prompts(task, "test")), lost["relative_squared_error"]


def main() -> None:
    """Print the table."""
    print("one-bit             coding                       exact match: " + ", ".join(TASKS)
          + "   rel. sq. error")  # fmt: skip
    own = [exact_match(FAMILY / task, prompts(task, "test")) for task in TASKS]
    start = [exact_match(FAMILY / "base", prompts(task, "test")) for task in TASKS]
    for label, marks in (("base model", start), ("original experts", own)):
        print(f"{'':19} {label:28} " + "  ".join(f"{m:5.1f}" for m in marks), flush=True)
    with tempfile.TemporaryDirectory() as name:
        for position, preset in POSITIONS.items():
            for coding, sign in CODINGS:
                got = [measure(task, preset, sign, Path(name)) for task in TASKS]
                exact = "  ".join(f"{mark:5.1f}" for mark, _ in got)
                errors = "  ".join(f"{error:.3f}" for _, error in got)
                print(f"{position:19} {coding:28} {exact}     {errors}", flush=True)


if __name__ == "__main__":
    main()
