"""The merge fast paths against memcpy and against the general path: `python tools/bench_merge.py`.

Ratios within one run, since lone seconds say little on a shared machine: rounds in which every
path has its turn, and of each path the best round. Matrices are BF16 and together far larger than
the caches.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import numpy as np
from bench import COLUMNS, ROWS, THREADS, both_threads_copy, pair
from numpy.typing import NDArray

from onebitfmt.codecs import floats, sign
from onebitfmt.kernels import lookup
from onebitfmt.kernels.elementwise import Elementwise
from onebitfmt.merge.lookup import lookup_rows, lookup_table, merge_rows

Array = NDArray[Any]

DTYPES: Final = ("BF16", "BF16")
# Rows of a block in the general path: its float32 temporaries then fit the second-level cache.
BLOCK: Final = 64
ROUNDS: Final = 9


def ties(count: int) -> Elementwise:
    """One selected expert, the sign-elected mean of the others on top."""
    return Elementwise(weights=(1.0,) * count, select=0, elect=True, scale=0.4)


def planes_of(bits: Array, seed: int, rank1: bool) -> list[tuple[Array, Array, Array]]:
    """An expert's single plane for each sign matrix; a matrix scale, or row and column scales."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(bits.shape[0]):
        rows, columns = np.full((1, ROWS), 1e-3 * (k + 1)), np.ones((1, COLUMNS))
        if rank1:
            rows, columns = (
                rows * rng.uniform(0.5, 2, rows.shape),
                rng.uniform(0.5, 2, (1, COLUMNS)),
            )
        found.append((bits[k : k + 1], rows.astype(np.float32), columns.astype(np.float32)))
    return found


def general(base: Array, planes: Sequence[tuple[Array, Array, Array]], rule: Elementwise) -> Array:
    """Task vectors in float32, merged by numpy, added, rounded: what the fast paths must equal."""
    parts = []
    for first in range(0, base.shape[0], BLOCK):
        rows = slice(first, first + BLOCK)
        cut = [(bits[:, rows], scales[:, rows], columns) for bits, scales, columns in planes]
        merged = rule.apply(np.stack([sign.task_vector(p) for p in cut]))
        parts.append(floats.from_float32(floats.to_float32(base[rows], "BF16") + merged, "BF16"))
    return np.concatenate(parts)


def over(matrices: int, work: Callable[[int], object]) -> None:
    """work(k) for each matrix, in as many threads as the other benchmarks have."""
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(matrices)))


def bench(base: Array, bits: Array, count: int) -> None:
    """Print every path's speed for merges of `count` experts, the selected one included."""
    matrices = base.shape[0]
    out = np.empty_like(base)
    rule = ties(count)
    flat, scaled = (planes_of(bits[:count], 1, rank1) for rank1 in (False, True))
    table = lookup_table([float(rows[0, 0]) for _, rows, _ in flat], rule.apply)

    def kernel_alone(k: int) -> None:
        lookup.lookup_rows(base[k], (0, 0), bits[:count], table, out[k])

    def tabled(k: int) -> Array:
        return lookup_rows(base[k], DTYPES, list(bits[:count]), table)

    # The general path is too slow for every matrix.
    few = min(matrices, 2)
    paths: dict[str, Callable[[], object]] = {
        "memcpy": partial(both_threads_copy, base, out),
        "general path": partial(over, few, lambda k: general(base[k], flat, rule)),
        "look-up kernel": partial(over, matrices, kernel_alone),
        "look-up, stacked and into new pages": partial(over, matrices, tabled),
        "fused, matrix scale": partial(
            over, matrices, lambda k: merge_rows(base[k], DTYPES, flat, rule, out=out[k])
        ),
        "fused, rank1": partial(
            over, matrices, lambda k: merge_rows(base[k], DTYPES, scaled, rule, out=out[k])
        ),
    }
    assert np.array_equal(tabled(0), general(base[0], flat, rule))
    assert np.array_equal(merge_rows(base[0], DTYPES, scaled, rule), general(base[0], scaled, rule))
    best = best_seconds(paths)
    best["general path"] *= matrices / few
    copy, slow = best["memcpy"], best["general path"]
    print(f"{count} experts: memcpy {base.nbytes / copy / 1e9:.1f} GB/s")
    for name, spent in best.items():
        print(f"  {name}: {copy / spent:.3f} of memcpy, {slow / spent:.1f} x the general path")


def best_seconds(paths: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The best wall time of each path over rounds in which all have their turn."""
    best = dict.fromkeys(paths, float("inf"))
    for _ in range(ROUNDS):
        for name, run in paths.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> None:
    """Run every benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matrices", type=int, default=12, help="matrices of 4096 x 4096")
    parser.add_argument("--experts", type=int, nargs="*", default=[2, 3, 4])
    arguments = parser.parse_args()
    base, _ = pair(arguments.matrices)
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 256, (max(arguments.experts), ROWS, COLUMNS // 8), dtype=np.uint8)
    for count in arguments.experts:
        bench(base, bits, count)


if __name__ == "__main__":
    main()
