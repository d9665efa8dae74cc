"""Valid cases of terms. A case fills a draft; its docstring is what it is about."""

from __future__ import annotations

import itertools
from typing import Final

from vectors.drafts import SCALE_PARTS, Case, Draft, Term
from vectors.numbers import floats
from vectors.samples import ramp, sign


def sign_widths(d: Draft) -> None:
    """Rows of 1, 7, 8, 9, 63 and 65 elements, padded to whole bytes."""
    for width in (1, 7, 8, 9, 63, 65):
        shape = [3, width]
        d.terms(
            f"layers.{width}.weight", ramp("BF16", shape, width), [sign("matrix", shape, width)]
        )


def sign_scales(d: Draft) -> None:
    """One term of every scale kind."""
    for kind in SCALE_PARTS:
        d.terms(f"{kind}.weight", ramp("BF16", [5, 11]), [sign(kind, [5, 11])], group="attention")


def sign_planes(d: Draft) -> None:
    """Several terms of mixed kinds, added in order, and the most that are allowed."""
    kinds = ["rank1", "matrix", "column", "row"]
    three = [sign(kind, [4, 10], seed) for seed, kind in enumerate(kinds)]
    d.terms("mixed.weight", ramp("BF16", [4, 10]), three)
    d.terms("most.weight", ramp("F32", [2, 9]), [sign("matrix", [2, 9], k) for k in range(16)])


def sign_stack(d: Draft) -> None:
    """Stacks of matrices: three and four dimensions, every scale kind."""
    for kind in SCALE_PARTS:
        d.terms(f"experts.{kind}", ramp("BF16", [3, 2, 9]), [sign(kind, [3, 2, 9])])
    d.terms("deep", ramp("F16", [2, 2, 3, 5]), [sign("rank1", [2, 2, 3, 5])])


def sign_scales_f32(d: Draft) -> None:
    """F32 scales, also beside F16 ones and in the same term, with padding before them."""
    d.terms("a.weight", ramp("BF16", [3, 5]), [sign("rank1", [3, 5], 3, "F32")])
    mixed = Term(
        kind="rank1",
        plus=[True, False] * 3,
        scales=[("F32", [1e-9, 3.0]), ("F16", [0.5, 2.0, 0.0])],
    )
    d.terms("b.weight", ramp("F32", [2, 3]), [mixed, sign("matrix", [2, 3])])


def sign_dtypes(d: Draft) -> None:
    """Every pair of base dtype and tensor dtype."""
    for source, target in itertools.product(("F32", "F16", "BF16"), repeat=2):
        base = ramp(source, [3, 9], 5)
        d.terms(f"{source}.{target}", base, [sign("row", [3, 9], 5)], dtype=target)


def sign_rounding(d: Draft) -> None:
    """Ties to even, subnormal results, overflow to infinity, zero scales, minus zeros."""
    ties = [1.0, 1 + 2**-7, -1.0, 1 + 2**-6]
    half = Term(kind="matrix", plus=[True, True, False, True], scales=[("F32", [2.0**-8])])
    d.terms("ties", floats("BF16", [1, 4], ties), [half])
    small = [("F32", [2.0**-149]), ("F32", [0.5])]
    steps = [Term(kind="matrix", plus=[True, False], scales=small[:1])] * 2
    d.terms("subnormal", floats("F32", [1, 2], [2.0**-130, 0.0]), steps)
    under = Term(
        kind="rank1", plus=[True, False], scales=[("F32", [2.0**-148]), ("F32", [0.75, 0.5])]
    )
    d.terms("underflow", floats("F32", [1, 2], [0.0, 0.0]), [under])
    big = Term(kind="matrix", plus=[True, False], scales=[("F32", [3e38])])
    d.terms("overflow", floats("F32", [1, 2], [3e38, -3e38]), [big])
    d.terms(
        "overflow16",
        floats("F16", [1, 2], [65504.0, -65504.0]),
        [Term(kind="matrix", plus=[True, False], scales=[("F16", [16.0])])],
    )
    none = Term(kind="column", plus=[True, False, True, False], scales=[("F16", [0.0] * 4)])
    zeros = floats("BF16", [1, 4], [-0.0, -0.0, 0.0, 0.0])
    d.terms("nothing", zeros, [none])


CASES: Final[tuple[Case, ...]] = (
    sign_widths,
    sign_scales,
    sign_planes,
    sign_stack,
    sign_scales_f32,
    sign_dtypes,
    sign_rounding,
)
